"""OpenAI's request becomes the canonical one, or is refused by the name of its field."""

from typing import Any

import pytest
from pydantic import ValidationError

from paceline_api_gateway.protocols.openai.schema import ChatCompletionRequest
from paceline_api_gateway.protocols.openai.translate import to_generate_request
from paceline_services.domain.generation import GenerateRequest, Message, ToolCall
from paceline_services.errors import InvalidRequestError


def translate(**fields: Any) -> GenerateRequest:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]} | fields
    return to_generate_request(ChatCompletionRequest.model_validate(body))


def test_absent_fields_get_openai_defaults() -> None:
    request = translate()
    assert (request.model_id, request.num_choices) == ("demo", 1)
    assert request.sampling.temperature == 1.0 and request.sampling.top_p is None and request.sampling.seed is None
    assert request.limits.max_tokens == 0 and request.limits.stop == () and not request.limits.ignore_eos
    assert not request.logprobs and request.num_top_logprobs == 0


def test_null_means_absent() -> None:
    assert translate(temperature=None, n=None, stop=None, seed=None, tools=None, max_tokens=None) == translate()


def test_temperature_zero_is_greedy_and_not_the_default() -> None:
    assert translate(temperature=0).sampling.temperature == 0.0


@pytest.mark.parametrize(("seed", "sent"), [(0, 0), (7, 7), (-1, 2**64 - 1), (2**64 + 3, 3)])
def test_any_whole_number_is_a_seed(seed: int, sent: int) -> None:
    assert translate(seed=seed).sampling.seed == sent


def test_sampling_fields_are_passed_on() -> None:
    sampling = translate(
        top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1, presence_penalty=-1, frequency_penalty=2
    ).sampling
    assert (sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (0.9, 5, 0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-1, 2)


def test_top_k_minus_one_is_off() -> None:
    assert translate(top_k=-1).sampling.top_k == 0


def test_logit_bias_keys_become_token_ids() -> None:
    assert translate(logit_bias={"50256": -100, "7": 1.5}).sampling.logit_bias == {50256: -100, 7: 1.5}


@pytest.mark.parametrize(("stop", "sent"), [("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_is_a_text_or_several(stop: object, sent: tuple[str, ...]) -> None:
    assert translate(stop=stop).limits.stop == sent


def test_max_completion_tokens_goes_before_max_tokens() -> None:
    assert translate(max_tokens=5).limits.max_tokens == 5
    assert translate(max_tokens=5, max_completion_tokens=9).limits.max_tokens == 9


def test_ignore_eos_is_understood() -> None:
    assert translate(ignore_eos=True).limits.ignore_eos


def test_developer_speaks_as_system_and_text_parts_follow_each_other() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    request = translate(messages=[{"role": "developer", "content": "Be kind"}, {"role": "user", "content": parts}])
    assert request.conversation is not None
    assert request.conversation.messages == (Message("system", "Be kind"), Message("user", "one two"))


def test_tool_calls_and_their_answers_are_passed_on() -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    request = translate(
        messages=[
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2", "tool_call_id": "call-1"},
        ]
    )
    assert request.conversation is not None
    assert request.conversation.messages == (
        Message("assistant", "", tool_calls=(ToolCall("call-1", "f", '{"x":1}'),)),
        Message("tool", "2", tool_call_id="call-1"),
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"model": "../etc"}, "model"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        translate(**fields)
    assert caught.value.facts["param"] == param


def test_text_as_response_format_and_empty_tools_are_fine() -> None:
    assert translate(response_format={"type": "text"}, tools=[], tool_choice="none", modalities=["text"]) == translate()


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "1"},
        {"temperature": float("nan")},
        {"temperature": 2.1},
        {"n": 17},
        {"n": True},
        {"max_tokens": 5.0},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 21},
        {"stream_options": {"include_usage": True}},
        {"logit_bias": {"1": 101}},
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
    ],
)
def test_wrong_types_and_ranges_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        translate(**fields)
