"""Whatever JSON stands in a body of Claude's or Ollama's, it is refused or becomes a request that a head can be sent."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from paceline_api_gateway.protocols.anthropic.schema import MessagesRequest
from paceline_api_gateway.protocols.anthropic.translate_request import to_generate_request as from_claude
from paceline_api_gateway.protocols.ollama.names import find_model
from paceline_api_gateway.protocols.ollama.schema import ChatBody, GenerateBody
from paceline_api_gateway.protocols.ollama.translate_request import (
    asks_nothing,
    asks_unload,
    check_supported,
    to_chat_request,
    to_generate_request,
)
from paceline_services.clients import request_to_proto
from paceline_services.domain.generation import GenerateRequest
from paceline_services.errors import InvalidRequestError
from support.scripts_claude import WEATHER_TOOL

Json = dict[str, Any]

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=6)
WORDS = st.sampled_from(["text", "tool_use", "tool_result", "user", "assistant", "json", "5m", "high", "any", "0s"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | WORDS
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
CLAUDE: Json = {
    "model": "demo",
    "max_tokens": 2048,
    "system": [{"type": "text", "text": "S"}],
    "messages": [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "s"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "text", "text": "r"}],
                    "is_error": True,
                }
            ],
        },
    ],
    "tools": [WEATHER_TOOL],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "temperature": 1,
    "top_p": 1,
    "top_k": 1,
    "stop_sequences": ["x"],
}
ANSWER: Json = {
    "model": "demo",
    "options": {"temperature": 1, "top_k": 1, "seed": 1, "num_predict": 1, "stop": ["x"], "repeat_penalty": 1},
    "format": {"type": "object"},
    "keep_alive": "5m",
    "think": "low",
    "logprobs": True,
    "top_logprobs": 1,
}
CALL = {"function": {"name": "f", "arguments": {"x": 1}}}
CHAT: Json = ANSWER | {
    "messages": [
        {"role": "user", "content": "Hi", "images": []},
        {"role": "assistant", "content": "", "thinking": "Hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "r", "tool_name": "f"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}],
}
GENERATE: Json = ANSWER | {"prompt": "Hi", "system": "S", "raw": False, "context": []}


def read_claude(body: Json) -> GenerateRequest:
    return from_claude(MessagesRequest.model_validate(body))


def read_chat(body: Json) -> GenerateRequest | None:
    chat = ChatBody.model_validate(body)
    asks_unload(chat)
    return None if asks_nothing(chat) else to_chat_request(chat, find_model(chat.model, ()))


def read_generate(body: Json) -> GenerateRequest | None:
    prompt = GenerateBody.model_validate(body)
    check_supported(prompt)
    return None if asks_nothing(prompt) else to_generate_request(prompt, find_model(prompt.model, ()))


def list_places(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a body."""
    keys: Any = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    return [path, *(place for key, inner in keys for place in list_places(inner, (*path, key)))]


def put(body: Json, path: tuple[Any, ...], value: Any) -> Json:
    changed = deepcopy(body)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def check(body: Json, data: st.DataObject, read: Callable[[Json], GenerateRequest | None]) -> None:
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([place for place in list_places(body) if place]))
        body = put(body, path, data.draw(JSON))
    try:
        request = read(body)
    except (ValidationError, InvalidRequestError):
        return
    if request is not None:
        request_to_proto(request).SerializeToString()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_body_of_claudes_is_refused_or_sent(data: st.DataObject) -> None:
    check(CLAUDE, data, read_claude)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_body_of_ollamas_is_refused_or_sent(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        check(CHAT, data, read_chat)
    else:
        check(GENERATE, data, read_generate)
