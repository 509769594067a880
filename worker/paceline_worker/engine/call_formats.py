"""In which form models write calls of tools, and the grammars of those forms that can be enforced.

Forms are named as mlx-lm names its parsers. GENERIC is that of models that know none: Hermes', which many others were trained on.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lm.tool_parsers import json_tools

from paceline_worker.engine.calls import Parse
from paceline_worker.engine.grammar import LarkRule, make_json_rule

SpellMark = Callable[[str], str]
"""Lark text for a mark: its token where it is one of its own, else its letters."""
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class CallForm:
    """One way of writing calls: [start] calls [end], where end may be empty."""

    name: str
    start: str
    end: str
    parse: Parse

    @property
    def is_enforceable(self) -> bool:
        return self.name in _BODIES


GENERIC = CallForm("json_tools", json_tools.tool_call_start, json_tools.tool_call_end, json_tools.parse_tool_call)


def spell_generic_call(name: str, arguments: Any) -> str:
    """A call in the generic form."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{GENERIC.start}\n{body}\n{GENERIC.end}"


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """Writes Lark grammars of calls in one form; arguments obey the schemas of their tools."""

    form: CallForm
    tools: Tools
    spell_mark: SpellMark
    is_single: bool = False

    def write_calls(self, answer: LarkRule | None = None) -> str:
        """An answer that is one call or more, marks included. answer: what it may be instead."""
        repeat = "" if self.is_single else _REPEATS[self.form.name]
        start = "start: calls | answer" if answer else "start: calls"
        rules = [start, f"calls: call{repeat}", f"call: {self.spell_mark(self.form.start)} body", *self._write_body()]
        return "\n".join([*rules, *([f"answer: {answer.text}"] if answer else [])])

    def write_one_body(self) -> str:
        """What follows a call's first mark; where calls have no last mark, with the calls that may follow it."""
        goes_on = not (self.form.end or self.is_single) and _REPEATS[self.form.name]
        rules = ["start: body call*", f"call: {self.spell_mark(self.form.start)} body"] if goes_on else ["start: body"]
        return "\n".join([*rules, *self._write_body()])

    def _write_body(self) -> list[str]:
        arguments = [f"args_{i}: {make_json_rule(read_parameters(tool)).text}" for i, tool in enumerate(self.tools)]
        names = " | ".join(f"call_{i}" for i in range(len(self.tools)))
        return [*_BODIES[self.form.name](self), f"one: {names}", *arguments]


def read_parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments, which are an object."""
    parameters = tool["function"].get("parameters")
    return {"type": "object", **(parameters if isinstance(parameters, dict) else {})}


def _write_json_tools(grammar: CallGrammar) -> list[str]:
    end = grammar.spell_mark(grammar.form.end)
    return [f'body: "\\n" one "\\n" {end}', *_write_named_objects(grammar)]


def _write_mistral_headers(grammar: CallGrammar) -> list[str]:
    args = grammar.spell_mark("[ARGS]")
    calls = [f"call_{i}: {_quote(_name(tool))} {args} args_{i}" for i, tool in enumerate(grammar.tools)]
    return ["body: one", *calls]


def _write_mistral_list(grammar: CallGrammar) -> list[str]:
    more = "" if grammar.is_single else ' (", " one)*'
    return [f'body: " "? "[" one{more} "]"', *_write_named_objects(grammar)]


def _write_kimi_k2(grammar: CallGrammar) -> list[str]:
    begin, middle, end = map(
        grammar.spell_mark, ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
    )
    more = "" if grammar.is_single else "+"
    calls = [
        f"call_{i}: {begin} {_quote(f'functions.{_name(tool)}:')} NUMBER {middle} args_{i} {end}"
        for i, tool in enumerate(grammar.tools)
    ]
    return [f"body: one{more} {grammar.spell_mark(grammar.form.end)}", *calls, "NUMBER: /[0-9]{1,3}/"]


def _write_named_objects(grammar: CallGrammar) -> list[str]:
    """{"name": ..., "arguments": ...}, each tool's name with its own arguments."""
    begins = [f'{{"name": {json.dumps(_name(tool))}, "arguments": ' for tool in grammar.tools]
    return [f"call_{i}: {_quote(begin)} args_{i} {_quote('}')}" for i, begin in enumerate(begins)]


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])


def _quote(text: str) -> str:
    return json.dumps(text)


MISTRAL_LIST = "mistral_list"
"""Mistral's older form, a list in JSON; its parser is that of the newer one, which mlx-lm calls mistral."""
_BODIES: Mapping[str, Callable[[CallGrammar], list[str]]] = {
    "json_tools": _write_json_tools,
    "mistral": _write_mistral_headers,
    MISTRAL_LIST: _write_mistral_list,
    "kimi_k2": _write_kimi_k2,
}
_REPEATS: Mapping[str, str] = {"json_tools": ' ("\\n" call)*', "mistral": " call*", MISTRAL_LIST: "", "kimi_k2": ""}
