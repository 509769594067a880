"""Messages of a chat become canonical ones, none is lost, and their order is that which OpenAI asks for."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from paceline_api_gateway.protocols.openai.schema_chat import MessageBody
from paceline_api_gateway.protocols.openai.translate_messages import to_messages
from paceline_services.domain.generation import Message, ToolCall
from paceline_services.errors import InvalidRequestError

MESSAGES = TypeAdapter(list[MessageBody])
USER = {"role": "user", "content": "Hi"}


def translate(*messages: dict[str, Any]) -> tuple[Message, ...]:
    return to_messages(MESSAGES.validate_python(messages))


def make_call(call_id: str, arguments: str = '{"x":1}') -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}


def answer(call_id: str, content: object = "2") -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": call_id}


def test_calls_and_their_answers_are_passed_on() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [make_call("a"), make_call("b", "")]}
    parts = [{"type": "text", "text": "3"}, {"type": "text", "text": "4"}]
    assert translate(USER, calls, answer("b", parts), answer("a"), USER) == (
        Message("user", "Hi"),
        Message("assistant", "", tool_calls=(ToolCall("a", "f", '{"x":1}'), ToolCall("b", "f", "{}"))),
        Message("tool", "34", tool_call_id="b"),
        Message("tool", "2", tool_call_id="a"),
        Message("user", "Hi"),
    )


def test_legacy_calls_are_calls_with_ids_of_their_own() -> None:
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    returned = {"role": "function", "name": "f", "content": "2"}
    assert translate(USER, called, returned) == (
        Message("user", "Hi"),
        Message("assistant", "", tool_calls=(ToolCall("call_1", "f", "{}"),)),
        Message("tool", "2", name="f", tool_call_id="call_1"),
    )


def test_names_and_thoughts_are_kept() -> None:
    assert translate({"role": "user", "content": "", "name": "ann"}) == (Message("user", "", name="ann"),)
    for field in ("reasoning_content", "reasoning"):
        (message,) = translate({"role": "assistant", "content": "a", field: "hm"})
        assert message.reasoning_text == "hm"
    (message,) = translate({"role": "assistant", "content": "a", "reasoning": {"effort": "low"}})
    assert message.reasoning_text == ""


def test_refusals_of_assistants_are_their_text() -> None:
    parts = [{"type": "text", "text": "Well, "}, {"type": "refusal", "refusal": "no"}]
    assert translate({"role": "assistant", "content": parts}) == (Message("assistant", "Well, no"),)
    assert translate({"role": "assistant", "content": None, "refusal": "no"}) == (Message("assistant", "no"),)


CALLING = {"role": "assistant", "tool_calls": [make_call("a")]}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user"}], "messages[0].content"),
        ([USER, {"role": "system", "content": None}], "messages[1].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0]"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "file", "file": {}}]}],
            "messages[0].content[1]",
        ),
        ([{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "content": "a", "audio": {"id": "x"}}], "messages[0].audio"),
        ([{"role": "assistant", "tool_calls": [{"id": "a", "type": "custom"}]}], "messages[0].tool_calls[0].type"),
        ([USER, answer("a")], "messages[1].role"),
        ([CALLING, answer("b")], "messages[1].tool_call_id"),
        ([CALLING, {"role": "tool", "content": "2"}], "messages[1].tool_call_id"),
        ([CALLING, USER], "messages[1]"),
        ([CALLING], "messages[0]"),
        ([CALLING, answer("a"), USER, answer("a")], "messages[3].role"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_path(messages: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        translate(*messages)
    assert caught.value.facts["param"] == param and param in caught.value.message


def test_unknown_role_is_refused() -> None:
    with pytest.raises(ValidationError):
        translate({"role": "robot", "content": "x"})


NAMES = st.text("abcdefgh_-", min_size=1, max_size=8)
ARGUMENTS = st.dictionaries(NAMES, st.integers() | st.text(max_size=5), min_size=1, max_size=3).map(json.dumps)
PLAIN = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text(), st.just("") | NAMES)
THINKING = st.builds(Message, st.just("assistant"), st.text(), reasoning_text=st.text())


@st.composite
def draw_round(draw: st.DrawFn) -> list[Message]:
    """Calls, and an answer to each."""
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    calls = tuple(ToolCall(f"call-{name}", name, draw(ARGUMENTS)) for name in names)
    answers = [Message("tool", draw(st.text()), tool_call_id=call.id) for call in calls]
    return [Message("assistant", draw(st.text()), tool_calls=calls, reasoning_text=draw(st.text())), *answers]


ROUNDS = st.lists(PLAIN.map(lambda one: [one]) | THINKING.map(lambda one: [one]) | draw_round(), min_size=1, max_size=4)


def to_body(message: Message, *, in_parts: bool) -> dict[str, Any]:
    """The message as a client writes it."""
    content: object = [{"type": "text", "text": message.content}] if in_parts else message.content
    body: dict[str, Any] = {"role": message.role, "content": content}
    if message.name:
        body["name"] = message.name
    if message.tool_calls:
        body["content"] = content if message.content else None
        body["tool_calls"] = [
            {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments_json}}
            for one in message.tool_calls
        ]
    if message.tool_call_id:
        body["tool_call_id"] = message.tool_call_id
    if message.reasoning_text:
        body["reasoning_content"] = message.reasoning_text
    return body


@given(ROUNDS, st.booleans())
def test_round_trip_keeps_every_message(rounds: list[list[Message]], in_parts: bool) -> None:
    messages = tuple(message for some in rounds for message in some)
    assert translate(*(to_body(message, in_parts=in_parts) for message in messages)) == messages
