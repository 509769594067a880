"""What models wrote, by mlx-lm's parsers: whole calls, broken ones, and what no parser should ever raise at us."""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.engine.calls import CallParser, ParsedCall

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"type": "object"}},
            },
        },
    }
]
WANTED: Mapping[str, Any] = {"city": "São Paulo", "days": 3}
RECORDED = {
    "json_tools": '\n{"name": "get_weather", "arguments": {"city": "São Paulo", "days": 3}}\n',
    "mistral": 'get_weather[ARGS]{"city": "São Paulo", "days": 3}',
    "qwen3_coder": (
        "\n<function=get_weather>\n<parameter=city>\nSão Paulo\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n"
    ),
    "glm47": "get_weather\n<arg_key>city</arg_key>\n<arg_value>São Paulo</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n",
    "longcat": (
        "get_weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>São Paulo</longcat_arg_value>\n"
        "<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>3</longcat_arg_value>\n"
    ),
    "pythonic": '[get_weather(city="São Paulo", days=3)]',
    "kimi_k2": (
        '<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "São Paulo", "days": 3}<|tool_call_end|>'
    ),
    "minimax_m2": (
        '\n<invoke name="get_weather">\n<parameter name="city">São Paulo</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n'
    ),
    "function_gemma": "call:get_weather{city:<escape>São Paulo<escape>,days:3}",
}


def make_parser(name: str) -> CallParser:
    return CallParser(import_module(f"mlx_lm.tool_parsers.{name}").parse_tool_call, TOOLS)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_call_is_read(name: str) -> None:
    calls = make_parser(name).parse(RECORDED[name])
    assert [(call.name, json.loads(call.arguments_json)) for call in calls] == [("get_weather", WANTED)]


@pytest.mark.parametrize("name", RECORDED)
def test_every_beginning_of_a_call_is_read_or_malformed_but_raises_nothing(name: str) -> None:
    parser = make_parser(name)
    for cut in range(len(RECORDED[name])):
        assert all(isinstance(json.loads(call.arguments_json), dict) for call in parser.parse(RECORDED[name][:cut]))


@pytest.mark.parametrize("name", RECORDED)
@given(body=st.text(max_size=80) | st.text(st.sampled_from('{}[]()<>/="name:arguments,call_ 1\n'), max_size=80))
def test_parsers_raise_nothing_whatever_a_model_writes(name: str, body: str) -> None:
    for call in make_parser(name).parse(body):
        assert call.name and isinstance(json.loads(call.arguments_json), dict)


def test_several_calls_between_two_marks_are_all_read() -> None:
    body = '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {"deep": {"list": [1, [2, {"é": null}]]}}}]'
    assert make_parser("json_tools").parse(body) == (
        ParsedCall("a", "{}"),
        ParsedCall("b", '{"deep": {"list": [1, [2, {"é": null}]]}}'),
    )


def test_one_broken_call_among_several_makes_all_of_them_text() -> None:
    assert make_parser("json_tools").parse('[{"name": "a", "arguments": {}}, {"name": "b", "arguments": 1}]') == ()


def test_what_glm_takes_for_an_unknown_tool_is_no_call() -> None:
    assert make_parser("glm47").parse("<arg_value>") == () or make_parser("glm47").parse("") == ()
