"""Calls of tools out of what a model wrote between its marks, by mlx-lm's parsers (one module for each way of writing them)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Parse = Callable[[str, Any], Any]
NO_NAME = "unknown"
"""What mlx-lm's GLM parser calls the tool of something that is no call."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """id: the model's own, if it wrote one."""

    name: str
    arguments_json: str
    id: str = ""


class CallParser:
    """Parses calls of the tools that one request offers, which are in OpenAI's form: some parsers convert arguments by their schemas."""

    def __init__(self, parse: Parse, tools: Sequence[Mapping[str, Any]]) -> None:
        self._parse = parse
        self._tools = list(tools)
        self._names = frozenset(str(tool["function"]["name"]) for tool in tools)

    def parse(self, body: str) -> tuple[ParsedCall, ...]:
        """The calls that a body has; empty when it is malformed."""
        try:
            parsed = self._parse(body, self._tools)
            calls = tuple(_read_call(call) for call in (parsed if isinstance(parsed, list) else [parsed]))
        # Parsers are programs for what models should write; what they raise about what models do write, nobody knows.
        except Exception:
            return ()
        has_name = all(call.name != NO_NAME or call.name in self._names for call in calls)
        return calls if has_name else ()


def _read_call(call: Mapping[str, Any]) -> ParsedCall:
    name, arguments, own_id = call["name"], call.get("arguments", call.get("parameters", {})), call.get("id")
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        raise ValueError("a call needs a name and an object of arguments")
    name.encode()  # half a surrogate pair cannot be sent
    own_id = own_id if isinstance(own_id, str) and own_id.isascii() else ""
    return ParsedCall(name.strip(), _write_json(arguments), own_id)


def _write_json(arguments: Mapping[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # an escaped half of a surrogate pair is JSON, but no text
        return json.dumps(arguments, allow_nan=False)
    return text
