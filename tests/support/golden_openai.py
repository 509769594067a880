"""What is asked for the transcripts in tests/golden/openai, which script the head follows, and how a transcript is written."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from paceline_services.domain.generation import (
    ChoiceDelta,
    FinishReason,
    GenerateRequest,
    GenerationEvent,
    GenerationStarted,
)
from paceline_services.errors import ContextLengthError, InternalError
from support.head import MODEL, Answer, say_words
from support.scripts_openai import THOUGHTFUL, Said, call_in_parts, go_on, say, use_tools

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO: Mapping[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "How warm is it?"}]}
STREAM: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
FUNCTION: Mapping[str, Any] = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS: Mapping[str, Any] = {"tools": [{"type": "function", "function": FUNCTION}]}
FORM: Mapping[str, Any] = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": FUNCTION["parameters"]}}
}
PARALLEL = say(
    Said("I look. "),
    *call_in_parts("get_weather", '{"city":', ' "Oslo"}'),
    *call_in_parts("get_weather", '{"city": "Bonn"}', index=1),
    Said(token="<end>"),
    reason=FinishReason.TOOL_CALLS,
)


async def refuse(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    raise ContextLengthError("the prompt has 9000 tokens, the context of this instance 2048: shorten the prompt")
    yield GenerationStarted(request.request_id, 1, 0)


async def break_off(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    yield GenerationStarted(request.request_id, 1, 0)
    yield ChoiceDelta(0, (1,), "Hel", 0)
    raise InternalError("the head failed by a defect")


@dataclass(frozen=True, slots=True)
class Case:
    """A request and the script of the head that answers it; without a body it is a GET."""

    path: str
    body: Mapping[str, Any] | None = None
    answer: Answer = say_words


CASES: Mapping[str, Case] = {
    "chat": Case(CHAT, HELLO),
    "chat_stream": Case(CHAT, {**HELLO, **STREAM}),
    "chat_stream_plain": Case(CHAT, {**HELLO, "stream": True, "n": 2}),
    "chat_choices": Case(CHAT, {**HELLO, "n": 2}),
    "chat_logprobs": Case(CHAT, {**HELLO, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}),
    "chat_logprobs_stream": Case(CHAT, {**HELLO, **STREAM, "logprobs": True, "return_token_ids": True}),
    "tools": Case(CHAT, {**HELLO, **TOOLS}, use_tools),
    "tools_stream": Case(CHAT, {**HELLO, **TOOLS, **STREAM}, use_tools),
    "tools_parallel": Case(CHAT, {**HELLO, **TOOLS}, PARALLEL),
    "tools_parallel_stream": Case(CHAT, {**HELLO, **TOOLS, **STREAM, "logprobs": True}, PARALLEL),
    "functions": Case(CHAT, {**HELLO, "functions": [FUNCTION]}, use_tools),
    "functions_stream": Case(CHAT, {**HELLO, "functions": [FUNCTION], "stream": True}, use_tools),
    "form": Case(CHAT, {**HELLO, **FORM}, use_tools),
    "thinking": Case(CHAT, {**HELLO, "logprobs": True, "reasoning_effort": "low"}, THOUGHTFUL),
    "thinking_stream": Case(CHAT, {**HELLO, **STREAM}, THOUGHTFUL),
    "completion": Case(COMPLETIONS, {"model": MODEL, "prompt": "a b"}, go_on),
    "completion_stream": Case(COMPLETIONS, {"model": MODEL, "prompt": "a b", "n": 2, **STREAM}, go_on),
    "completion_prompts": Case(COMPLETIONS, {"model": MODEL, "prompt": ["a", "b c"], "logprobs": 2}, go_on),
    "completion_echo": Case(
        COMPLETIONS, {"model": MODEL, "prompt": [[1, 2]], "echo": True, "logprobs": 1, "max_tokens": 0}, go_on
    ),
    "completion_echo_stream": Case(
        COMPLETIONS, {"model": MODEL, "prompt": "a b", "echo": True, "logprobs": 0, "stream": True}, go_on
    ),
    "error_field": Case(CHAT, {**HELLO, "temperature": 3}),
    "error_tools": Case(CHAT, {**HELLO, "tools": [{"type": "custom", "custom": {"name": "x"}}]}),
    "error_image": Case(
        CHAT,
        {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    ),
    "error_model": Case(CHAT, {**HELLO, "model": "nope"}),
    "error_context": Case(CHAT, {**HELLO, "stream": True}, refuse),
    "error_in_stream": Case(CHAT, {**HELLO, "stream": True}, break_off),
    "models": Case("/v1/models"),
    "model": Case("/v1/models/org/name"),
    "model_unknown": Case("/v1/models/nope"),
    "embeddings": Case("/v1/embeddings", {"model": MODEL, "input": "Hello"}),
}


def write_transcript(case: Case, response: httpx.Response) -> str:
    """The request, the status and the kind of the response, and its body as it came."""
    method = "GET" if case.body is None else "POST"
    asked = "" if case.body is None else json.dumps(case.body, indent=1) + "\n"
    return f"{method} {case.path}\n{asked}\n{response.status_code} {response.headers['content-type']}\n{response.text}"


async def ask(http: httpx.AsyncClient, case: Case) -> httpx.Response:
    if case.body is None:
        return await http.get(case.path)
    return await http.post(case.path, json=case.body)
