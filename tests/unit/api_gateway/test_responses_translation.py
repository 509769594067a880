"""Items to messages, and events of an answer to events of a response."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from paceline_api_gateway.protocols.openai.responses.items import list_inputs, read_items, to_messages
from paceline_api_gateway.protocols.openai.responses.pages import list_page
from paceline_api_gateway.protocols.openai.responses.reasoning import read_reasoning_text, seal
from paceline_api_gateway.protocols.openai.responses.schema import ResponseRequest
from paceline_api_gateway.protocols.openai.responses.translate_events import Birth, ResponseWriter, write_event
from paceline_api_gateway.protocols.openai.responses.translate_request import check, plan
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerationCompleted,
    GenerationEvent,
    Message,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)
from paceline_services.errors import InvalidRequestError

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USER = {"type": "message", "role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}


def converse(*items: dict[str, Any], instructions: str | None = None) -> tuple[Message, ...]:
    return to_messages(instructions, read_items(list(items), {}))


def make_writer(**fields: Any) -> ResponseWriter:
    body = ResponseRequest.model_validate({"model": "m", "input": "Hi"} | fields)
    check(body)
    return ResponseWriter(Birth("a" * 24, 1, is_stored=True), plan(body, read_items(list_inputs(body.input), {})))


def text(word: str, *logprobs: TokenLogprob) -> ChoiceDelta:
    return ChoiceDelta(0, (1,), word, 0, logprobs)


def thought(word: str, *logprobs: TokenLogprob) -> ChoiceDelta:
    return ChoiceDelta(0, (1,), "", 0, logprobs, reasoning_text=word)


def call(index: int, name: str, arguments: str = "") -> ChoiceDelta:
    part = ToolCallDelta(index, f"c{index}" if name else "", name, arguments)
    return ChoiceDelta(0, (1,), "", 0, tool_calls=(part,))


def tell(
    writer: ResponseWriter, events: Iterable[GenerationEvent], reason: FinishReason = FinishReason.STOP
) -> list[dict[str, Any]]:
    """Everything that is told of an answer, each event checked against the types of OpenAI's client."""
    told = writer.begin()
    for event in (*events, ChoiceFinished(0, reason), GenerationCompleted(3, 4)):
        told += writer.take(event)
    told += writer.end(2)
    for one in told:
        EVENT.validate_python(json.loads(orjson.dumps(one)), strict=False)
    return told


