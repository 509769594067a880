"""Ollama's request becomes the canonical one, or is refused by the path of its field; its names find our models."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from paceline_api_gateway.protocols.ollama.names import find_model, split_tag, write_name
from paceline_api_gateway.protocols.ollama.schema import ChatBody, GenerateBody
from paceline_api_gateway.protocols.ollama.translate_request import (
    asks_nothing,
    asks_unload,
    check_supported,
    to_chat_request,
    to_generate_request,
)
from paceline_services.domain.generation import (
    Conversation,
    GenerateRequest,
    Message,
    OutputFormat,
    Reasoning,
    Sampling,
    ToolCall,
    ToolDefinition,
)
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import ModelId

DEMO = ModelId("demo")
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
TEXT = st.text(min_size=1, max_size=8)


def chat(**fields: Any) -> GenerateRequest:
    return to_chat_request(ChatBody.model_validate({"model": "demo", "messages": HELLO} | fields), DEMO)


def generate(**fields: Any) -> GenerateRequest:
    body = GenerateBody.model_validate({"model": "demo", "prompt": "Hi"} | fields)
    check_supported(body)
    return to_generate_request(body, DEMO)


def converse(*messages: dict[str, Any], **fields: Any) -> Conversation:
    conversation = chat(messages=list(messages), **fields).conversation
    assert conversation is not None
    return conversation


def test_absent_options_are_ollamas_own() -> None:
    assert chat().sampling == Sampling(temperature=0.8, top_p=0.9, top_k=40)
    assert chat().limits.max_tokens == 0 and chat().reasoning is None and chat().output_format is None
    assert chat(options={}) == chat() == chat(options=None, format="", think=None, tools=[])


def test_options_are_passed_on() -> None:
    sampling = chat(
        options={
            "temperature": 0,
            "top_k": 0,
            "top_p": 1.5,
            "min_p": 0.1,
            "seed": 7,
            "repeat_penalty": 1.1,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
        }
    ).sampling
    assert sampling == Sampling(0.0, 1.0, 0, 0.1, 1.1, 0.5, -0.5, seed=7)


@pytest.mark.parametrize(("asked", "sent"), [(5, 5), (5.0, 5), (-1, 0), (-2, 0), (0, 0), (None, 0)])
def test_num_predict_below_one_is_no_limit(asked: object, sent: int) -> None:
    assert chat(options={"num_predict": asked}).limits.max_tokens == sent


@pytest.mark.parametrize(("asked", "sent"), [(0, 0), (42, 42), (-1, None), (-2, 2**64 - 2)])
def test_seed_minus_one_is_random(asked: int, sent: int | None) -> None:
    assert chat(options={"seed": asked}).sampling.seed == sent


def test_options_of_loading_and_unknown_ones_change_nothing() -> None:
    options = {"num_ctx": 4096, "num_gpu": 1, "num_thread": 4, "use_mmap": True, "mirostat": 2, "num_keep": 4, "x": 1}
    assert chat(options=options, keep_alive="5m", truncate=True, surprise=1) == chat()


@pytest.mark.parametrize(
    ("think", "sent"),
    [
        (True, Reasoning(True)),
        (False, Reasoning(False)),
        ("low", Reasoning(True, "low")),
        ("max", Reasoning(True, "high")),
    ],
)
def test_think_becomes_reasoning(think: object, sent: Reasoning) -> None:
    assert chat(think=think).reasoning == generate(think=think).reasoning == sent


def test_format_is_json_or_a_schema() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert chat(format="json").output_format == OutputFormat(json_schema='{"type": "object"}')
    wanted = generate(format=schema).output_format
    assert wanted is not None and wanted.json_schema == json.dumps(schema)


def test_logprobs_are_asked_for() -> None:
    request = chat(logprobs=True, top_logprobs=3)
    assert request.logprobs and request.num_top_logprobs == 3
    assert chat(top_logprobs=3).num_top_logprobs == 0


def test_tools_calls_and_results_are_passed_on() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    conversation = converse(
        *HELLO,
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_name": "f"},
        tools=[tool],
    )
    assert conversation.tools == (ToolDefinition("f", "d", '{"type": "object"}'),)
    assert conversation.messages[1:] == (
        Message("assistant", "", tool_calls=(ToolCall("call_1_0", "f", '{"x": 1}'),), reasoning_text="Hm."),
        Message("tool", "1", "f", tool_call_id="call_1_0"),
    )


def test_results_find_their_calls_by_id_by_name_or_in_order() -> None:
    calls = [{"function": {"name": name}} for name in ("f", "g", "g")] + [{"id": "mine", "function": {"name": "h"}}]
    results = [{"tool_name": "g"}, {}, {"tool_call_id": "mine"}, {"tool_name": "g"}, {"tool_name": "k"}]
    messages = [{"role": "tool", "content": "r"} | one for one in results]
    sent = converse(*HELLO, {"role": "assistant", "tool_calls": calls}, *messages).messages[2:]
    assert [(one.name, one.tool_call_id) for one in sent] == [
        ("g", "call_1_1"),
        ("f", "call_1_0"),
        ("h", "mine"),
        ("g", "call_1_2"),
        ("k", ""),
    ]


def test_answer_goes_on_with_an_assistants_last_text() -> None:
    assert converse(*HELLO, {"role": "assistant", "content": "Well"}).continue_final_message
    assert not converse(*HELLO).continue_final_message


def test_prompt_is_a_users_message_or_raw_text() -> None:
    assert generate(system="S").conversation == Conversation((Message("system", "S"), Message("user", "Hi")))
    raw = generate(raw=True)
    assert raw.text == "Hi" and raw.conversation is None


def test_body_without_prompt_asks_to_load_or_unload() -> None:
    assert asks_nothing(ChatBody(model="demo")) and asks_nothing(GenerateBody(model="demo", prompt=""))
    assert not asks_nothing(GenerateBody(model="demo", prompt="Hi"))
    for wish, expected in [
        (0, True),
        ("0", True),
        ("0s", True),
        ("5m", False),
        (-1, False),
        (None, False),
        ("10s", False),
    ]:
        assert asks_unload(ChatBody(model="demo", keep_alive=wish)) is expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"template": "x"}, "template"),
        ({"context": [1]}, "context"),
        ({"images": ["x"]}, "images"),
        ({"raw": True, "system": "x"}, "raw"),
        ({"options": {"typical_p": 0.5}}, "options.typical_p"),
    ],
)
def test_what_a_prompt_cannot_have_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        generate(**fields)
    assert caught.value.facts["param"] == param and param in caught.value.message


def test_images_and_other_tools_are_refused_by_path() -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.images"):
        chat(messages=[{"role": "user", "content": "x", "images": ["aGk="]}])
    with pytest.raises(InvalidRequestError, match=r"tools\[0\]\.type"):
        chat(tools=[{"type": "web_search", "function": {"name": "f"}}])


@pytest.mark.parametrize(
    "fields",
    [
        {"options": {"temperature": "hot"}},
        {"options": {"temperature": 3}},
        {"options": {"num_predict": 1.5}},
        {"options": {"stop": "x"}},
        {"think": "hard"},
        {"format": "xml"},
        {"keep_alive": "soon"},
        {"top_logprobs": 21},
        {"messages": [{"role": "robot"}]},
        {"messages": "x"},
    ],
)
def test_wrong_types_and_ranges_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        chat(**fields)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("demo", "demo"),
        ("demo:latest", "demo"),
        ("DEMO:latest", "demo"),
        ("llama3.2:1b", "Llama3.2-1b"),
        ("hf.co/org/name", "org/name"),
        ("hf.co/org/name:latest", "org/name"),
        ("library/demo", "demo"),
        ("org/name", "org/name"),
        ("nope", "nope"),
        ("nope:7b", "nope-7b"),
        ("demo:7b", "demo-7b"),
    ],
)
def test_names_with_tags_and_hosts_find_models(name: str, found: str) -> None:
    assert find_model(name, [DEMO, ModelId("Llama3.2-1b"), ModelId("org/name")]) == found


@pytest.mark.parametrize("name", ["", "no model", "a//b", "x:"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="invalid model name"):
        find_model(name, [DEMO])


@given(st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,9}[a-z0-9])?(/[a-z0-9]{1,5})?", fullmatch=True))
@settings(deadline=None)
def test_listed_name_finds_its_model(name: str) -> None:
    assert find_model(write_name(name), [ModelId(name)]) == name
    assert split_tag(write_name(name))[1] == "latest"


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT, TEXT), min_size=1, max_size=5))
@settings(deadline=None)
def test_every_message_is_kept_in_order(messages: list[tuple[str, str, str]]) -> None:
    sent = converse(*({"role": role, "content": text, "thinking": thought} for role, text, thought in messages))
    assert [(one.role, one.content, one.reasoning_text) for one in sent.messages] == messages
