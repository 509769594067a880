"""Completions: prompts become canonical requests, and their answers one, with log probabilities in the older shape."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from paceline_api_gateway.generation.answer import Answer
from paceline_api_gateway.protocols.openai.completion_events import (
    CompletionForm,
    CompletionWriter,
    LegacyLogprobs,
    to_response,
)
from paceline_api_gateway.protocols.openai.schema import CompletionRequest
from paceline_api_gateway.protocols.openai.translate_completions import JoinedAnswers, to_generate_requests
from paceline_api_gateway.protocols.openai.wire import Envelope
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    OutputFormat,
    PromptEchoed,
    TokenLogprob,
)
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import ModelId, RequestId

ENVELOPE = Envelope("cmpl-1", 1700000000, "demo", "fp_1")


def translate(**fields: Any) -> list[GenerateRequest]:
    return to_generate_requests(CompletionRequest.model_validate({"model": "demo", "prompt": "Hi"} | fields))


def test_absent_fields_get_openai_defaults() -> None:
    (request,) = translate()
    assert (request.text, request.limits.max_tokens, request.num_choices) == ("Hi", 16, 1)
    assert request.sampling.temperature == 1.0 and not request.logprobs and not request.echo


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_prompts_come_in_four_forms(prompt: object, sent: list[object]) -> None:
    assert [
        one.text if one.text is not None else one.token_ids and one.token_ids.ids for one in translate(prompt=prompt)
    ] == sent


@pytest.mark.parametrize(
    "prompt", [None, [], [[]], [1, "a"], [[1], "a"], [True], [-1], [2**32], [1.0], {"a": 1}, [[1], []], ["a"] * 2049]
)
def test_other_prompts_are_refused(prompt: object) -> None:
    with pytest.raises(ValidationError) as caught:
        translate(prompt=prompt)
    assert caught.value.errors()[0]["loc"][0] == "prompt"


def test_log_probabilities_are_asked_for_by_number() -> None:
    (none,), (zero,), (three,) = translate(), translate(logprobs=0), translate(logprobs=3)
    assert not none.logprobs
    assert (zero.logprobs, zero.num_top_logprobs) == (True, 0)
    assert (three.logprobs, three.num_top_logprobs) == (True, 3)


def test_prompt_alone_costs_one_token() -> None:
    (request,) = translate(max_tokens=0, echo=True)
    assert (request.limits.max_tokens, request.echo) == (1, True)


def test_form_of_the_answer_is_vllms() -> None:
    assert translate(guided_regex="a+")[0].output_format == OutputFormat(regex="a+")


def test_best_of_n_of_n_and_empty_suffix_are_fine() -> None:
    assert translate(n=2, best_of=2, suffix="") == translate(n=2)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"use_beam_search": True}, "use_beam_search"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        translate(**fields)
    assert caught.value.facts["param"] == param


def logprob(text: str, value: float = -1.0, *top: str) -> TokenLogprob:
    return TokenLogprob(1, text, text.encode(), value, tuple(TokenLogprob(1, one, one.encode(), -2.0) for one in top))


def join(
    requests: Sequence[GenerateRequest], *events: tuple[int, GenerationEvent], has_answer: bool = True
) -> list[GenerationEvent]:
    joined = JoinedAnswers(requests, has_answer=has_answer)
    return [one for number, event in events for one in joined.take(number, event)]


TWO = translate(prompt=["a", "b"], n=2)
STOPPED = FinishReason.STOP


def test_choices_of_prompts_follow_one_another() -> None:
    started = GenerationStarted(RequestId("r"), 3, 0)
    assert join(
        TWO,
        (1, started),
        (0, started),
        (1, ChoiceDelta(1, (5,), "x", 0)),
        (0, ChoiceDelta(1, (6,), "y", 0)),
        (1, ChoiceFinished(0, STOPPED)),
    ) == [
        started,
        ChoiceDelta(3, (5,), "x", 0),
        ChoiceDelta(1, (6,), "y", 0),
        ChoiceFinished(2, STOPPED),
    ]


def test_usage_is_that_of_all_prompts_and_comes_last() -> None:
    events = join(TWO, (1, GenerationCompleted(3, 5, 1)), (0, GenerationCompleted(4, 6, 2)))
    assert events == [GenerationCompleted(7, 11, 3)]


def test_echoed_prompt_begins_each_of_its_choices() -> None:
    told = PromptEchoed("<s>b", (logprob("<s>", 0.0, "x"), logprob("b")))
    first, second = join(TWO, (1, told))
    assert isinstance(first, ChoiceDelta) and isinstance(second, ChoiceDelta)
    assert (first.choice_index, second.choice_index) == (2, 3)
    assert first.text == second.text == "b"  # the client's own text
    assert math.isnan(first.logprobs[0].logprob) and first.logprobs[1] == logprob("b")
    of_tokens = join(translate(prompt=[1, 2]), (0, told))[0]
    assert isinstance(of_tokens, ChoiceDelta) and of_tokens.text == "<s>b"


def test_token_beyond_the_prompt_is_dropped_where_only_the_prompt_was_asked_for() -> None:
    events = join(
        translate(max_tokens=0, echo=True),
        (0, PromptEchoed("Hi")),
        (0, ChoiceDelta(0, (5,), "x", 0)),
        (0, ChoiceFinished(0, STOPPED, num_tokens=1)),
        (0, GenerationCompleted(1, 1)),
        has_answer=False,
    )
    assert events == [
        ChoiceDelta(0, (), "Hi", 0),
        ChoiceFinished(0, FinishReason.LENGTH, num_tokens=1),
        GenerationCompleted(1, 0),
    ]


def test_log_probabilities_have_the_older_shape() -> None:
    first = TokenLogprob(1, "a", b"a", math.nan)
    assert LegacyLogprobs().describe([first, logprob("b", -0.5, "b", "c"), logprob("d", -math.inf, "e")]) == {
        "tokens": ["a", "b", "d"],
        "token_logprobs": [None, -0.5, -9999.0],
        "top_logprobs": [None, {"b": -0.5, "c": -2.0}, {"e": -2.0, "d": -9999.0}],
        "text_offset": [0, 1, 2],
    }


def test_parts_of_a_character_are_named_by_their_bytes_and_counted_once() -> None:
    parts = [TokenLogprob(1, "\ufffd", b"\xc3", -1.0), TokenLogprob(2, "\ufffd", b"\xa4", -1.0), logprob("b")]
    described = LegacyLogprobs().describe(parts)
    assert described["tokens"] == ["bytes:\\xc3", "bytes:\\xa4", "b"]
    assert described["text_offset"] == [0, 0, 1]


def read(text: str) -> list[Any]:
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


def test_chunk_has_openai_shape() -> None:
    writer = CompletionWriter(ENVELOPE, CompletionForm(has_usage=True))
    chunk, end = read(writer.write_delta(ChoiceDelta(0, (1,), "a", 0)) + writer.finish(ChoiceFinished(0, STOPPED)))
    assert chunk == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1700000000,
        "model": "demo",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}],
        "usage": None,
    }
    assert (end["choices"][0]["text"], end["choices"][0]["finish_reason"]) == ("", "stop")
    assert writer.begin() == "" and writer.write_delta(ChoiceDelta(0, (1,), "", 0)) == ""


def test_offsets_go_on_from_chunk_to_chunk() -> None:
    writer = CompletionWriter(ENVELOPE, CompletionForm(has_logprobs=True))
    deltas = [ChoiceDelta(0, (1,), text, 0, (logprob(text),)) for text in ("ab", "c")]
    offsets = [
        one["choices"][0]["logprobs"]["text_offset"] for delta in deltas for one in read(writer.write_delta(delta))
    ]
    assert offsets == [[0], [2]]


@given(st.lists(st.text(min_size=1), max_size=6))
def test_stream_and_whole_answer_are_the_same(texts: list[str]) -> None:
    form = CompletionForm(has_logprobs=True, has_token_ids=True)
    writer, answer = CompletionWriter(ENVELOPE, form), Answer.of(1)
    deltas = [ChoiceDelta(0, (n,), text, n, (logprob(text),)) for n, text in enumerate(texts)]
    events: list[GenerationEvent] = [*deltas, ChoiceFinished(0, STOPPED), GenerationCompleted(1, len(texts))]
    for event in events:
        answer.add(event)
    (whole,) = to_response(answer, ENVELOPE, form)["choices"]
    parts = [one["choices"][0] for delta in deltas for one in read(writer.write_delta(delta))]
    assert "".join(one["text"] for one in parts) == whole["text"]
    assert [token for one in parts for token in one["token_ids"]] == whole["token_ids"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [entry for one in parts for entry in one["logprobs"][name]] == whole["logprobs"][name]


def test_model_is_checked_as_in_chats() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        translate(model="../etc")
    assert caught.value.facts["param"] == "model"
    assert translate()[0].model_id == ModelId("demo")
