"""Tools of a request and the choice among them. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, JsonValue

from paceline_api_gateway.protocols.openai.responses.errors import missing_parameter, unsupported_value
from paceline_api_gateway.protocols.openai.responses.schema import FUNCTION_NAME, Json, RequestBody, parse
from paceline_services.domain.generation import ToolChoice, ToolChoiceMode, ToolDefinition
from paceline_services.errors import InvalidRequestError


class _FunctionTool(RequestBody):
    name: str = Field(pattern=FUNCTION_NAME)
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None


class _FunctionChoice(RequestBody):
    name: str = Field(min_length=1)


class _AllowedTools(RequestBody):
    mode: Literal["auto", "required"]
    tools: list[dict[str, JsonValue]] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Tools:
    """What the model is offered, what it may do with it, and how a response shows the tools."""

    offered: tuple[ToolDefinition, ...] = ()
    choice: ToolChoice | None = None
    shown: tuple[Json, ...] = ()


def read_tools(tools: Sequence[Json], choice: str | Json | None, *, is_parallel: bool) -> Tools:
    """Raises InvalidRequestError with the path of what cannot be used."""
    bodies = [_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    names = [body.name for body in bodies]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequestError(
                f"tools[{index}].name: there are two tools {name!r}", param=f"tools[{index}].name"
            )
    offered = tuple(_define(body) for body in bodies)
    mode, allowed = _read_choice(choice, names)
    if allowed is not None:
        offered = tuple(one for one in offered if one.name in allowed)
    return Tools(offered, _choose(mode, offered, allowed, is_parallel=is_parallel), tuple(map(_show, bodies)))


def _choose(
    mode: ToolChoiceMode, offered: Sequence[ToolDefinition], allowed: Sequence[str] | None, *, is_parallel: bool
) -> ToolChoice | None:
    if not offered or (mode is ToolChoiceMode.AUTO and is_parallel):
        return None
    name = offered[0].name if mode is ToolChoiceMode.REQUIRED and allowed is not None and len(offered) == 1 else ""
    return ToolChoice(mode, name, is_single=not is_parallel)


def _read_tool(tool: Json, where: str) -> _FunctionTool:
    kind = tool.get("type")
    if kind != "function":
        raise unsupported_value(
            f"{where}.type",
            f"the built-in tool {str(kind)[:60]!r} is not available here: only tools of type 'function' are",
        )
    body = parse(_FunctionTool, tool, where)
    if body.defer_loading:
        raise unsupported_value(f"{where}.defer_loading", "tools are not loaded later here: leave it out")
    if body.allowed_callers not in (None, ["direct"]):
        raise unsupported_value(f"{where}.allowed_callers", "only 'direct' calls are made here")
    return body


def _define(body: _FunctionTool) -> ToolDefinition:
    parameters = "" if body.parameters is None else json.dumps(body.parameters, ensure_ascii=False)
    return ToolDefinition(body.name, body.description or "", parameters, bool(body.strict))


def _show(body: _FunctionTool) -> Json:
    return {
        "type": "function",
        "name": body.name,
        "description": body.description,
        "parameters": body.parameters,
        "strict": bool(body.strict),
    }


def _read_choice(choice: str | Json | None, names: Sequence[str]) -> tuple[ToolChoiceMode, list[str] | None]:
    """Whether tools are called, and which of them may be; None: any."""
    if choice is None:
        return ToolChoiceMode.AUTO, None
    if isinstance(choice, str):
        return _read_mode(choice, names), None
    match choice.get("type"):
        case "function":
            name = parse(_FunctionChoice, choice, "tool_choice").name
            return ToolChoiceMode.REQUIRED, [_check_known(name, "tool_choice.name", names)]
        case "allowed_tools":
            allowed = parse(_AllowedTools, choice, "tool_choice")
            return ToolChoiceMode(allowed.mode), [
                _read_allowed(tool, f"tool_choice.tools[{index}]", names) for index, tool in enumerate(allowed.tools)
            ]
        case kind:
            raise unsupported_value(
                "tool_choice.type",
                f"{str(kind)[:60]!r} cannot be chosen here: 'function' and 'allowed_tools' can, or auto, none or required",
            )


def _read_mode(choice: str, names: Sequence[str]) -> ToolChoiceMode:
    if choice not in {"auto", "none", "required"}:
        raise InvalidRequestError(
            f"tool_choice: {choice[:60]!r} is none of 'auto', 'none' and 'required'", param="tool_choice"
        )
    if choice == "required" and not names:
        raise missing_parameter("tools", "tool_choice 'required' needs tools: there are none")
    return ToolChoiceMode(choice)


def _read_allowed(tool: Json, where: str, names: Sequence[str]) -> str:
    if tool.get("type") != "function":
        raise unsupported_value(f"{where}.type", "only tools of type 'function' are available here")
    return _check_known(parse(_FunctionChoice, tool, where).name, f"{where}.name", names)


def _check_known(name: str, where: str, names: Sequence[str]) -> str:
    if name not in names:
        raise InvalidRequestError(f"{where}: there is no tool {name[:80]!r} among tools", param=where)
    return name
