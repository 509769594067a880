"""Tools and the choice among them, and their deprecated forms functions and function_call. Pure."""

from collections.abc import Sequence

from paceline_api_gateway.protocols.openai.schema_chat import (
    ChatCompletionRequest,
    FunctionBody,
    ToolBody,
    ToolChoiceBody,
    ToolName,
)
from paceline_api_gateway.protocols.openai.translate_sampling import to_schema_text
from paceline_services.domain.generation import ToolChoice, ToolChoiceMode, ToolDefinition
from paceline_services.errors import InvalidRequestError

NO_PARAMETERS = '{"type":"object","properties":{}}'
"""What OpenAI means by a function without parameters."""
_MODES = {mode.value: mode for mode in ToolChoiceMode}

Offer = tuple[tuple[ToolDefinition, ...], ToolChoice | None]


def has_legacy_functions(body: ChatCompletionRequest) -> bool:
    """Whether calls are to be told as function_call."""
    return bool(body.functions)


def to_offer(body: ChatCompletionRequest) -> Offer:
    """The tools, and what may be done with them. Raises InvalidRequestError naming what cannot be honoured."""
    if body.functions and body.tools:
        raise InvalidRequestError("functions and tools both offer functions: use tools alone", param="functions")
    if body.functions or body.function_call:
        definitions = tuple(
            _define(f"functions[{number}]", function) for number, function in enumerate(body.functions or ())
        )
        return _choose("function_call", body.function_call, definitions, is_single=bool(definitions))
    definitions = tuple(_define_tool(f"tools[{number}]", tool) for number, tool in enumerate(body.tools or ()))
    return _choose("tool_choice", body.tool_choice, definitions, is_single=body.parallel_tool_calls is False)


def _define_tool(where: str, tool: ToolBody) -> ToolDefinition:
    if tool.type != "function":
        raise InvalidRequestError(
            f"{where}.type is {tool.type!r}: only 'function' is supported",
            param=f"{where}.type",
            reason="UNSUPPORTED_VALUE",
        )
    if tool.function is None:
        raise InvalidRequestError(f"{where}.function is missing", param=f"{where}.function")
    return _define(f"{where}.function", tool.function)


def _define(where: str, function: FunctionBody) -> ToolDefinition:
    parameters = NO_PARAMETERS if not function.parameters else to_schema_text(function.parameters)
    if function.parameters and function.parameters.get("type", "object") != "object":
        raise InvalidRequestError(
            f"{where}.parameters must be a JSON Schema of type 'object', not {function.parameters['type']!r}",
            param=f"{where}.parameters",
            reason="INVALID_FUNCTION_PARAMETERS",
        )
    return ToolDefinition(function.name, function.description or "", parameters, bool(function.strict))


def _choose(
    field: str, choice: ToolChoiceBody | None, definitions: tuple[ToolDefinition, ...], *, is_single: bool
) -> Offer:
    mode, name = ToolChoiceMode.AUTO, ""
    if choice is not None:
        mode, name, definitions = _read_choice(field, choice, definitions)
    if mode is ToolChoiceMode.REQUIRED and not definitions:
        raise InvalidRequestError(f"{field} asks for a call, but there are no tools", param=field)
    if not definitions or (mode is ToolChoiceMode.AUTO and not is_single):
        return definitions, None
    return definitions, ToolChoice(mode, name, is_single)


def _read_choice(
    field: str, choice: ToolChoiceBody, definitions: tuple[ToolDefinition, ...]
) -> tuple[ToolChoiceMode, str, tuple[ToolDefinition, ...]]:
    if choice.type in _MODES:
        return _MODES[choice.type], "", definitions
    if choice.type == "function" and choice.function is not None:
        name = choice.function.name
        _check_offered(field, [name], definitions)
        return ToolChoiceMode.REQUIRED, name, definitions
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        names = [_read_name(field, tool) for tool in choice.allowed_tools.tools]
        _check_offered(field, names, definitions)
        allowed = tuple(one for one in definitions if one.name in names)
        return _MODES[choice.allowed_tools.mode], "", allowed
    raise InvalidRequestError(
        f"{field} must be 'none', 'auto', 'required', a function or allowed_tools, not {choice.type!r}", param=field
    )


def _read_name(field: str, tool: ToolName) -> str:
    if tool.type != "function" or tool.function is None:
        raise InvalidRequestError(f"{field} allows a tool of type {tool.type!r}: only 'function' is", param=field)
    return tool.function.name


def _check_offered(field: str, names: Sequence[str], definitions: Sequence[ToolDefinition]) -> None:
    offered = {one.name for one in definitions}
    for name in names:
        if name not in offered:
            raise InvalidRequestError(f"{field} names {name!r}, which is none of the tools", param=field)
