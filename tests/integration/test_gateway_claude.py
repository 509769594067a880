"""A real gateway process between Claude's official client and a scripted head."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import MessageParam
from pydantic import BaseModel

from paceline_services.domain.generation import (
    ChoiceDelta,
    FinishReason,
    GenerateRequest,
    GenerationEvent,
    GenerationStarted,
    Reasoning,
    ToolChoiceMode,
)
from paceline_services.errors import ContextLengthError, InternalError, OverloadedError, UnavailableError
from support.gateway_rig import Rig, run_rig
from support.golden import check_golden
from support.head import MODEL, NUM_PROMPT_TOKENS, WORDS
from support.scripts_claude import WEATHER_TOOL, call_tools, call_weather_until_told, say, think_then_say

HELLO: list[MessageParam] = [{"role": "user", "content": "Hello"}]
BODY: dict[str, Any] = {"model": MODEL, "max_tokens": 2048, "messages": HELLO}
TEXT = "".join(WORDS) + " 0"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with run_rig(tmp_path) as running:
        yield running


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=rig.gateway.url, api_key="none", max_retries=0, timeout=30) as client:
        yield client


async def refuse(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    raise ContextLengthError("the prompt has 9000 tokens, the context of this instance 2048: shorten the prompt")
    yield GenerationStarted(request.request_id, 1, 0)


async def test_whole_answer(rig: Rig, client: AsyncAnthropic) -> None:
    message = await client.messages.create(model=MODEL, max_tokens=100, messages=HELLO, system="Be kind")
    assert message.id.startswith("msg_") and message.model == MODEL and message.role == "assistant"
    (block,) = message.content
    assert block.type == "text" and block.text == TEXT
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (NUM_PROMPT_TOKENS - 2, 2)
    assert message.usage.output_tokens == 4 and message._request_id
    (request,) = rig.head.requests
    assert request.conversation is not None
    assert [one.role for one in request.conversation.messages] == ["system", "user"]


async def test_stream_gives_texts_and_the_final_message(client: AsyncAnthropic) -> None:
    async with client.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert "".join(texts) == TEXT and len(texts) == 4
    assert final.content[0].type == "text" and final.content[0].text == TEXT
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == 4
    assert (final.usage.input_tokens, final.usage.cache_read_input_tokens) == (NUM_PROMPT_TOKENS - 2, 2)


async def test_raw_stream_has_claudes_order(client: AsyncAnthropic) -> None:
    stream = await client.messages.create(model=MODEL, max_tokens=100, messages=HELLO, stream=True)
    kinds = [event.type async for event in stream]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def test_tools_are_called_in_a_stream_and_their_input_accumulates(rig: Rig, client: AsyncAnthropic) -> None:
    rig.head.answer = call_tools(("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"}), text="I look.")
    async with client.messages.stream(**BODY, tools=[WEATHER_TOOL], tool_choice={"type": "any"}) as stream:
        parts = [event.partial_json async for event in stream if event.type == "input_json"]
        final = await stream.get_final_message()
    assert "".join(parts[-2:]) == json.dumps({"city": "Rome"})
    assert [block.type for block in final.content] == ["text", "tool_use", "tool_use"]
    assert [block.input for block in final.content if block.type == "tool_use"] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert final.stop_reason == "tool_use"
    choice = rig.head.requests[0].conversation and rig.head.requests[0].conversation.tool_choice
    assert choice is not None and choice.mode is ToolChoiceMode.REQUIRED


async def test_tools_go_round_by_hand(rig: Rig, client: AsyncAnthropic) -> None:
    rig.head.answer = call_weather_until_told
    first = await client.messages.create(**BODY, tools=[WEATHER_TOOL])
    (call,) = [block for block in first.content if block.type == "tool_use"]
    result: MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rainy"}],
    }
    turns: list[MessageParam] = [*HELLO, {"role": "assistant", "content": first.content}, result]
    second = await client.messages.create(model=MODEL, max_tokens=100, messages=turns, tools=[WEATHER_TOOL])
    assert second.content[0].type == "text" and second.content[0].text == "It is rainy"


async def test_beta_tool_runner_runs_tools_until_the_answer(rig: Rig, client: AsyncAnthropic) -> None:
    rig.head.answer = call_weather_until_told
    asked = list[str]()

    @anthropic.beta_async_tool
    async def get_weather(city: str) -> str:
        """The weather in a city, now"""
        asked.append(city)
        return "sunny"

    runner = client.beta.messages.tool_runner(model=MODEL, max_tokens=100, messages=HELLO, tools=[get_weather])  # type: ignore[list-item]
    final = await runner.until_done()
    assert asked == ["Oslo"] and final.content[0].type == "text" and final.content[0].text == "It is sunny"


async def test_thinking_comes_in_blocks_and_goes_back(rig: Rig, client: AsyncAnthropic) -> None:
    rig.head.answer = think_then_say
    async with client.messages.stream(**BODY, thinking={"type": "enabled", "budget_tokens": 1024}) as stream:
        final = await stream.get_final_message()
    thinking, text = final.content
    assert thinking.type == "thinking" and thinking.thinking == "Let me see." and thinking.signature
    assert text.type == "text" and text.text == "42"
    turns: list[MessageParam] = [*HELLO, {"role": "assistant", "content": final.content}, *HELLO]
    whole = await client.messages.create(model=MODEL, max_tokens=100, messages=turns)
    assert [block.type for block in whole.content] == ["text"]
    first, second = rig.head.requests
    assert first.reasoning == Reasoning(True, "", 1024) and second.reasoning == Reasoning(False)
    assert second.conversation is not None and second.conversation.messages[1].reasoning_text == "Let me see."


async def test_schema_is_enforced_and_parsed(rig: Rig, client: AsyncAnthropic) -> None:
    class City(BaseModel):
        name: str

    rig.head.answer = say('{"name":', ' "Oslo"}')
    parsed = await client.messages.parse(model=MODEL, max_tokens=100, messages=HELLO, output_format=City)
    assert parsed.parsed_output == City(name="Oslo")
    wanted = rig.head.requests[0].output_format
    assert (
        wanted is not None and wanted.json_schema is not None and "name" in json.loads(wanted.json_schema)["properties"]
    )


async def test_stop_reasons(rig: Rig, client: AsyncAnthropic) -> None:
    rig.head.answer = say("a", stop_text="END")
    message = await client.messages.create(model=MODEL, max_tokens=9, messages=HELLO, stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    rig.head.answer = say("a", "b", reason=FinishReason.LENGTH)
    assert (await client.messages.create(model=MODEL, max_tokens=2, messages=HELLO)).stop_reason == "max_tokens"


async def test_prefilled_answer_goes_on(rig: Rig, client: AsyncAnthropic) -> None:
    turns: list[MessageParam] = [*HELLO, {"role": "assistant", "content": "The answer is ("}]
    await client.messages.create(model=MODEL, max_tokens=9, messages=turns)
    conversation = rig.head.requests[0].conversation
    assert conversation is not None and conversation.continue_final_message


async def test_tokens_are_counted(rig: Rig, client: AsyncAnthropic) -> None:
    counted = await client.messages.count_tokens(model=MODEL, messages=HELLO, tools=[WEATHER_TOOL], system="Be kind")
    assert counted.input_tokens == NUM_PROMPT_TOKENS
    conversation = rig.head.requests[0].conversation
    assert conversation is not None and len(conversation.messages) == 2 and len(conversation.tools) == 1
    assert (await client.beta.messages.count_tokens(model=MODEL, messages=HELLO)).input_tokens == NUM_PROMPT_TOKENS


async def test_models_are_claudes_where_its_header_is_and_openais_elsewhere(rig: Rig, client: AsyncAnthropic) -> None:
    page = await client.models.list(limit=1)
    assert [model.id async for model in page] == [MODEL, "org/name"]
    assert page.has_more and page.first_id == page.last_id == MODEL
    model = await client.models.retrieve(MODEL)
    assert (model.id, model.type, model.max_input_tokens) == (MODEL, "model", 2048)
    assert (await client.models.retrieve("org/name")).id == "org/name"
    with pytest.raises(anthropic.NotFoundError, match="nope") as caught:
        await client.models.retrieve("nope")
    assert caught.value.type == "not_found_error"
    assert (await rig.http.get("/v1/models")).json()["object"] == "list"


async def test_request_is_named_in_answers_and_errors(rig: Rig, client: AsyncAnthropic) -> None:
    named = {"x-request-id": "mine-1"}
    raw = await client.messages.with_raw_response.create(**BODY, extra_headers=named)
    assert raw.request_id == "mine-1" and rig.head.requests[0].request_id == "mine-1"
    assert (await raw.parse()).stop_reason == "end_turn"
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.messages.create(**BODY | {"max_tokens": 0})
    assert caught.value.request_id and caught.value.request_id == caught.value.body["request_id"]  # type: ignore[index]


async def test_errors_are_of_claudes_classes(rig: Rig, client: AsyncAnthropic) -> None:
    rig.head.answer = refuse
    with pytest.raises(anthropic.BadRequestError, match="9000 tokens") as bad:
        await client.messages.create(**BODY)
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match="9000 tokens"):
        async with client.messages.stream(**BODY):
            pass
    with pytest.raises(anthropic.NotFoundError, match=MODEL) as missing:
        await client.messages.create(**BODY | {"model": "nope"})
    assert missing.value.type == "not_found_error"

    async def overload(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        raise OverloadedError("8 requests are running and 64 wait: try again later", reason="QUEUE_FULL")
        yield GenerationStarted(request.request_id, 1, 0)

    rig.head.answer = overload
    with pytest.raises(anthropic.RateLimitError) as full:
        await client.messages.create(**BODY)
    assert full.value.response.headers["retry-after"] == "1" and full.value.type == "rate_limit_error"
    assert full.value.request_id


async def test_model_that_cannot_run_is_overloaded_with_a_time_to_return(rig: Rig, client: AsyncAnthropic) -> None:
    async def fail(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        raise UnavailableError("3 GB short", reason="INSTANCE_UNAVAILABLE")
        yield GenerationStarted(request.request_id, 1, 0)

    rig.head.answer = fail
    with pytest.raises(anthropic.InternalServerError) as caught:
        await client.messages.create(**BODY)
    assert caught.value.status_code == 503 and caught.value.type == "overloaded_error"
    assert "retry-after" in caught.value.response.headers


async def test_error_in_a_stream_is_its_last_event(rig: Rig, client: AsyncAnthropic) -> None:
    async def break_off(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0)
        raise InternalError("the head failed by a defect")

    rig.head.answer = break_off
    with pytest.raises(anthropic.APIStatusError, match="the head failed by a defect") as caught:
        async with client.messages.stream(**BODY) as stream:
            [text async for text in stream.text_stream]
    assert caught.value.type == "api_error"


async def test_client_that_leaves_cancels_the_generation(rig: Rig, client: AsyncAnthropic) -> None:
    async def never_end(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0)
        await asyncio.Event().wait()

    rig.head.answer = never_end
    async with client.messages.stream(**BODY) as stream:
        async for _ in stream.text_stream:
            break
    await asyncio.wait_for(rig.head.cancelled.wait(), 10)


async def test_silent_stream_is_kept_alive_by_pings(tmp_path: Path) -> None:
    async with run_rig(tmp_path, {"KEEP_ALIVE_S": "0.05"}) as rig:
        pinged = asyncio.Event()

        async def pause(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
            await asyncio.wait_for(pinged.wait(), 20)
            async for event in say("a")(request):
                yield event

        rig.head.answer = pause
        names = list[str]()
        async with rig.http.stream("POST", "/v1/messages", json=BODY | {"stream": True}) as response:
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    names.append(line.removeprefix("event: "))
                    pinged.set()
        assert names[0] == "ping" and names[-1] == "message_stop"


async def test_request_as_claude_code_sends_it_is_accepted(rig: Rig) -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = BODY | {
        "max_tokens": 32000,
        "stream": True,
        "system": [{"type": "text", "text": "You are an agent."} | cached, {"type": "text", "text": "Rules."} | cached],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "<reminder/>"}, {"type": "text", "text": "Go"} | cached],
            }
        ],
        "tools": [WEATHER_TOOL | {"name": f"Tool{number}", "eager_input_streaming": True} for number in range(20)],
        "metadata": {"user_id": "user_abc_account__session_def"},
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "temperature": 1,
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b", "authorization": "Bearer x"}
    response = await rig.http.post("/v1/messages?beta=true", json=body, headers=headers)
    assert response.status_code == 200 and response.text.endswith('data: {"type":"message_stop"}\n\n')
    conversation = rig.head.requests[0].conversation
    assert conversation is not None and len(conversation.tools) == 20


async def test_paths_that_are_not_served_say_so_in_claudes_form(rig: Rig) -> None:
    for method, path in (("POST", "/v1/complete"), ("POST", "/v1/messages/batches"), ("GET", "/v1/messages/batches/x")):
        response = await rig.http.request(method, path, json={})
        error = response.json()
        assert response.status_code == 404 and error["type"] == "error", path
        assert error["error"]["type"] == "not_found_error" and path in error["error"]["message"]


async def test_unusable_fields_are_named(rig: Rig) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"temperature": 1.5}, "temperature"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
    ]
    for change, named in cases:
        response = await rig.http.post("/v1/messages", json=BODY | change)
        body = response.json()
        assert response.status_code == 400 and body["error"]["type"] == "invalid_request_error", change
        assert named in body["error"]["message"] and body["request_id"] == response.headers["request-id"]


async def test_transcripts_are_what_they_were(rig: Rig) -> None:
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    calls = call_tools(("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"}), text="I look.")
    cases = [
        ("text", say("Hel", "lo", num_cached=3), {}),
        ("thinking", think_then_say, thinking),
        ("tools", calls, {"tools": [WEATHER_TOOL]}),
        ("stop_sequence", say("a", stop_text="END"), {"stop_sequences": ["END"]}),
        ("too_long", refuse, {}),
    ]
    for name, answer, fields in cases:
        rig.head.answer = answer
        for stream in (False, True):
            response = await rig.http.post("/v1/messages", json=BODY | fields | {"stream": stream})
            check_golden(f"anthropic/{name}{'_stream' if stream else ''}.txt", response.text)
