"""Domain values <-> protobuf messages, field by field, by name.

A frozen dataclass and its message have the same field names (oneof members are optional fields of the dataclass). The types of the
dataclass rule: tuples are repeated fields, mappings are maps, StrEnums are enums without their prefix, datetimes are Timestamps,
None is "absent". An unknown enum number or a missing required message is refused with InvalidRequestError.

How each field is read and written is worked out once for a pair of types: frames between stages go through here with every step.
"""

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from paceline_services.errors import InvalidRequestError

V = TypeVar("V")
M = TypeVar("M", bound=Message)
Reader = Callable[[Any], Any]
Writer = Callable[[Any, Any], None]


def to_proto(value: Any, message_type: type[M]) -> M:
    """The message with every field of the dataclass value; None leaves a field absent."""
    message = message_type()
    _fill(message, value)
    return message


def from_proto(message: Message, value_type: Callable[..., V]) -> V:
    """The dataclass value of a message; raises InvalidRequestError when a field cannot be read."""
    return value_type(*[read(message) for read in _make_readers(message.DESCRIPTOR, value_type)])


def find_unknown_fields(message: Message) -> tuple[str, ...]:
    """Fields that a newer version set in a message, or in those within it, as Message.number."""
    unknown: Any = UnknownFieldSet(message)  # its stubs do not know that it is iterable
    own = [f"{message.DESCRIPTOR.name}.{field.field_number}" for field in unknown]
    parts = [part for field, content in message.ListFields() for part in _list_messages(field, content)]
    return (*own, *(name for part in parts for name in find_unknown_fields(part)))


def _list_messages(field: Any, content: Any) -> list[Message]:
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return []
    return list(content) if field.is_repeated else [content]


def _fill(message: Message, value: Any) -> None:
    value_type: Any = type(value)
    for name, write in _make_writers(message.DESCRIPTOR, value_type):
        part = getattr(value, name)
        if part is not None:
            write(message, part)


@lru_cache(maxsize=512)
def _make_readers(descriptor: Any, value_type: Any) -> tuple[Reader, ...]:
    """How to read each field of the value from such a message, in the order of the fields."""
    return tuple(_make_reader(descriptor.fields_by_name[name], hint) for name, hint in _hints(value_type).items())


@lru_cache(maxsize=512)
def _make_writers(descriptor: Any, value_type: Any) -> tuple[tuple[str, Writer], ...]:
    """How to write each field of the value into such a message."""
    return tuple(
        (name, _make_writer(descriptor.fields_by_name[name], _strip_optional(hint)[0]))
        for name, hint in _hints(value_type).items()
    )


def _hints(value_type: Any) -> dict[str, Any]:
    hints = get_type_hints(value_type)
    return {field.name: hints[field.name] for field in fields(value_type)}


def _make_reader(field: Any, declared: Any) -> Reader:
    name = field.name
    hint, is_optional = _strip_optional(declared)
    read = _make_present_reader(field, hint)
    if is_optional:
        return lambda message: read(message) if message.HasField(name) else None
    if is_dataclass(hint) and any(one.default is one.default_factory for one in fields(hint)):
        return lambda message: read(message) if message.HasField(name) else _refuse_absent(field)
    return read


def _make_present_reader(field: Any, hint: Any) -> Reader:
    name = field.name
    origin = get_origin(hint)
    if origin is tuple:
        return _make_items_reader(name, get_args(hint)[0])
    if origin is not None and issubclass(origin, Mapping):
        return lambda message: dict(getattr(message, name))
    if hint is datetime:
        return lambda message: getattr(message, name).ToDatetime(tzinfo=UTC)
    if is_dataclass(hint):
        value_type: Any = hint
        return lambda message: from_proto(getattr(message, name), value_type)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _make_enum_reader(field, hint)
    return lambda message: getattr(message, name)


def _make_items_reader(name: str, item: Any) -> Reader:
    if not is_dataclass(item):
        return lambda message: tuple(getattr(message, name))
    item_type: Any = item
    return lambda message: tuple([from_proto(one, item_type) for one in getattr(message, name)])


def _make_enum_reader(field: Any, kind: type[StrEnum]) -> Reader:
    prefix = _enum_prefix(field.enum_type)
    names = {number: one.name.removeprefix(prefix) for number, one in field.enum_type.values_by_number.items()}
    values = {number: kind[name] for number, name in names.items() if name in kind.__members__}

    def read(message: Any) -> StrEnum:
        number = getattr(message, field.name)
        if number not in values:
            raise InvalidRequestError(f"{field.containing_type.name}.{field.name} has the unusable value {number}")
        return values[number]

    return read


def _make_writer(field: Any, hint: Any) -> Writer:
    name = field.name
    origin = get_origin(hint)
    if origin is tuple:
        return _make_items_writer(name, get_args(hint)[0])
    if origin is not None and issubclass(origin, Mapping):
        return lambda message, part: getattr(message, name).update(part)
    if hint is datetime:
        return lambda message, part: getattr(message, name).FromDatetime(part.astimezone(UTC))
    if is_dataclass(hint):
        return lambda message, part: _fill_part(getattr(message, name), part)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        prefix = _enum_prefix(field.enum_type)
        numbers = {one: field.enum_type.values_by_name[prefix + one.name].number for one in hint}
        return lambda message, part: setattr(message, name, numbers[part])
    return lambda message, part: setattr(message, name, part)


def _make_items_writer(name: str, item: Any) -> Writer:
    def write(message: Any, part: tuple[Any, ...]) -> None:
        target = getattr(message, name)
        for one in part:
            _fill(target.add(), one)

    return write if is_dataclass(item) else lambda message, part: getattr(message, name).extend(part)


def _fill_part(message: Any, value: Any) -> None:
    message.SetInParent()
    _fill(message, value)


def _refuse_absent(field: Any) -> Any:
    raise InvalidRequestError(f"{field.containing_type.name}.{field.name} is missing")


def _strip_optional(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in {Union, types.UnionType}:
        rest = [part for part in get_args(hint) if part is not type(None)]
        return rest[0], len(rest) < len(get_args(hint))
    return hint, False


def _enum_prefix(enum: Any) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
