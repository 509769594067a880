"""Events become OpenAI's chunks and bodies; errors become OpenAI's errors."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_api_gateway.faults import Fault, to_fault
from paceline_api_gateway.protocols.openai.errors import write_fault
from paceline_api_gateway.protocols.openai.translate import (
    ChunkWriter,
    Envelope,
    to_logprob,
    to_usage,
    write_event,
)
from paceline_services.domain.generation import ChoiceDelta, GenerationCompleted, TokenLogprob
from paceline_services.errors import (
    ContextLengthError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PacelineError,
    UnavailableError,
)

ENVELOPE = Envelope("chatcmpl-1", 1700000000, "demo")


def test_chunk_repeats_id_time_and_model() -> None:
    chunk = ENVELOPE.chunk([ENVELOPE.role_choice(2)])
    assert chunk == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "demo",
        "choices": [
            {"index": 2, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ],
    }


def test_usage_is_null_in_chunks_only_when_it_was_asked_for() -> None:
    assert "usage" not in ENVELOPE.chunk([])
    assert ENVELOPE.chunk([], has_usage=True)["usage"] is None


def test_delta_has_text_and_token_ids_only_when_asked_for() -> None:
    delta = ChoiceDelta(1, (5, 6), "ab", 0)
    assert "token_ids" not in ENVELOPE.delta_choice(delta)
    with_ids = Envelope("chatcmpl-1", 0, "demo", with_token_ids=True).delta_choice(delta)
    assert (with_ids["index"], with_ids["delta"], with_ids["token_ids"]) == (1, {"content": "ab"}, [5, 6])


def test_last_chunk_of_a_choice_has_an_empty_delta() -> None:
    choice = ENVELOPE.finish_choice(0, "length")
    assert (choice["delta"], choice["finish_reason"]) == ({}, "length")


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
    }


def test_usage_tells_guessed_tokens_only_when_some_were_guessed() -> None:
    usage = to_usage(GenerationCompleted(7, 5, num_drafted_tokens=8, num_accepted_tokens=3))
    assert usage["completion_tokens_details"] == {"accepted_prediction_tokens": 3, "rejected_prediction_tokens": 5}


@pytest.mark.parametrize("has_usage", [False, True])
@given(deltas=st.lists(st.builds(ChoiceDelta, st.integers(0, 3), st.just((5,)), st.text(), st.just(0)), max_size=5))
def test_deltas_written_ahead_are_the_same_as_whole_chunks(has_usage: bool, deltas: list[ChoiceDelta]) -> None:
    writer = ChunkWriter(ENVELOPE, has_usage=has_usage)
    for delta in deltas:
        assert writer.write_delta(delta) == writer.write([ENVELOPE.delta_choice(delta)])


def test_delta_with_logprobs_or_token_ids_is_written_whole() -> None:
    logprob = TokenLogprob(9, "a", b"a", -1.25)
    chunk = ChunkWriter(ENVELOPE, has_usage=False).write_delta(ChoiceDelta(0, (9,), "a", 0, (logprob,)))
    body = json.loads(chunk.removeprefix("data: "))
    assert body["choices"][0]["logprobs"]["content"][0]["token"] == "a"
    with_ids = Envelope("chatcmpl-1", 0, "demo", with_token_ids=True)
    chunk = ChunkWriter(with_ids, has_usage=False).write_delta(ChoiceDelta(0, (9,), "a", 0))
    assert json.loads(chunk.removeprefix("data: "))["choices"][0]["token_ids"] == [9]


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
