"""OpenAI's own client asks for completions: prompts in every form, side by side, echoed, and with log probabilities."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from paceline_services.domain.generation import ChoiceDelta, GenerateRequest, GenerationEvent, GenerationStarted
from paceline_services.errors import ContextLengthError
from support.head import MODEL
from support.scripts_openai import Rig, go_on, parse_events, run_rig

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with run_rig(tmp_path_factory.mktemp("gateway"), go_on) as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def rig(gateway: Rig) -> Rig:
    """The gateway with a head that has heard nothing yet."""
    gateway.head.answer = go_on
    gateway.head.requests.clear()
    gateway.head.cancelled.clear()
    return gateway


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a b", [" b0.", " b1."]),
        (["a b", "c"], [" b0.", " b1.", " c0.", " c1."]),
        ([7, 8], [" 80.", " 81."]),
        ([[7], [8, 9]], [" 70.", " 71.", " 90.", " 91."]),
    ],
)
async def test_choices_come_in_the_order_of_their_prompts(rig: Rig, prompt: Any, texts: list[str]) -> None:
    answer = await rig.client.completions.create(model=MODEL, prompt=prompt, n=2)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert [(one.index, one.text) for one in answer.choices] == list(enumerate(texts))
    assert answer.usage is not None and answer.usage.completion_tokens == 2 * len(texts)
    streamed = [""] * len(texts)
    stream = await rig.client.completions.create(model=MODEL, prompt=prompt, n=2, stream=True)
    async for chunk in stream:
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


async def test_many_prompts_are_all_answered(rig: Rig) -> None:
    prompts = [f"a w{number}" for number in range(40)]
    answer = await rig.client.completions.create(model=MODEL, prompt=prompts)
    assert [one.text for one in answer.choices] == [f" w{number}0." for number in range(40)]
    assert answer.usage is not None and answer.usage.prompt_tokens == 80
    assert len({one.request_id for one in rig.head.requests}) == 40


async def test_echo_tells_the_prompt_and_its_log_probabilities(rig: Rig) -> None:
    answer = await rig.client.completions.create(model=MODEL, prompt="a b", echo=True, logprobs=1)
    (choice,) = answer.choices
    assert choice.text == "a b b0." and choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", "b", " b0", "."]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]
    assert choice.logprobs.top_logprobs is not None and choice.logprobs.top_logprobs[1] == {"b": -0.5}
    alone = await rig.client.completions.create(model=MODEL, prompt=[[7, 8]], echo=True, logprobs=1, max_tokens=0)
    (choice,) = alone.choices
    assert (choice.text, choice.finish_reason) == ("7 8", "length")
    assert choice.logprobs is not None and choice.logprobs.tokens == ["7", "8"]
    assert alone.usage is not None and alone.usage.completion_tokens == 0
    assert rig.head.requests[-1].limits.max_tokens == 1


async def test_stream_has_openai_chunks_and_ends_with_usage(rig: Rig) -> None:
    body = {"model": MODEL, "prompt": ["a", "b"], "stream": True, "echo": True, "logprobs": 0}
    body |= {"stream_options": {"include_usage": True}}
    chunks: list[Any] = parse_events((await rig.http.post("/v1/completions", json=body)).text)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"} and len({chunk["id"] for chunk in chunks}) == 1
    ends = {chunk["choices"][0]["index"]: chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]}
    assert ends == {0: "stop", 1: "stop"}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == 6


async def test_prompt_that_is_refused_ends_the_whole_request(rig: Rig) -> None:
    async def refuse_long(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        if request.text == "long":
            raise ContextLengthError("too long")
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0)
        await asyncio.Event().wait()

    rig.head.answer = refuse_long
    with pytest.raises(openai.BadRequestError, match="too long"):
        await rig.client.completions.create(model=MODEL, prompt=["a", "long"])
    await asyncio.wait_for(rig.head.cancelled.wait(), 30)


async def test_client_that_leaves_cancels_every_prompt(rig: Rig) -> None:
    num_cancelled, all_cancelled = 0, asyncio.Event()

    async def never_end(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        nonlocal num_cancelled
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0)
        try:
            await asyncio.Event().wait()
        finally:
            num_cancelled += 1
            if num_cancelled == 3:
                all_cancelled.set()

    rig.head.answer = never_end
    stream = await rig.client.completions.create(model=MODEL, prompt=["a", "b", "c"], stream=True)
    told: set[int] = set()
    async for chunk in stream:
        told.add(chunk.choices[0].index)
        if len(told) == 3:
            break
    await stream.close()
    await asyncio.wait_for(all_cancelled.wait(), 30)


async def test_same_key_gives_the_same_seeds_and_id_for_all_prompts(rig: Rig) -> None:
    answers = [
        await rig.client.completions.create(model=MODEL, prompt=["a", "b"], extra_headers={"Idempotency-Key": "k1"})
        for _ in range(2)
    ]
    assert answers[0].id == answers[1].id
    seeds = {one.text: one.sampling.seed for one in rig.head.requests}
    assert len(rig.head.requests) == 4 and set(seeds) == {"a", "b"} and seeds["a"] != seeds["b"]
    assert all(one.sampling.seed == seeds[one.text] for one in rig.head.requests)


async def test_unusable_completion_is_refused_by_the_name_of_its_field(rig: Rig) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
    ]
    for change, param in cases:
        response = await rig.http.post("/v1/completions", json={"model": MODEL, "prompt": "a"} | change)
        assert response.status_code == 400 and response.json()["error"]["param"] == param, change
    assert not rig.head.requests
