"""A real gateway process between real clients and a scripted head: what OpenAI's clients see."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from paceline_services.domain.generation import ChoiceDelta, GenerateRequest, GenerationEvent, GenerationStarted
from paceline_services.errors import ContextLengthError, InternalError, OverloadedError
from support.head import (
    MODEL,
    NUM_PROMPT_TOKENS,
    WORDS,
    GatewayProcess,
    ScriptedControlPlane,
    ScriptedHead,
    make_instance,
    run_gateway,
)

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
TEXT = "".join(WORDS) + " 0"


@dataclass(frozen=True, slots=True)
class Cluster:
    head: ScriptedHead
    control_plane: ScriptedControlPlane
    gateway: GatewayProcess
    http: httpx.AsyncClient
    client: AsyncOpenAI


@asynccontextmanager
async def run_cluster(home: Path) -> AsyncIterator[Cluster]:
    head, control_plane = ScriptedHead(), ScriptedControlPlane()
    async with head.serve(), control_plane.serve():
        await control_plane.show(make_instance("demo-1", head.address), models=("org/name", MODEL))
        async with (
            run_gateway(control_plane.address, home) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
            AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=30) as client,
        ):
            yield Cluster(head, control_plane, gateway, http, client)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(tmp_path) as running:
        yield running


async def read_events(response: httpx.Response) -> list[Any]:
    """The payloads of server-sent events; [DONE] as text."""
    lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_whole_answer_has_openai_shape(cluster: Cluster) -> None:
    answer = await cluster.client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == MODEL
    (choice,) = answer.choices
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", TEXT)
    assert choice.finish_reason == "stop" and choice.logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (NUM_PROMPT_TOKENS, 4)
    assert answer.usage.total_tokens == NUM_PROMPT_TOKENS + 4


async def test_stream_begins_with_role_and_ends_with_usage_and_done(cluster: Cluster) -> None:
    body = {"model": MODEL, "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    async with cluster.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = await read_events(response)
    assert events.pop() == "[DONE]"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == TEXT
    assert events[-2]["choices"][0]["finish_reason"] == "stop" and events[-2]["choices"][0]["delta"] == {}
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 4
    assert all(event["usage"] is None for event in events[:-1])
    assert len({event["id"] for event in events}) == 1
    assert all(event["object"] == "chat.completion.chunk" for event in events)


async def test_stream_without_usage_has_no_usage_field(cluster: Cluster) -> None:
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    async with cluster.http.stream("POST", "/v1/chat/completions", json=body) as response:
        events = await read_events(response)
    assert all("usage" not in event and event["choices"] for event in events[:-1])


async def test_every_choice_is_answered_whole_and_streamed(cluster: Cluster) -> None:
    answer = await cluster.client.chat.completions.create(model=MODEL, messages=HELLO, n=3)
    assert [choice.message.content for choice in answer.choices] == ["".join(WORDS) + f" {index}" for index in range(3)]
    texts = ["", "", ""]
    stream = await cluster.client.chat.completions.create(model=MODEL, messages=HELLO, n=3, stream=True)
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


async def test_logprobs_come_with_bytes_and_alternatives(cluster: Cluster) -> None:
    answer = await cluster.client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        logprobs=True,
        top_logprobs=2,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(one.token for one in logprobs.content) == TEXT
    first = logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("Hel", -0.5, list(b"Hel"))
    assert [top.token for top in first.top_logprobs] == ["Hel", "other-1"]


async def test_token_ids_come_when_asked_for(cluster: Cluster) -> None:
    body = {"model": MODEL, "messages": HELLO, "return_token_ids": True}
    answer = (await cluster.http.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["token_ids"] == [100, 101, 102, 103]
    async with cluster.http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        events = await read_events(response)
    streamed = [token for event in events[:-1] for token in event["choices"][0].get("token_ids", [])]
    assert streamed == [100, 101, 102, 103]


async def test_sampling_reaches_the_head_as_asked(cluster: Cluster) -> None:
    await cluster.client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        temperature=0,
        seed=-1,
        stop=["\n"],
        max_tokens=5,
        logit_bias={"7": 3},
    )
    (request,) = cluster.head.requests
    assert request.sampling.temperature == 0 and request.sampling.seed == 2**64 - 1
    assert request.limits.stop == ("\n",) and request.limits.max_tokens == 5
    assert request.sampling.logit_bias == {7: 3.0}


async def test_request_id_of_the_client_comes_back(cluster: Cluster) -> None:
    body = {"model": MODEL, "messages": HELLO}
    response = await cluster.http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert cluster.head.requests[0].request_id == "mine-1"


async def test_unknown_fields_are_ignored(cluster: Cluster) -> None:
    body = {"model": MODEL, "messages": HELLO, "surprise": {"deep": [1]}}
    assert (await cluster.http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_prompts_and_answers_are_not_logged(cluster: Cluster) -> None:
    secret: list[ChatCompletionMessageParam] = [{"role": "user", "content": "my-secret-prompt"}]
    await cluster.client.chat.completions.create(model=MODEL, messages=secret)
    cluster.gateway.process.terminate()
    assert await asyncio.wait_for(cluster.gateway.process.wait(), 20) == 0
    log = cluster.gateway.read_log()
    assert log.count('"request_completed"') == 1
    assert "my-secret-prompt" not in log and "Hel" not in log


async def test_client_that_leaves_a_stream_cancels_the_generation(cluster: Cluster) -> None:
    async def never_end(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0)
        await asyncio.Event().wait()

    cluster.head.answer = never_end
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    async with cluster.http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if '"a"' in line:
                break
    await asyncio.wait_for(cluster.head.cancelled.wait(), 10)


async def test_error_after_the_stream_began_is_an_event_before_done(cluster: Cluster) -> None:
    async def break_off(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0)
        raise InternalError("the head failed by a defect")

    cluster.head.answer = break_off
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    async with cluster.http.stream("POST", "/v1/chat/completions", json=body) as response:
        events = await read_events(response)
    assert response.status_code == 200 and events[-1] == "[DONE]"
    assert events[-2]["error"]["message"] == "the head failed by a defect"
    assert events[-2]["error"]["type"] == "server_error"


async def test_prompt_beyond_the_context_is_refused_in_both_forms(cluster: Cluster) -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        raise ContextLengthError("the prompt has 9000 tokens, the context of this instance 2048: shorten the prompt")
        yield GenerationStarted(request.request_id, 1, 0)

    cluster.head.answer = refuse
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="9000 tokens") as caught:
            await cluster.client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
        assert caught.value.code == "context_length_exceeded"


async def test_full_queue_is_429_and_says_when_to_return(cluster: Cluster) -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        raise OverloadedError("8 requests are running and 64 wait: try again later", reason="QUEUE_FULL")
        yield GenerationStarted(request.request_id, 1, 0)

    cluster.head.answer = refuse
    response = await cluster.http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO})
    assert response.status_code == 429 and response.headers["retry-after"] == "1"
    with pytest.raises(openai.RateLimitError):
        await cluster.client.chat.completions.create(model=MODEL, messages=HELLO)


async def test_unknown_model_is_404_that_names_those_there_are(cluster: Cluster) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
        await cluster.client.chat.completions.create(model="nope", messages=HELLO)
    assert caught.value.code == "model_not_found"


async def test_unusable_request_is_refused_by_the_name_of_its_field(cluster: Cluster) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"stop": [1]}, "stop[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ]
    for change, param in cases:
        response = await cluster.http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO} | change)
        error = response.json()["error"]
        assert response.status_code == 400 and error["type"] == "invalid_request_error", change
        assert error["param"] == param
    assert not cluster.head.requests


async def test_malformed_json_is_400(cluster: Cluster) -> None:
    response = await cluster.http.post(
        "/v1/chat/completions", content=b'{"model": ', headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


async def test_unknown_paths_and_methods_have_the_same_shape(cluster: Cluster) -> None:
    for path, status in [("/nowhere", 404), ("/v1/chat/completions", 405)]:
        response = await cluster.http.get(path)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_models_are_listed_and_found_by_ids_with_slashes(cluster: Cluster) -> None:
    # A chat waits for the gateway to have heard of the cluster; a list does not.
    await cluster.client.chat.completions.create(model=MODEL, messages=HELLO)
    assert [model.id async for model in cluster.client.models.list()] == [MODEL, "org/name"]
    assert (await cluster.client.models.retrieve("org/name")).id == "org/name"
    with pytest.raises(openai.NotFoundError):
        await cluster.client.models.retrieve("org/other")
