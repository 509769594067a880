"""Claude's request becomes the canonical one, or is refused by the path of its field."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from paceline_api_gateway.protocols.anthropic.schema import CountTokensRequest, MessagesRequest
from paceline_api_gateway.protocols.anthropic.translate_request import to_count_request, to_generate_request
from paceline_services.domain.generation import (
    Conversation,
    GenerateRequest,
    Message,
    OutputFormat,
    Reasoning,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
)
from paceline_services.errors import InvalidRequestError
from support.scripts_claude import WEATHER_TOOL

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
TEXT = st.text(min_size=1, max_size=8)


def translate(**fields: Any) -> GenerateRequest:
    body = {"model": "demo", "max_tokens": 2048, "messages": HELLO} | fields
    return to_generate_request(MessagesRequest.model_validate(body))


def converse(*turns: dict[str, Any], **fields: Any) -> Conversation:
    conversation = translate(messages=list(turns), **fields).conversation
    assert conversation is not None
    return conversation


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content, "cache_control": {"type": "ephemeral"}}


def call(name: str = "f", number: int = 1, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments}


def result(content: Any = None, number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": content} | fields


def test_absent_fields_get_claude_defaults() -> None:
    request = translate()
    assert request.sampling.temperature == 1.0 and request.sampling.top_p is None and request.sampling.top_k == 0
    assert request.limits.max_tokens == 2048 and request.limits.stop == ()
    assert request.conversation == Conversation((Message("user", "Hi"),))
    assert request.output_format is None and request.sampling.seed is None


def test_no_thinking_is_asked_of_the_model_unless_the_client_asks() -> None:
    assert translate().reasoning == Reasoning(is_enabled=False)
    assert translate(thinking={"type": "disabled"}).reasoning == Reasoning(is_enabled=False)


def test_thinking_becomes_reasoning() -> None:
    assert translate(thinking={"type": "enabled", "budget_tokens": 1024}).reasoning == Reasoning(True, "", 1024)
    adaptive = translate(thinking={"type": "adaptive"}, output_config={"effort": "max"})
    assert adaptive.reasoning == Reasoning(True, "high", 0)


def test_sampling_and_stops_are_passed_on() -> None:
    request = translate(temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["\n", "END"])
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.5, 0.9, 5)
    assert request.limits.stop == ("\n", "END")


def test_system_is_a_text_or_blocks() -> None:
    assert converse(*HELLO, system="Be kind").messages[0] == Message("system", "Be kind")
    assert converse(*HELLO, system=[text("Be kind"), text("Be brief")]).messages[0].content == "Be kind\nBe brief"
    assert converse(*HELLO, system="").messages == (Message("user", "Hi"),)


def test_system_turns_stay_where_they_are() -> None:
    turns = converse(*HELLO, {"role": "system", "content": "Now in French"}, *HELLO).messages
    assert [turn.role for turn in turns] == ["user", "system", "user"]


def test_turns_of_one_role_become_one() -> None:
    assert converse(*HELLO, user(text("there"))).messages == (Message("user", "Hi\n\nthere"),)


def test_results_of_tools_become_messages_before_the_text_beside_them() -> None:
    conversation = converse(
        *HELLO,
        assistant(text("I look."), call("f", 1, x=1), call("g", 2)),
        user(result("one", 1), result([text("two"), text("three")], 2), text("And now?")),
    )
    assert conversation.messages[1:] == (
        Message(
            "assistant", "I look.", tool_calls=(ToolCall("toolu_1", "f", '{"x": 1}'), ToolCall("toolu_2", "g", "{}"))
        ),
        Message("tool", "one", "f", tool_call_id="toolu_1"),
        Message("tool", "two\nthree", "g", tool_call_id="toolu_2"),
        Message("user", "And now?"),
    )


def test_result_without_content_is_empty_and_a_failed_one_says_so() -> None:
    assert converse(*HELLO, assistant(call()), user(result())).messages[-1].content == ""
    failed = converse(*HELLO, assistant(call()), user(result("no such city", is_error=True)))
    assert failed.messages[-1].content == "Error: no such city"


def test_thinking_in_the_past_is_kept_and_redacted_thinking_left_out() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "of-another-server"}
    turns = converse(*HELLO, assistant(thought, {"type": "redacted_thinking", "data": "x"}, text("42")), *HELLO)
    assert turns.messages[1] == Message("assistant", "42", reasoning_text="Hm.")


def test_answer_goes_on_with_an_assistants_last_turn() -> None:
    conversation = converse(*HELLO, {"role": "assistant", "content": "The best answer is ("})
    assert conversation.continue_final_message and conversation.messages[-1].content == "The best answer is ("
    assert not converse(*HELLO, {"role": "assistant", "content": ""}).continue_final_message
    assert not converse(*HELLO).continue_final_message


def test_tools_are_passed_on() -> None:
    tool = WEATHER_TOOL | {"strict": True, "type": "custom", "cache_control": {"type": "ephemeral"}}
    (sent,) = converse(*HELLO, tools=[tool]).tools
    assert (sent.name, sent.description, sent.is_strict) == ("get_weather", "The weather in a city, now", True)
    assert json.loads(sent.parameters_json) == WEATHER_TOOL["input_schema"]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (None, None),
        ({"type": "auto"}, ToolChoice(ToolChoiceMode.AUTO)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(ToolChoiceMode.AUTO, is_single=True)),
        ({"type": "any"}, ToolChoice(ToolChoiceMode.REQUIRED)),
        ({"type": "none"}, ToolChoice(ToolChoiceMode.NONE)),
        ({"type": "tool", "name": "get_weather"}, ToolChoice(ToolChoiceMode.REQUIRED, "get_weather")),
    ],
)
def test_tool_choice_is_passed_on(choice: dict[str, Any] | None, sent: ToolChoice | None) -> None:
    assert converse(*HELLO, tools=[WEATHER_TOOL], tool_choice=choice).tool_choice == sent


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_schema_is_enforced_with_its_order(place: str) -> None:
    wanted = {"type": "json_schema", "schema": SCHEMA}
    request = translate(**{place: {"format": wanted} if place == "output_config" else wanted})
    assert request.output_format == OutputFormat(json_schema=json.dumps(SCHEMA))


def test_what_changes_no_answer_is_accepted() -> None:
    extras = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "inference_geo": "eu",
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
        "betas": ["x"],
        "mcp_servers": [],
        "surprise": 1,
    }
    assert translate(**extras) == translate()


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER_TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "thinking.budget_tokens"),
        ({"messages": [user(text("a"), {"type": "image", "source": {}})]}, "messages[0].content[1]"),
        ({"messages": [user({"type": "document", "source": {}})]}, "messages[0].content[0]"),
        (
            {"messages": [*HELLO, assistant(call()), user(result([{"type": "image"}]))]},
            "messages[2].content[0].content[0]",
        ),
        ({"messages": [user(call())]}, "messages[0].content[0]"),
        ({"messages": [*HELLO, assistant(result())]}, "messages[1].content[0]"),
        ({"messages": [*HELLO, assistant(call())]}, "messages[1]"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"model": "no model"}, "model"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_path(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        translate(**fields)
    assert caught.value.facts["param"] == path and caught.value.message.startswith(path)


def test_schema_and_forced_calls_exclude_each_other() -> None:
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    with pytest.raises(InvalidRequestError, match=r"output_config\.format"):
        translate(tools=[WEATHER_TOOL], tool_choice={"type": "any"}, output_config=form)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"max_tokens": None},
        {"max_tokens": "5"},
        {"temperature": 1.5},
        {"top_p": 2},
        {"top_k": -1},
        {"stop_sequences": [""]},
        {"stop_sequences": ["x"] * 17},
        {"thinking": {"type": "enabled", "budget_tokens": 512}},
        {"thinking": {"type": "between_tools"}},
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"output_config": {"format": {"type": "xml"}}},
    ],
)
def test_wrong_types_and_ranges_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        translate(**fields)


def test_prompt_is_counted_as_it_would_be_answered() -> None:
    body = {"model": "demo", "messages": HELLO, "system": "S", "tools": [WEATHER_TOOL]}
    counted = to_count_request(CountTokensRequest.model_validate(body))
    answered = translate(**body)
    assert (counted.conversation, counted.reasoning) == (answered.conversation, answered.reasoning)


CALLS = st.lists(st.dictionaries(TEXT, st.integers() | TEXT, max_size=3), min_size=1, max_size=3)
ROUNDS = st.lists(st.tuples(TEXT, st.one_of(st.just([]), CALLS), TEXT), min_size=1, max_size=4)


@given(ROUNDS)
@settings(deadline=None)
def test_every_text_call_and_result_is_kept_in_order(rounds: list[tuple[str, list[dict[str, Any]], str]]) -> None:
    """A round is a question, the calls that it leads to, and the text that ends it; here as Claude has it, there as its own reading."""
    turns, expected, number = list[dict[str, Any]](), list[Message](), 0
    for question, inputs, ending in rounds:
        turns.append(user(text(question)))
        expected.append(Message("user", question))
        if inputs:
            numbered = list(enumerate(inputs, number))
            number += len(inputs)
            turns += [
                assistant(*(call("f", one, **{}) | {"input": given} for one, given in numbered)),
                user(*(result(f"r{one}", one) for one, _ in numbered)),
            ]
            calls = [ToolCall(f"toolu_{one}", "f", json.dumps(given)) for one, given in numbered]
            expected.append(Message("assistant", "", tool_calls=tuple(calls)))
            expected += [Message("tool", f"r{one}", "f", tool_call_id=f"toolu_{one}") for one, _ in numbered]
        turns.append(assistant(text(ending)))
        expected.append(Message("assistant", ending))
    assert [_normal(message) for message in converse(*turns, *HELLO).messages[:-1]] == [
        _normal(message) for message in expected
    ]


def _normal(message: Message) -> tuple[Any, ...]:
    calls = [(one.id, one.name, json.loads(one.arguments_json)) for one in message.tool_calls]
    return message.role, message.content, message.name, calls, message.tool_call_id


def test_tool_without_description_is_accepted() -> None:
    (tool,) = converse(*HELLO, tools=[{"name": "f", "input_schema": {"type": "object"}}]).tools
    assert tool == ToolDefinition("f", "", '{"type": "object"}')
