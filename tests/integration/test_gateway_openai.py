"""OpenAI's own client against a real gateway: tools, structured output, thinking, errors, and leaving in mid-answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from paceline_services.domain.generation import (
    ChoiceDelta,
    GenerateRequest,
    GenerationEvent,
    GenerationStarted,
    OutputFormat,
    ToolChoice,
    ToolChoiceMode,
)
from paceline_services.errors import (
    ContextLengthError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    PacelineError,
)
from paceline_services.ids import RequestId
from support.head import MODEL, Answer, say_words
from support.scripts_openai import (
    CALLING,
    THOUGHTFUL,
    Rig,
    Said,
    call,
    call_in_parts,
    parse_events,
    run_rig,
    say,
    use_tools,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How warm is it in Oslo?"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class GetWeather(BaseModel):
    """How warm it is in a city."""

    city: str


class Place(BaseModel):
    city: str
    size: int
    tags: list[str]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with run_rig(tmp_path_factory.mktemp("gateway")) as rig:
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def rig(gateway: Rig) -> Rig:
    """The gateway with a head that has heard nothing yet."""
    gateway.head.answer = say_words
    gateway.head.requests.clear()
    gateway.head.cancelled.clear()
    gateway.head.asked.clear()
    return gateway


def fail_with(error: PacelineError, *events: GenerationEvent) -> Answer:
    async def fail(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        for event in events:
            yield event
        raise error

    return fail


async def never_end(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    yield GenerationStarted(request.request_id, 1, 0)
    yield ChoiceDelta(0, (1,), "a", 0)
    await asyncio.Event().wait()


# -- tools --


async def test_tools_round_trip_as_the_client_does_it(rig: Rig) -> None:
    rig.head.answer = use_tools
    first = await rig.client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER])
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls is not None
    (called,) = choice.message.tool_calls
    assert called.type == "function" and called.function.name == "get_weather"
    assert json.loads(called.function.arguments) == {"city": "Oslo"}
    told: Any = [*HELLO, choice.message, {"role": "tool", "tool_call_id": called.id, "content": "4 degrees"}]
    second = await rig.client.chat.completions.create(model=MODEL, messages=told, tools=[WEATHER])
    assert second.choices[0].message.content == "It says: 4 degrees" and second.choices[0].finish_reason == "stop"
    talk = rig.head.requests[-1].conversation
    assert talk is not None and talk.messages[1].tool_calls[0].id == called.id == talk.messages[2].tool_call_id


async def test_streamed_calls_come_together_in_the_clients_helper(rig: Rig) -> None:
    rig.head.answer = say(
        *call_in_parts("GetWeather", '{"ci', 'ty": "Os', 'lo"}'),
        *call_in_parts("GetWeather", '{"city": "Bonn"}', index=1),
    )
    names, arguments = [], []
    tools = [pydantic_function_tool(GetWeather)]
    async with rig.client.chat.completions.stream(model=MODEL, messages=HELLO, tools=tools) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                arguments.append(event.arguments_delta)
            if event.type == "tool_calls.function.arguments.done":
                names.append(event.name)
        final = await stream.get_final_completion()
    assert names == ["GetWeather", "GetWeather"] and "".join(arguments) == '{"city": "Oslo"}{"city": "Bonn"}'
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [one.function.parsed_arguments for one in calls] == [GetWeather(city="Oslo"), GetWeather(city="Bonn")]


async def test_tools_of_pydantic_models_are_parsed(rig: Rig) -> None:
    rig.head.answer = use_tools
    answer = await rig.client.chat.completions.parse(
        model=MODEL, messages=HELLO, tools=[pydantic_function_tool(GetWeather)], tool_choice="required"
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None and calls[0].function.parsed_arguments == GetWeather(city="Oslo")
    talk = rig.head.requests[0].conversation
    assert talk is not None and talk.tools[0].is_strict and talk.tool_choice == ToolChoice(ToolChoiceMode.REQUIRED)


async def test_text_and_calls_in_one_answer_keep_both(rig: Rig) -> None:
    rig.head.answer = say(Said("I look."), call("get_weather", {"city": "Oslo"}))
    answer = await rig.client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER])
    message = answer.choices[0].message
    assert message.content == "I look." and message.tool_calls is not None
    stream = await rig.client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER], stream=True)
    deltas = [chunk.choices[0].delta async for chunk in stream]
    assert "".join(one.content or "" for one in deltas) == "I look."
    assert next(one.tool_calls[0].id for one in deltas if one.tool_calls) == message.tool_calls[0].id


async def test_legacy_functions_are_answered_in_kind(rig: Rig) -> None:
    rig.head.answer = use_tools
    functions: Any = [WEATHER["function"]]
    answer = await rig.client.chat.completions.create(model=MODEL, messages=HELLO, functions=functions)
    (choice,) = answer.choices
    assert choice.finish_reason == "function_call" and choice.message.function_call is not None
    assert choice.message.function_call.name == "get_weather" and choice.message.tool_calls is None
    told: Any = [*HELLO, choice.message, {"role": "function", "name": "get_weather", "content": "4 degrees"}]
    again = await rig.client.chat.completions.create(model=MODEL, messages=told, functions=functions)
    assert again.choices[0].message.content == "It says: 4 degrees"
    stream = await rig.client.chat.completions.create(model=MODEL, messages=HELLO, functions=functions, stream=True)
    calls = [chunk.choices[0].delta.function_call async for chunk in stream]
    assert "".join((one.arguments or "") for one in calls if one) == '{"city": "Oslo"}'


# -- forms of the answer, thinking, log probabilities --


async def test_answer_is_parsed_into_the_model_that_was_asked_for(rig: Rig) -> None:
    rig.head.answer = use_tools
    answer = await rig.client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Place)
    assert answer.choices[0].message.parsed == Place(city="Oslo", size=7, tags=["Oslo"])
    async with rig.client.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Place) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == Place(city="Oslo", size=7, tags=["Oslo"])
    sent = rig.head.requests[0].output_format
    assert sent is not None and sent.json_schema is not None
    assert list(json.loads(sent.json_schema)["properties"]) == ["city", "size", "tags"]


async def test_json_mode_is_any_object(rig: Rig) -> None:
    rig.head.answer = use_tools
    answer = await rig.client.chat.completions.create(
        model=MODEL, messages=HELLO, response_format={"type": "json_object"}
    )
    assert json.loads(answer.choices[0].message.content or "") == {}
    assert rig.head.requests[0].output_format == OutputFormat(json_schema='{"type":"object"}')


async def test_thinking_comes_beside_the_content(rig: Rig) -> None:
    rig.head.answer = THOUGHTFUL
    answer = await rig.client.chat.completions.create(
        model=MODEL, messages=HELLO, reasoning_effort="low", logprobs=True
    )
    message, logprobs = answer.choices[0].message, answer.choices[0].logprobs
    assert message.content == "Yes." and (message.model_extra or {})["reasoning_content"] == "Let me see."
    assert logprobs is not None and [one.token for one in logprobs.content or ()] == ["Yes."]
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    stream = await rig.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    extras = [chunk.choices[0].delta.model_extra or {} async for chunk in stream]
    assert "".join(one.get("reasoning_content", "") for one in extras) == "Let me see."
    told: Any = [*HELLO, message, {"role": "user", "content": "Sure?"}]
    await rig.client.chat.completions.create(model=MODEL, messages=told)
    talk = rig.head.requests[-1].conversation
    assert talk is not None and talk.messages[1].reasoning_text == "Let me see."


async def test_stream_helper_gathers_log_probabilities_and_usage(rig: Rig) -> None:
    options: Any = {"logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}, "n": 2}
    async with rig.client.chat.completions.stream(model=MODEL, messages=HELLO, **options) as stream:
        final = await stream.get_final_completion()
    whole = await rig.client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2, n=2)
    assert final.usage == whole.usage
    for streamed, choice in zip(final.choices, whole.choices, strict=True):
        assert streamed.message.content == choice.message.content and streamed.logprobs is not None
        assert choice.logprobs is not None and streamed.logprobs.content == choice.logprobs.content


async def test_fingerprint_is_the_same_in_every_answer(rig: Rig) -> None:
    whole = await rig.client.chat.completions.create(model=MODEL, messages=HELLO)
    stream = await rig.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    told = {chunk.system_fingerprint async for chunk in stream}
    assert told == {whole.system_fingerprint} and (whole.system_fingerprint or "").startswith("fp_")


# -- errors --


@pytest.mark.parametrize(
    ("error", "kind", "param", "code"),
    [
        (ContextLengthError("too long"), openai.BadRequestError, None, "context_length_exceeded"),
        (
            InvalidRequestError("no", reason="INVALID_OUTPUT_FORMAT", path="output_format.json_schema"),
            openai.BadRequestError,
            "response_format",
            None,
        ),
        (OverloadedError("full", reason="QUEUE_FULL"), openai.RateLimitError, None, "rate_limit_exceeded"),
        (InternalError("a defect"), openai.InternalServerError, None, None),
    ],
)
async def test_errors_of_heads_are_the_clients_own_exceptions(
    rig: Rig, error: PacelineError, kind: type[openai.APIStatusError], param: str | None, code: str | None
) -> None:
    rig.head.answer = fail_with(error)
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            await rig.client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
        assert (caught.value.param, caught.value.code) == (param, code)
        assert caught.value.request_id is not None


async def test_error_in_a_stream_is_raised_by_the_client(rig: Rig) -> None:
    begun = GenerationStarted(RequestId("r"), 1, 0)
    rig.head.answer = fail_with(InternalError("the head failed by a defect"), begun, ChoiceDelta(0, (1,), "a", 0))
    stream = await rig.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="the head failed by a defect"):
        async for _ in stream:
            pass


async def test_every_response_has_a_request_id(rig: Rig) -> None:
    raw = await rig.client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.headers["x-request-id"] == rig.head.requests[0].request_id == (await _parse(raw)).request_id
    for method, path in [("POST", "/v1/chat/completions"), ("GET", "/v1/models/none"), ("GET", "/nowhere")]:
        assert (await rig.http.request(method, path, json={})).headers["x-request-id"]
    mine = await rig.http.get("/v1/models/none", headers={"X-Request-Id": "mine"})
    assert mine.headers["x-request-id"] == "mine"


async def _parse(raw: Any) -> Any:
    parsed = raw.parse()
    parsed.request_id = parsed._request_id
    return parsed


async def test_unknown_model_is_openais_404(rig: Rig) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await rig.client.models.retrieve("nope")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert [model.owned_by async for model in rig.client.models.list()] == ["paceline", "paceline"]


async def test_embeddings_are_not_implemented_and_not_asked_for_again(rig: Rig) -> None:
    client = AsyncOpenAI(base_url=f"{rig.gateway.url}/v1", api_key="none", max_retries=5)
    with pytest.raises(openai.InternalServerError) as caught:
        await client.embeddings.create(model=MODEL, input="Hello")
    assert caught.value.status_code == 501 and caught.value.code == "not_implemented"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
    await client.close()
    for body in (
        {"model": MODEL},
        {"model": MODEL, "input": []},
        {"input": "x"},
        {"model": MODEL, "input": "x", "dimensions": 0},
    ):
        response = await rig.http.post("/v1/embeddings", json=body)
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error", body


# -- leaving --


async def test_whole_answer_that_nobody_waits_for_is_cancelled(rig: Rig) -> None:
    rig.head.answer = never_end
    asking = asyncio.create_task(rig.client.chat.completions.create(model=MODEL, messages=HELLO))
    await asyncio.wait_for(rig.head.asked.wait(), 30)
    asking.cancel()
    await asyncio.wait_for(rig.head.cancelled.wait(), 30)


async def test_closed_stream_is_cancelled(rig: Rig) -> None:
    rig.head.answer = never_end
    stream = await rig.client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content == "a":
            break
    await stream.close()
    await asyncio.wait_for(rig.head.cancelled.wait(), 30)


async def test_stream_ends_in_order(rig: Rig) -> None:
    rig.head.answer = CALLING
    body = {"model": MODEL, "messages": HELLO, "tools": [WEATHER], "stream": True, "tool_choice": "required"}
    body |= {"stream_options": {"include_usage": True, "include_obfuscation": False}}
    chunks: list[Any] = parse_events((await rig.http.post("/v1/chat/completions", json=body)).text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None, "refusal": None}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "tool_calls"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 2
