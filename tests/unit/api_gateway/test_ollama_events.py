"""Events of an answer become Ollama's lines and objects."""

import json
from typing import Any

from paceline_api_gateway.generation.answer import Answer
from paceline_api_gateway.protocols.ollama.translate_events import (
    Envelope,
    LineWriter,
    Stamper,
    to_answer,
    to_metrics,
)
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerationCompleted,
    GenerationEvent,
    TokenLogprob,
    ToolCallDelta,
)

START_NS = 1_700_000_000_000_000_123
COMPLETED = GenerationCompleted(7, 3, time_to_first_token_ms=2.0, total_duration_ms=5.0)
ENDED = ChoiceFinished(0, FinishReason.STOP, num_tokens=3)
CUT = ChoiceFinished(0, FinishReason.LENGTH, num_tokens=3)


def make_envelope(*, is_chat: bool = True) -> Envelope:
    return Envelope("demo", is_chat, START_NS, Stamper(lambda: START_NS + 9_000_000))


def delta(text: str = "", thought: str = "", *calls: ToolCallDelta) -> ChoiceDelta:
    return ChoiceDelta(0, (1,), text, 0, reasoning_text=thought, tool_calls=calls)


def write(*events: GenerationEvent, is_chat: bool = True) -> list[dict[str, Any]]:
    writer = LineWriter(make_envelope(is_chat=is_chat))
    texts = [writer.write(event) for event in (*events, COMPLETED)]
    assert all(text == "" or (text.isascii() and text.endswith("\n")) for text in texts)
    return [json.loads(line) for line in "".join(texts).splitlines()]


def gather(*events: GenerationEvent, is_chat: bool = True) -> dict[str, Any]:
    answer = Answer.of(1)
    for event in (*events, COMPLETED):
        answer.add(event)
    return to_answer(answer, make_envelope(is_chat=is_chat))


def test_text_is_a_line_for_each_token_and_one_that_is_done() -> None:
    lines = write(delta("a\u2028"), delta(), delta("é"), ENDED)
    assert [line["message"]["content"] for line in lines] == ["a\u2028", "é", ""]
    assert [line["done"] for line in lines] == [False, False, True]
    assert lines[0] == {
        "model": "demo",
        "created_at": "2023-11-14T22:13:20.009000123Z",
        "message": {"role": "assistant", "content": "a\u2028"},
        "done": False,
    }
    assert lines[-1]["done_reason"] == "stop"


def test_generated_text_is_a_response() -> None:
    lines = write(delta("a"), ENDED, is_chat=False)
    assert [line["response"] for line in lines] == ["a", ""] and "message" not in lines[0]
    assert gather(delta("a"), delta("b", "Hm."), CUT, is_chat=False)["response"] == "ab"


def test_durations_are_nanoseconds_and_never_zero() -> None:
    assert to_metrics(COMPLETED, 9_000_000) == {
        "total_duration": 9_000_000,
        "load_duration": 4_000_000,
        "prompt_eval_count": 7,
        "prompt_eval_duration": 2_000_000,
        "eval_count": 3,
        "eval_duration": 3_000_000,
    }
    empty = to_metrics(GenerationCompleted(7, 3), 0)
    assert all(value >= 1 for value in empty.values())
    assert write(delta("a"), ENDED)[-1].items() >= to_metrics(COMPLETED, 9_000_000).items()


def test_thinking_is_a_field_of_its_own() -> None:
    lines = write(delta(thought="Hm"), delta("42", "."), ENDED)
    assert [line["message"].get("thinking") for line in lines] == ["Hm", ".", None]
    assert gather(delta(thought="Hm"), delta("42", "."), ENDED)["message"] == {
        "role": "assistant",
        "content": "42",
        "thinking": "Hm.",
    }


def test_calls_are_told_whole_with_their_arguments_as_an_object() -> None:
    calls = [
        delta("", "", ToolCallDelta(0, "c0", "f", '{"x":{"y":')),
        delta("", "", ToolCallDelta(0, arguments_json="1}")),
        delta("", "", ToolCallDelta(0, arguments_json="}"), ToolCallDelta(1, "c1", "g")),
        ChoiceFinished(0, FinishReason.TOOL_CALLS),
    ]
    expected = [
        {"id": "c0", "function": {"index": 0, "name": "f", "arguments": {"x": {"y": 1}}}},
        {"id": "c1", "function": {"index": 1, "name": "g", "arguments": {}}},
    ]
    lines = write(*calls)
    assert [line["message"].get("tool_calls") for line in lines] == [[expected[0]], [expected[1]], None]
    whole = gather(*calls)
    assert whole["message"]["tool_calls"] == expected and whole["done_reason"] == "stop"


def test_call_without_arguments_is_told_when_the_next_begins() -> None:
    lines = write(delta("", "", ToolCallDelta(0, "c0", "f")), delta("", "", ToolCallDelta(1, "c1", "g", "{}")), ENDED)
    assert [call["function"]["name"] for call in lines[0]["message"]["tool_calls"]] == ["f", "g"]


def test_call_that_was_cut_off_becomes_text() -> None:
    cut = delta("", "", ToolCallDelta(0, "c0", "f", '{"x":'))
    lines = write(cut, CUT)
    assert [line["message"]["content"] for line in lines] == ['{"x":', ""] and lines[-1]["done_reason"] == "length"
    assert gather(cut, CUT)["message"]["content"] == '{"x":'


def test_logprobs_come_with_their_tokens() -> None:
    token = TokenLogprob(1, "a", b"a", -0.5, (TokenLogprob(2, "b", b"b", float("-inf")),))
    told = {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "b", "logprob": -9999.0, "bytes": [98]}],
    }
    event = ChoiceDelta(0, (1,), "", 0, (token,))
    assert write(event, ENDED)[0]["logprobs"] == [told]
    assert gather(event, ENDED)["logprobs"] == [told]
