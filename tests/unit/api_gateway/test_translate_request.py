"""OpenAI's request becomes the canonical one, or is refused by the name of its field."""

from typing import Any

import pytest
from pydantic import ValidationError

from paceline_api_gateway.protocols.openai.schema_chat import ChatCompletionRequest
from paceline_api_gateway.protocols.openai.translate_request import to_generate_request
from paceline_services.domain.generation import GenerateRequest, Message, OutputFormat, Reasoning
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


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, OutputFormat(json_schema='{"type":"object"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}},
            OutputFormat(json_schema='{"type":"array"}'),
        ),
        ({"guided_json": {"type": "null"}}, OutputFormat(json_schema='{"type":"null"}')),
        ({"guided_json": '{"type": "null"}'}, OutputFormat(json_schema='{"type":"null"}')),
        ({"guided_regex": "[a-z]+"}, OutputFormat(regex="[a-z]+")),
        ({"guided_choice": ["a.b", "(c)", "x-y z"]}, OutputFormat(regex=r"a\.b|\(c\)|x-y z")),
        ({"structured_outputs": {"json": {"type": "null"}}}, OutputFormat(json_schema='{"type":"null"}')),
        ({"structured_outputs": {"regex": "a|b"}}, OutputFormat(regex="a|b")),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, OutputFormat(regex="yes|no")),
    ],
)
def test_every_way_to_ask_for_a_form_is_understood(fields: dict[str, Any], sent: OutputFormat | None) -> None:
    assert translate(**fields).output_format == sent


def test_properties_keep_their_order() -> None:
    schema = {"type": "object", "properties": {"z": {}, "a": {}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    sent = translate(response_format=wanted).output_format
    assert sent is not None and sent.json_schema == '{"type":"object","properties":{"z":{},"a":{}}}'


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"reasoning_effort": "none"}, Reasoning(is_enabled=False)),
        ({"reasoning_effort": "minimal"}, Reasoning(is_enabled=True, effort="low")),
        ({"reasoning_effort": "high"}, Reasoning(is_enabled=True, effort="high")),
        ({"chat_template_kwargs": {"enable_thinking": False}}, Reasoning(is_enabled=False)),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low"}, Reasoning(True, "low")),
        ({"chat_template_kwargs": {}}, None),
        ({}, None),
    ],
)
def test_thinking_is_asked_for_in_openai_and_vllm_words(fields: dict[str, Any], sent: Reasoning | None) -> None:
    assert translate(**fields).reasoning == sent


def test_answer_goes_on_with_the_last_message_when_asked_to() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    request = translate(messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert request.conversation is not None and request.conversation.continue_final_message
    plain = translate(messages=messages, add_generation_prompt=True)
    assert plain.conversation is not None and not plain.conversation.continue_final_message


def test_what_changes_no_answer_is_taken() -> None:
    harmless: dict[str, Any] = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "flex",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "verbosity": "medium",
        "prediction": {"type": "content", "content": "x"},
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "audio": None,
        "stop_token_ids": [],
        "skip_special_tokens": True,
        "surprise": {"deep": [1]},
    }
    assert translate(**harmless) == translate()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": [1]}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_grammar": "root ::= x"}, "guided_grammar"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"verbosity": "low"}, "verbosity"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        (
            {
                "messages": [{"role": "assistant", "content": "a"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "continue_final_message",
        ),
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
        {"logprobs": True, "top_logprobs": 21},
        {"reasoning_effort": "enormous"},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
        {"chat_template_kwargs": {"add_vision_id": True}},
        {"structured_outputs": {"grammar": "x"}},
        {"logit_bias": {"1": 101}},
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
    ],
)
def test_wrong_types_and_ranges_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        translate(**fields)