def show(output: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Kind, text and status of each item."""
    shown = []
    for item in output:
        inner = item.get("arguments") or "".join(
            part["text"] for part in item.get("content") or item.get("summary") or ()
        )
        shown.append((item["type"], inner, item["status"]))
    return shown


def test_one_turn_of_the_assistant_is_one_message() -> None:
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]}
    thinking = {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    second = CALL | {"call_id": "c2", "name": "g"}
    answered = OUTPUT | {
        "call_id": "c2",
        "output": [{"type": "input_text", "text": "4"}, {"type": "input_text", "text": "3"}],
    }
    assert converse(USER, thinking, said, CALL, second, OUTPUT, answered, instructions="Be brief.") == (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message(
            "assistant",
            "Let me see.",
            tool_calls=(ToolCall("c1", "f", "{}"), ToolCall("c2", "g", "{}")),
            reasoning_text="Hm.",
        ),
        Message("tool", "42", name="f", tool_call_id="c1"),
        Message("tool", "43", name="g", tool_call_id="c2"),
    )


def test_calls_one_after_the_other_are_turns_of_their_own() -> None:
    second = CALL | {"call_id": "c2"}
    messages = converse(USER, CALL, OUTPUT, second, OUTPUT | {"call_id": "c2"})
    assert [message.role for message in messages] == ["user", "assistant", "tool", "assistant", "tool"]


def test_easy_messages_and_developers_are_read() -> None:
    items = [
        {"role": "developer", "content": "Be Ada."},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": ""},
    ]
    assert converse(*items) == (Message("system", "Be Ada."), Message("assistant", "Yes."), Message("user", ""))


def test_items_have_ids_and_keep_their_own() -> None:
    made, kept = read_items([USER, USER | {"id": "msg_1"}], {})
    assert made["id"].startswith("msg_") and kept["id"] == "msg_1"


def test_sealed_thinking_comes_back() -> None:
    item = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": seal("Hm, così.")}
    assert read_reasoning_text(item, "input[0]") == "Hm, così."
    (message,) = converse(item)
    assert message.reasoning_text == "Hm, così."


@pytest.mark.parametrize("items", [[OUTPUT], [CALL], [OUTPUT, CALL]])
def test_calls_and_outputs_belong_together(items: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidRequestError, match="call"):
        converse(USER, *items)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(text, st.text(min_size=1)),
            st.builds(thought, st.text(min_size=1)),
            st.builds(call, st.integers(0, 3), st.sampled_from(["f", "g"]), st.text()),
        )
    )
)
def test_every_answer_is_told_in_events_that_add_up_to_it(deltas: list[ChoiceDelta]) -> None:
    writer = make_writer()
    told = tell(writer, deltas)
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    response = told[-1]["response"]
    Response.model_validate(response)
    done = [one["item"] for one in told if one["type"] == "response.output_item.done"]
    assert response["output"] == done and response["status"] == "completed"
    thoughts = "".join(delta.reasoning_text for delta in deltas)
    assert "".join(inner for kind, inner, _ in show(done) if kind == "reasoning") == thoughts
    deltas_told = [one["delta"] for one in told if one["type"] == "response.output_text.delta"]
    assert "".join(inner for kind, inner, _ in show(done) if kind == "message") == "".join(deltas_told)


def test_white_space_before_calls_is_no_message() -> None:
    writer = make_writer()
    tell(writer, [thought("Hm"), text("\n\n"), call(0, "f", "{}")])
    assert show(writer.output) == [("reasoning", "Hm", "completed"), ("function_call", "{}", "completed")]


def test_white_space_before_text_is_part_of_it() -> None:
    writer = make_writer()
    tell(writer, [text("\n"), text(" a")])
    assert show(writer.output) == [("message", "\n a", "completed")]


def test_answer_of_nothing_is_an_empty_message() -> None:
    writer = make_writer()
    tell(writer, [])
    assert show(writer.output) == [("message", "", "completed")]


def test_thinking_alone_is_followed_by_an_empty_message() -> None:
    writer = make_writer()
    tell(writer, [thought("Hm")])
    assert show(writer.output) == [("reasoning", "Hm", "completed"), ("message", "", "completed")]


def test_thinking_that_is_cut_has_no_message() -> None:
    writer = make_writer()
    told = tell(writer, [thought("Hm")], FinishReason.LENGTH)
    assert show(writer.output) == [("reasoning", "Hm", "incomplete")] and told[-1]["type"] == "response.incomplete"


def test_log_probabilities_of_thinking_are_left_out() -> None:
    writer = make_writer(include=["message.output_text.logprobs"])
    hm, late, end = (TokenLogprob(1, name, name.encode(), float("-inf")) for name in ("Hm", "la", "<end>"))
    tell(writer, [thought("Hm", hm), text("", late), text("late"), text("", end)])
    (part,) = writer.output[-1]["content"]
    assert [(one["token"], one["logprob"]) for one in part["logprobs"]] == [("la", -9999.0), ("<end>", -9999.0)]


def test_sealed_thinking_is_included_where_it_is_asked_for() -> None:
    writer = make_writer(include=["reasoning.encrypted_content"], store=False)
    tell(writer, [thought("Hm"), text("Hi")])
    assert writer.output[0]["encrypted_content"] == seal("Hm")


def test_failed_response_keeps_what_there_was() -> None:
    writer = make_writer()
    writer.begin()
    writer.take(text("Hel"))
    (failed,) = [one for one in writer.fail({"code": "server_error", "message": "gone"}) if "response" in one]
    assert failed["type"] == "response.failed" and show(failed["response"]["output"]) == [
        ("message", "Hel", "incomplete")
    ]
    Response.model_validate(failed["response"])


def test_event_is_written_with_its_name() -> None:
    (created, _) = make_writer().begin()
    assert write_event(created).startswith('event: response.created\ndata: {"type":"response.created",')


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_make_the_whole_list(order: Any) -> None:
    items = [{"id": str(number)} for number in range(7)]
    seen: list[Any] = []
    after = None
    while True:
        page = list_page(items, order, after, 3)
        seen += page["data"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == (items if order == "asc" else items[::-1])
    with pytest.raises(InvalidRequestError):
        list_page(items, order, "unknown", 3)
