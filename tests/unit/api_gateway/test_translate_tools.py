"""Tools become canonical ones, and what may be done with them; what no tool can be is refused by its path."""

from typing import Any

import pytest
from pydantic import ValidationError

from paceline_api_gateway.protocols.openai.schema_chat import ChatCompletionRequest
from paceline_api_gateway.protocols.openai.translate_request import to_generate_request
from paceline_services.domain.generation import (
    Conversation,
    GenerateRequest,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
)
from paceline_services.errors import InvalidRequestError

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"city":{"type":"string"}}}'
WEATHER = {"type": "function", "function": {"name": "weather", "description": "How warm it is", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "clock", "strict": True}}
WEATHER_SENT = ToolDefinition("weather", "How warm it is", SCHEMA_TEXT)
CLOCK_SENT = ToolDefinition("clock", "", '{"type":"object","properties":{}}', is_strict=True)
REQUIRED = ToolChoiceMode.REQUIRED


def translate_request(**fields: Any) -> GenerateRequest:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]} | fields
    return to_generate_request(ChatCompletionRequest.model_validate(body))


def translate(**fields: Any) -> Conversation:
    conversation = translate_request(**fields).conversation
    assert conversation is not None
    return conversation


def name_tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_tools_are_passed_on() -> None:
    assert translate(tools=[WEATHER, CLOCK]).tools == (WEATHER_SENT, CLOCK_SENT)
    assert translate(tools=[]).tools == () and translate(tools=[], tool_choice="auto").tool_choice is None


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "none"}, ToolChoice(ToolChoiceMode.NONE)),
        ({"tool_choice": "required"}, ToolChoice(REQUIRED)),
        ({"tool_choice": name_tool("clock")}, ToolChoice(REQUIRED, "clock")),
        ({"parallel_tool_calls": True}, None),
        ({"parallel_tool_calls": False}, ToolChoice(ToolChoiceMode.AUTO, is_single=True)),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ToolChoice(REQUIRED, is_single=True)),
    ],
)
def test_choice_is_passed_on(fields: dict[str, Any], sent: ToolChoice | None) -> None:
    assert translate(tools=[WEATHER, CLOCK], **fields).tool_choice == sent


@pytest.mark.parametrize(("mode", "sent"), [("auto", None), ("required", ToolChoice(REQUIRED))])
def test_only_allowed_tools_are_offered(mode: str, sent: ToolChoice | None) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [name_tool("clock")]}}
    talk = translate(tools=[WEATHER, CLOCK], tool_choice=choice)
    assert talk.tools == (CLOCK_SENT,) and talk.tool_choice == sent


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (None, ToolChoice(ToolChoiceMode.AUTO, is_single=True)),
        ("auto", ToolChoice(ToolChoiceMode.AUTO, is_single=True)),
        ("none", ToolChoice(ToolChoiceMode.NONE, is_single=True)),
        ({"name": "weather"}, ToolChoice(REQUIRED, "weather", is_single=True)),
    ],
)
def test_legacy_functions_are_tools_of_which_one_may_be_called(choice: object, sent: ToolChoice) -> None:
    talk = translate(functions=[WEATHER["function"]], function_call=choice)
    assert talk.tools == (WEATHER_SENT,) and talk.tool_choice == sent


def test_form_of_the_answer_holds_for_text_and_not_where_there_is_none() -> None:
    wanted = {"type": "json_object"}
    assert translate_request(tools=[CLOCK], response_format=wanted).output_format is not None
    assert translate_request(tools=[CLOCK], tool_choice="required", response_format=wanted).output_format is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER, {"type": "custom", "custom": {"name": "x"}}]}, "tools[1].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": name_tool("other")}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice"),
        (
            {
                "tools": [CLOCK],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}},
            },
            "tool_choice",
        ),
        ({"functions": [{"name": "f"}], "tools": [CLOCK]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        translate(**fields)
    assert caught.value.facts["param"] == param


@pytest.mark.parametrize("name", ["", "a b", "a.b", "x" * 65, "ä", "a\n"])
def test_names_are_those_that_openai_takes(name: str) -> None:
    with pytest.raises(ValidationError):
        translate(tools=[name_tool(name)])
