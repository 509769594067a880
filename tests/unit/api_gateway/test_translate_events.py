"""Events become OpenAI's chunks and bodies; errors become OpenAI's errors."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_api_gateway.faults import Fault, to_fault
from paceline_api_gateway.protocols.openai.content_logprobs import ContentLogprobs
from paceline_api_gateway.protocols.openai.errors import rename_fields, write_fault
from paceline_api_gateway.protocols.openai.translate_events import ChatForm, ChunkWriter, WholeAnswer, to_response
from paceline_api_gateway.protocols.openai.wire import Envelope, to_logprob, to_usage, write_event
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerationCompleted,
    GenerationEvent,
    TokenLogprob,
    ToolCallDelta,
)
from paceline_services.errors import (
    ContextLengthError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PacelineError,
    UnavailableError,
)

ENVELOPE = Envelope("chatcmpl-1", 1700000000, "demo", "fp_1")
CALL = (
    ChoiceDelta(0, (1,), "", 0, tool_calls=(ToolCallDelta(0, "call_1", "f", '{"a"'),)),
    ChoiceDelta(0, (2,), "", 1, tool_calls=(ToolCallDelta(0, arguments_json=":1}"), ToolCallDelta(1, "call_2", "g"))),
)
END = ChoiceFinished(0, FinishReason.TOOL_CALLS)


def read(text: str) -> list[Any]:
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


def write_all(form: ChatForm, *events: ChoiceDelta | ChoiceFinished) -> list[Any]:
    """Choices of the chunks."""
    writer = ChunkWriter(ENVELOPE, form)
    texts = [writer.finish(one) if isinstance(one, ChoiceFinished) else writer.write_delta(one) for one in events]
    return [chunk["choices"][0] for chunk in read("".join(texts))]


def answer_whole(form: ChatForm, *events: GenerationEvent) -> Any:
    whole = WholeAnswer(form)
    for event in (*events, GenerationCompleted(7, 5)):
        whole.take(event)
    return to_response(whole, ENVELOPE, form)["choices"][0]


def make_logprob(text: str) -> TokenLogprob:
    return TokenLogprob(9, text, text.encode(), -1.0)


def test_role_comes_first_in_every_choice() -> None:
    first, second = read(ChunkWriter(ENVELOPE, ChatForm(num_choices=2)).begin())
    delta = {"role": "assistant", "content": "", "refusal": None}
    assert first == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "demo",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}],
    }
    assert second["choices"][0]["index"] == 1


def test_usage_is_null_in_chunks_only_when_it_was_asked_for() -> None:
    (plain,) = read(ChunkWriter(ENVELOPE, ChatForm()).begin())
    (asked,) = read(ChunkWriter(ENVELOPE, ChatForm(has_usage=True)).begin())
    assert "usage" not in plain and asked["usage"] is None


def test_usage_has_a_chunk_of_its_own_only_when_it_was_asked_for() -> None:
    completed = GenerationCompleted(7, 5)
    assert ChunkWriter(ENVELOPE, ChatForm()).complete(completed) == ""
    (chunk,) = read(ChunkWriter(ENVELOPE, ChatForm(has_usage=True)).complete(completed))
    assert chunk["choices"] == [] and chunk["usage"]["total_tokens"] == 12


def test_delta_has_text_and_token_ids_only_when_asked_for() -> None:
    delta = ChoiceDelta(1, (5, 6), "ab", 0)
    (plain,) = write_all(ChatForm(num_choices=2), delta)
    (with_ids,) = write_all(ChatForm(num_choices=2, has_token_ids=True), delta)
    assert "token_ids" not in plain
    assert (with_ids["index"], with_ids["delta"], with_ids["token_ids"]) == (1, {"content": "ab"}, [5, 6])


def test_last_chunk_of_a_choice_has_an_empty_delta() -> None:
    (choice,) = write_all(ChatForm(), ChoiceFinished(0, FinishReason.LENGTH))
    assert (choice["delta"], choice["finish_reason"]) == ({}, "length")


def test_delta_without_anything_to_tell_is_no_chunk() -> None:
    assert write_all(ChatForm(), ChoiceDelta(0, (5,), "", 0)) == []
    assert len(write_all(ChatForm(has_token_ids=True), ChoiceDelta(0, (5,), "", 0))) == 1


def test_call_has_its_name_first_and_then_its_arguments() -> None:
    *calls, end = write_all(ChatForm(), *CALL, END)
    assert [one["delta"]["tool_calls"] for one in calls] == [
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a"'}}],
        [{"index": 0, "function": {"arguments": ":1}"}}],
        [{"index": 1, "id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}}],
    ]
    assert end["finish_reason"] == "tool_calls"


def test_legacy_call_is_told_as_function_call() -> None:
    form = ChatForm(is_legacy=True)
    *calls, end = write_all(form, CALL[0], END)
    assert [one["delta"] for one in calls] == [
        {"function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": '{"a"'}},
    ]
    assert end["finish_reason"] == "function_call"
    whole = answer_whole(form, CALL[0], END)
    assert whole["message"]["function_call"] == {"name": "f", "arguments": '{"a"'}
    assert whole["message"]["content"] is None and whole["finish_reason"] == "function_call"


def test_message_that_only_calls_has_no_content() -> None:
    whole = answer_whole(ChatForm(), *CALL, END)
    assert whole["message"]["content"] is None and whole["finish_reason"] == "tool_calls"
    assert whole["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]


def test_empty_answer_has_empty_content() -> None:
    message = answer_whole(ChatForm(), ChoiceFinished(0, FinishReason.STOP))["message"]
    assert message == {"role": "assistant", "content": "", "refusal": None}


def test_answer_that_may_be_a_call_begins_without_content() -> None:
    (chunk,) = read(ChunkWriter(ENVELOPE, ChatForm(may_call=True)).begin())
    assert chunk["choices"][0]["delta"]["content"] is None


def test_thinking_is_told_apart_from_content() -> None:
    events = [ChoiceDelta(0, (1,), "", 0, reasoning_text="hm"), ChoiceDelta(0, (2,), "so", 1, reasoning_text=".")]
    streamed = [one["delta"] for one in write_all(ChatForm(), *events)]
    assert streamed == [{"reasoning_content": "hm"}, {"reasoning_content": "."}, {"content": "so"}]
    message = answer_whole(ChatForm(), *events, ChoiceFinished(0, FinishReason.STOP))["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm.", "so")


def test_log_probabilities_are_those_of_the_content() -> None:
    def delta(number: int, token: str, text: str = "", **rest: Any) -> ChoiceDelta:
        return ChoiceDelta(0, (number,), text, number, (make_logprob(token),), **rest)

    events = [
        delta(0, "hm", reasoning_text="hm"),
        delta(1, "</think>"),
        delta(2, "Hel"),
        delta(3, "lo", "Hello"),
        delta(4, "<call>"),
        delta(5, "x", tool_calls=(ToolCallDelta(0, "c", "f", "{}"),)),
        delta(6, "<end>"),
    ]
    form = ChatForm(has_logprobs=True)
    told = [one["logprobs"] for one in write_all(form, *events, END) if one["logprobs"]]
    assert [one["token"] for some in told for one in some["content"]] == ["Hel", "lo"]
    whole = answer_whole(form, *events, END)
    assert [one["token"] for one in whole["logprobs"]["content"]] == ["Hel", "lo"]


def test_end_of_the_sequence_has_a_log_probability_of_the_content() -> None:
    events: list[ChoiceDelta | ChoiceFinished] = [
        ChoiceDelta(0, (1,), "a", 0, (make_logprob("a"),)),
        ChoiceDelta(0, (2,), "", 1, (make_logprob("<end>"),)),
        ChoiceFinished(0, FinishReason.STOP),
    ]
    chunks = write_all(ChatForm(has_logprobs=True), *events)
    assert [len(one["logprobs"]["content"]) for one in chunks if one["logprobs"]] == [1, 1]
    assert chunks[-1]["finish_reason"] == "stop" and chunks[-1]["logprobs"] is None


@given(st.lists(st.text(max_size=3), max_size=8))
def test_plain_text_keeps_every_log_probability(texts: list[str]) -> None:
    content = ContentLogprobs()
    told = []
    for number, text in enumerate(texts):
        told.extend(content.take(ChoiceDelta(0, (number,), text, number, (make_logprob(text),))))
    assert told + content.end() == [make_logprob(text) for text in texts]


def test_logprob_carries_the_bytes_of_half_a_character() -> None:
    half = TokenLogprob(9, "\ufffd", b"\xf0\x9f", -1.25, (TokenLogprob(9, "\ufffd", b"\xf0\x9f", -1.25),))
    assert to_logprob(half) == {
        "token": "\ufffd",
        "logprob": -1.25,
        "bytes": [0xF0, 0x9F],
        "top_logprobs": [{"token": "\ufffd", "logprob": -1.25, "bytes": [0xF0, 0x9F]}],
    }


def test_usage_adds_up() -> None:
    assert to_usage(GenerationCompleted(7, 5, num_cached_tokens=3)) == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_usage_tells_guessed_tokens_only_when_some_were_guessed() -> None:
    usage = to_usage(GenerationCompleted(7, 5, num_drafted_tokens=8, num_accepted_tokens=3))
    told = {"reasoning_tokens": 0, "accepted_prediction_tokens": 3, "rejected_prediction_tokens": 5}
    assert usage["completion_tokens_details"] == told


@pytest.mark.parametrize("has_usage", [False, True])
@given(texts=st.lists(st.tuples(st.integers(0, 3), st.text(min_size=1), st.text()), max_size=5))
def test_deltas_written_ahead_are_the_same_as_whole_chunks(has_usage: bool, texts: list[tuple[int, str, str]]) -> None:
    fast = ChunkWriter(ENVELOPE, ChatForm(num_choices=4, has_usage=has_usage))
    whole = ChunkWriter(ENVELOPE, ChatForm(num_choices=4, has_usage=has_usage, has_logprobs=True))
    for index, text, thought in texts:
        delta = ChoiceDelta(index, (5,), text, 0, reasoning_text=thought)
        assert fast.write_delta(delta) == whole.write_delta(delta)


def test_event_is_one_line_whatever_its_text() -> None:
    assert write_event({"a": "x\n\ndata: y"}) == 'data: {"a":"x\\n\\ndata: y"}\n\n'


def test_errors_have_openai_types_and_codes() -> None:
    expected: list[tuple[PacelineError, str, str | None]] = [
        (ContextLengthError("too long"), "invalid_request_error", "context_length_exceeded"),
        (NotFoundError("no", reason="MODEL_NOT_FOUND"), "invalid_request_error", "model_not_found"),
        (OverloadedError("full", reason="QUEUE_FULL"), "rate_limit_error", "rate_limit_exceeded"),
        (OverloadedError("too many", reason="CLIENT_TOO_BUSY"), "rate_limit_error", "rate_limit_exceeded"),
        (InvalidRequestError("never", reason="KV_CACHE_TOO_SMALL"), "invalid_request_error", "context_length_exceeded"),
        (UnavailableError("loading"), "server_error", None),
        (InternalError("defect"), "server_error", None),
    ]
    for error, kind, code in expected:
        body = write_fault(to_fault(error))["error"]
        assert (body["message"], body["type"], body["code"]) == (error.message, kind, code)


def test_error_names_its_parameter() -> None:
    assert write_fault(to_fault(InvalidRequestError("odd", param="stop")))["error"]["param"] == "stop"
    assert write_fault(Fault(404, "gone"))["error"]["param"] is None


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("output_format.json_schema", "response_format"),
        ("output_format.regex", "structured_outputs.regex"),
        ("output_format", "response_format"),
        ("tools.2.parameters", "tools[2].function.parameters"),
        ("tools", "tools"),
    ],
)
def test_what_a_head_refuses_is_named_as_openai_names_it(path: str, param: str) -> None:
    refused = InvalidRequestError(f"{path} at /a: no", reason="INVALID_OUTPUT_FORMAT", path=path)
    body = write_fault(to_fault(rename_fields(refused)))["error"]
    assert (body["param"], body["message"]) == (param, f"{param} at /a: no")


def test_what_says_nothing_of_a_field_stays_as_it_is() -> None:
    for error in (OverloadedError("full"), InvalidRequestError("odd", param="stop"), InvalidRequestError("odd")):
        assert rename_fields(error) is error
    enforced = InvalidRequestError("no", reason="TOOL_CHOICE_NOT_ENFORCEABLE")
    assert rename_fields(enforced).facts["param"] == "tool_choice"
