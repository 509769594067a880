"""A real gateway process between Ollama's official client and a scripted head."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from ollama import AsyncClient

from paceline_services.domain.generation import (
    ChoiceDelta,
    GenerateRequest,
    GenerationEvent,
    GenerationStarted,
    Reasoning,
)
from paceline_services.domain.instances import InstanceSpec, InstanceState
from paceline_services.errors import InternalError, InvalidRequestError
from support.gateway_rig import Rig, run_rig
from support.golden import check_golden
from support.head import MODEL, NUM_PROMPT_TOKENS, WORDS, make_instance, say_words
from support.scripts_ollama import call_adder_until_told, call_tools, think_then_say

HELLO = [{"role": "user", "content": "Hello"}]
TEXT = "".join(WORDS) + " 0"
PREFIXES = ("", "/ollama")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with run_rig(tmp_path) as running:
        yield running


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(rig.gateway.url, timeout=30) as client:
        yield client


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def test_chat_whole(rig: Rig, client: AsyncClient) -> None:
    answer = await client.chat(MODEL, HELLO, options={"temperature": 0, "num_predict": 9, "num_ctx": 4096})
    assert answer.message.role == "assistant" and answer.message.content == TEXT
    assert answer.done and answer.done_reason == "stop" and answer.model == MODEL
    assert (answer.prompt_eval_count, answer.eval_count) == (NUM_PROMPT_TOKENS, 4)
    assert answer.total_duration and answer.load_duration and answer.prompt_eval_duration and answer.eval_duration
    (request,) = rig.head.requests
    assert request.sampling.temperature == 0 and request.limits.max_tokens == 9 and request.sampling.top_k == 40


async def test_chat_streamed(client: AsyncClient) -> None:
    parts = [part async for part in await client.chat(MODEL, HELLO, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == TEXT
    assert [part.done for part in parts] == [False] * 4 + [True] and parts[-1].eval_count == 4


async def test_generate_whole_streamed_and_raw(rig: Rig, client: AsyncClient) -> None:
    assert (await client.generate(MODEL, "Hello", system="Be kind")).response == TEXT
    parts = [part async for part in await client.generate(MODEL, "Hello", raw=True, stream=True)]
    assert "".join(part.response or "" for part in parts) == TEXT and parts[-1].done_reason == "stop"
    first, second = rig.head.requests
    assert first.conversation is not None and [one.role for one in first.conversation.messages] == ["system", "user"]
    assert second.text == "Hello" and second.conversation is None


async def test_names_with_a_tag_find_the_model_and_come_back_as_they_were(client: AsyncClient) -> None:
    answer = await client.chat("demo:latest", HELLO)
    assert answer.model == "demo:latest" and answer.message.content == TEXT


async def test_thinking_and_logprobs(rig: Rig, client: AsyncClient) -> None:
    rig.head.answer = think_then_say
    answer = await client.chat(MODEL, HELLO, think=True, logprobs=True, top_logprobs=2)
    assert (answer.message.thinking, answer.message.content) == ("Hm.", "42")
    assert answer.logprobs is not None and [one.token for one in answer.logprobs] == ["Hm.", "42"]
    assert answer.logprobs[0].top_logprobs is not None and len(answer.logprobs[0].top_logprobs) == 2
    parts = [part async for part in await client.generate(MODEL, "Hi", think="low", stream=True)]
    assert [part.thinking for part in parts] == ["Hm.", None, None]
    assert [one.reasoning for one in rig.head.requests] == [Reasoning(True), Reasoning(True, "low")]


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_go_round(rig: Rig, client: AsyncClient, stream: bool) -> None:
    rig.head.answer = call_adder_until_told
    messages: list[Any] = [*HELLO]
    if stream:
        parts = [part async for part in await client.chat(MODEL, messages, tools=[add], stream=True)]
        message = next(part.message for part in parts if part.message.tool_calls)
    else:
        message = (await client.chat(MODEL, messages, tools=[add])).message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.function.name == "add" and call.function.arguments == {"a": 2, "b": 3}
    told = {"role": "tool", "tool_name": "add", "content": str(add(**call.function.arguments))}
    answer = await client.chat(MODEL, [*messages, message, told], tools=[add])
    assert answer.message.content == "It is 5"
    conversation = rig.head.requests[-1].conversation
    assert conversation is not None and json.loads(conversation.messages[1].tool_calls[0].arguments_json) == {
        "a": 2,
        "b": 3,
    }


async def test_format_is_a_schema_or_json(rig: Rig, client: AsyncClient) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    await client.chat(MODEL, HELLO, format=schema)
    await client.generate(MODEL, "Hello", format="json")
    formats = [one.output_format.json_schema for one in rig.head.requests if one.output_format]
    assert [json.loads(one or "") for one in formats] == [schema, {"type": "object"}]


async def test_models_are_listed_shown_and_running(client: AsyncClient) -> None:
    assert [model.model for model in (await client.list()).models] == ["demo:latest", "org/name:latest"]
    (running,) = (await client.ps()).models
    assert running.model == "demo:latest" and running.context_length == 2048 and running.expires_at is not None
    shown = await client.show("demo")
    assert shown.capabilities is not None and "tools" in shown.capabilities and shown.modelinfo is not None
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
        await client.show("nope")
    assert caught.value.status_code == 404


async def test_body_without_prompt_loads_the_model(rig: Rig, client: AsyncClient) -> None:
    assert (await client.generate(MODEL, "")).done_reason == "load"
    assert (await client.chat(MODEL, [])).done_reason == "load"
    assert (await client.generate(MODEL, "", keep_alive=0)).done_reason == "unload"
    assert rig.head.requests == [] and rig.control_plane.placed == []
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        await client.generate("nope", "")


async def test_known_model_is_pulled_already(client: AsyncClient) -> None:
    assert (await client.pull("demo")).status == "success"
    statuses = [part.status async for part in await client.pull("demo", stream=True)]
    assert statuses[0] == "pulling manifest" and statuses[-1] == "success"


async def test_hubs_model_is_placed_and_its_progress_told(rig: Rig, client: AsyncClient) -> None:
    async def place(spec: InstanceSpec) -> None:
        waiting = make_instance("name-1", model=spec.source.model_id, state=InstanceState.LOADING)
        await rig.control_plane.show(waiting)

    rig.control_plane.on_place = place
    statuses = list[str | None]()
    async for part in await client.pull("hf.co/owner/name", stream=True):
        statuses.append(part.status)
        await rig.control_plane.show(make_instance("name-1", rig.head.address, model="owner/name"))
    assert statuses[0] == "pulling manifest" and statuses[-1] == "success"
    (placed,) = rig.control_plane.placed
    assert (placed.source.model_id, placed.source.location) == ("owner/name", "owner/name")


async def test_model_that_cannot_be_had_ends_a_pull_with_an_error(rig: Rig, client: AsyncClient) -> None:
    async def place(spec: InstanceSpec) -> None:
        failed = make_instance(
            "name-1", model=spec.source.model_id, state=InstanceState.FAILED, message="no such repository"
        )
        await rig.control_plane.show(failed)

    rig.control_plane.on_place = place
    with pytest.raises(ollama.ResponseError, match="no such repository"):
        _ = [part async for part in await client.pull("owner/name", stream=True)]
    with pytest.raises(ollama.ResponseError, match="no such repository"):
        await client.pull("owner/name")
    with pytest.raises(ollama.ResponseError, match="nope") as caught:
        await client.pull("nope")
    assert caught.value.status_code == 404


async def test_delete_ends_every_instance(rig: Rig, client: AsyncClient) -> None:
    await rig.control_plane.show(*rig.control_plane.state.instances, make_instance("demo-2", rig.head.address))
    assert (await client.delete("demo:latest")).status == "success"
    assert rig.control_plane.state.instances == ()
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        await client.delete("nope")


async def test_what_is_not_there_is_refused_clearly(client: AsyncClient, rig: Rig) -> None:
    refusals = [
        client.embed(MODEL, "x"),
        client.embeddings(MODEL, "x"),
        client.copy("a", "b"),
        client.push("a"),
        client.create("a"),
    ]
    for refusal in refusals:
        with pytest.raises(ollama.ResponseError, match=r"here|not supported") as caught:
            await refusal
        assert caught.value.status_code == 501
    sent = await rig.http.post("/api/blobs/sha256:abc", json={})
    assert sent.status_code == 501 and "files" in sent.json()["error"]


async def test_errors_have_ollamas_form(rig: Rig, client: AsyncClient) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as missing:
        await client.chat("nope", HELLO)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        _ = [part async for part in await client.chat("nope", HELLO, stream=True)]
    with pytest.raises(ollama.ResponseError, match=r"options\.temperature") as bad:
        await client.chat(MODEL, HELLO, options={"temperature": 5})
    assert bad.value.status_code == 400

    async def refuse(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        raise InvalidRequestError("the template refuses it")
        yield GenerationStarted(request.request_id, 1, 0)

    rig.head.answer = refuse
    for stream in (False, True):
        response = await rig.http.post("/api/chat", json={"model": MODEL, "messages": HELLO, "stream": stream})
        assert response.status_code == 400 and response.json() == {"error": "the template refuses it"}


async def test_error_in_a_stream_is_its_last_line(rig: Rig, client: AsyncClient) -> None:
    async def break_off(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0)
        raise InternalError("the head failed by a defect")

    rig.head.answer = break_off
    with pytest.raises(ollama.ResponseError, match="the head failed by a defect"):
        _ = [part async for part in await client.chat(MODEL, HELLO, stream=True)]


async def test_client_that_leaves_cancels_the_generation(rig: Rig) -> None:
    async def never_end(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0)
        await asyncio.Event().wait()

    rig.head.answer = never_end
    body = {"model": MODEL, "messages": HELLO}
    async with rig.http.stream("POST", "/api/chat", json=body) as response:
        assert response.headers["content-type"].startswith("application/x-ndjson")
        async for _ in response.aiter_lines():
            break
    await asyncio.wait_for(rig.head.cancelled.wait(), 10)


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_every_path_is_there_under_both_prefixes(rig: Rig, prefix: str) -> None:
    body = json.dumps({"model": MODEL, "messages": HELLO, "stream": False})
    form = {"content-type": "application/x-www-form-urlencoded"}
    sent = await rig.http.post(f"{prefix}/api/chat", content=body, headers=form)
    assert sent.json()["message"]["content"] == TEXT
    assert (await rig.http.head(f"{prefix}/api/version")).status_code == 200
    assert "version" in (await rig.http.get(f"{prefix}/api/version")).json()
    assert (await rig.http.head(f"{prefix}/api/tags")).status_code == 200
    assert (await rig.http.get(f"{prefix}/api/nope")).json()["error"].startswith("there is no")


async def test_sign_of_ollama_is_at_its_own_root(rig: Rig) -> None:
    for path in ("/ollama", "/ollama/"):
        assert (await rig.http.get(path)).text == "Ollama is running"
        assert (await rig.http.head(path)).status_code == 200


async def test_transcripts_are_what_they_were(rig: Rig) -> None:
    cases: list[tuple[str, Any, str, dict[str, Any]]] = [
        ("chat", say_words, "chat", {"messages": HELLO}),
        ("generate", say_words, "generate", {"prompt": "Hello"}),
        ("thinking", think_then_say, "chat", {"messages": HELLO, "think": True}),
        ("logprobs", think_then_say, "chat", {"messages": HELLO, "logprobs": True, "top_logprobs": 2}),
        ("tools", call_tools(("add", {"a": 2}), ("now", {})), "chat", {"messages": HELLO}),
    ]
    for name, answer, path, fields in cases:
        rig.head.answer = answer
        for stream in (False, True):
            response = await rig.http.post(f"/api/{path}", json={"model": MODEL, "stream": stream} | fields)
            check_golden(f"ollama/{name}{'_stream' if stream else ''}.txt", response.text)
