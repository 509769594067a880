"""Events of an answer become Claude's events and messages."""

import json
from typing import Any

from paceline_api_gateway.generation.answer import Answer
from paceline_api_gateway.protocols.anthropic.translate_events import Envelope, EventWriter, to_message, to_stop
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    ToolCallDelta,
)
from paceline_services.ids import RequestId

ENVELOPE = Envelope("msg_1", "demo", 100, shows_thinking=True)
STARTED = GenerationStarted(RequestId("r"), 7, 1)
COMPLETED = GenerationCompleted(7, 3, num_cached_tokens=2, num_reasoning_tokens=1)
ENDED = ChoiceFinished(0, FinishReason.STOP, num_tokens=3)


def delta(text: str = "", thought: str = "", *calls: ToolCallDelta) -> ChoiceDelta:
    return ChoiceDelta(0, (1,), text, 0, reasoning_text=thought, tool_calls=calls)


def write(*events: GenerationEvent, envelope: Envelope = ENVELOPE) -> list[dict[str, Any]]:
    """The payloads; each one's type is its event's name."""
    writer = EventWriter(envelope)
    texts = "".join(writer.write(event) for event in (STARTED, *events, COMPLETED)).split("\n\n")
    payloads = []
    for part in texts[:-1]:
        name, data = part.split("\n")
        payloads.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {payloads[-1]['type']}"
    assert texts[-1] == ""
    return payloads


def gather(*events: GenerationEvent, envelope: Envelope = ENVELOPE) -> dict[str, Any]:
    answer = Answer.of(1)
    for event in (*events, COMPLETED):
        answer.add(event)
    return to_message(answer, envelope)


def test_text_is_one_block_between_start_and_stop() -> None:
    events = write(delta("a"), delta(), delta("b"), ENDED)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["content"] == [] and events[0]["message"]["stop_reason"] is None
    assert events[3]["delta"] == {"type": "text_delta", "text": "a"}
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_usage_leaves_out_what_was_read_from_the_cache() -> None:
    events = write(delta("a"), ENDED)
    assert events[0]["message"]["usage"]["input_tokens"] == 7
    assert events[-2]["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2,
        "output_tokens": 3,
        "output_tokens_details": {"thinking_tokens": 1},
    }


def test_thinking_is_a_signed_block_before_the_text() -> None:
    events = write(delta(thought="Hm"), delta("42", "."), ENDED)
    blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert blocks == ["thinking", "text"]
    assert [one["type"] for one in deltas] == ["thinking_delta", "thinking_delta", "signature_delta", "text_delta"]
    (thinking, text) = gather(delta(thought="Hm"), delta("42", "."), ENDED)["content"]
    assert thinking == {"type": "thinking", "thinking": "Hm.", "signature": deltas[2]["signature"]}
    assert text == {"type": "text", "text": "42"}


def test_thinking_that_nobody_asked_for_is_not_shown() -> None:
    hidden = Envelope("msg_1", "demo", 100)
    events = write(delta("42", "Hm."), ENDED, envelope=hidden)
    assert [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"] == ["text"]
    assert gather(delta("42", "Hm."), ENDED, envelope=hidden)["content"] == [{"type": "text", "text": "42"}]


def test_omitted_thinking_is_an_empty_block_with_a_signature() -> None:
    omitted = Envelope("msg_1", "demo", 100, shows_thinking=True, hides_thinking=True)
    events = write(delta("42", "Hm."), ENDED, envelope=omitted)
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas == ["signature_delta", "text_delta"]
    block = gather(delta("42", "Hm."), ENDED, envelope=omitted)["content"][0]
    assert block["thinking"] == "" and block["signature"]


def test_calls_are_blocks_of_their_own_with_the_parts_of_their_input() -> None:
    calls = [
        delta("I look.", "", ToolCallDelta(0, "c0", "f", '{"x"')),
        delta("", "", ToolCallDelta(0, arguments_json=":1}"), ToolCallDelta(1, "c1", "g")),
        ChoiceFinished(0, FinishReason.TOOL_CALLS, num_tokens=3),
    ]
    events = write(*calls)
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2]
    assert starts[1]["content_block"] == {"type": "tool_use", "id": "c0", "name": "f", "input": {}}
    parts = [event["delta"]["partial_json"] for event in events if "partial_json" in event.get("delta", {})]
    assert parts == ['{"x"', ":1}"]
    assert sum(event["type"] == "content_block_stop" for event in events) == 3
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    whole = gather(*calls)
    assert whole["content"][1:] == [
        {"type": "tool_use", "id": "c0", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "c1", "name": "g", "input": {}},
    ]
    assert whole["stop_reason"] == "tool_use"


def test_empty_answer_has_no_block() -> None:
    assert [event["type"] for event in write(ENDED)] == ["message_start", "message_delta", "message_stop"]
    assert gather(ENDED)["content"] == []


def test_stop_reasons() -> None:
    def stop(reason: FinishReason, num_tokens: int = 3, stop_text: str = "") -> tuple[str, str | None]:
        return to_stop(ChoiceFinished(0, reason, stop_text, num_tokens), 100, has_calls=False)

    assert stop(FinishReason.STOP) == ("end_turn", None)
    assert stop(FinishReason.STOP, stop_text="END") == ("stop_sequence", "END")
    assert stop(FinishReason.LENGTH, 100) == ("max_tokens", None)
    assert stop(FinishReason.LENGTH, 99) == ("model_context_window_exceeded", None)
    assert stop(FinishReason.TOOL_CALLS) == ("tool_use", None)


def test_every_event_is_ascii_so_that_no_client_splits_its_line() -> None:
    writer = EventWriter(ENVELOPE)
    texts = [writer.write(event) for event in (STARTED, delta("\u2028\x85é🚀", "\u2029"), ENDED, COMPLETED)]
    assert "".join(texts).isascii()
    assert [
        event["delta"]["text"] for event in write(delta("\u2028\x85é🚀"), ENDED) if "text" in event.get("delta", {})
    ] == ["\u2028\x85é🚀"]
