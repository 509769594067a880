"""Domain values <-> protobuf messages, field by field, by name.

A frozen dataclass and its message have the same field names (oneof members are optional fields of the dataclass). The types of the
dataclass rule: tuples are repeated fields, mappings are maps, StrEnums are enums without their prefix, datetimes are Timestamps,
None is "absent". An unknown enum number or a missing required message is refused with InvalidRequestError.
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
from google.protobuf.timestamp_pb2 import Timestamp

from paceline_services.errors import InvalidRequestError

V = TypeVar("V")
M = TypeVar("M", bound=Message)


def to_proto(value: Any, message_type: type[M]) -> M:
    """The message with every field of the dataclass value; None leaves a field absent."""
    message = message_type()
    _fill(message, value)
    return message


def from_proto(message: Message, value_type: Callable[..., V]) -> V:
    """The dataclass value of a message; raises InvalidRequestError when a field cannot be read."""
    descriptors: Mapping[str, Any] = message.DESCRIPTOR.fields_by_name
    read = {name: _read(message, descriptors[name], hint) for name, hint in _hints(value_type).items()}
    return value_type(**read)


@lru_cache(maxsize=256)
def _hints(value_type: Any) -> dict[str, Any]:
    hints = get_type_hints(value_type)
    return {field.name: hints[field.name] for field in fields(value_type)}


def _fill(message: Message, value: Any) -> None:
    descriptors: Mapping[str, Any] = message.DESCRIPTOR.fields_by_name
    value_type: Any = type(value)
    for name in _hints(value_type):
        part = getattr(value, name)
        if part is not None:
            _write(message, descriptors[name], part)


def _write(message: Message, field: Any, part: Any) -> None:
    target = getattr(message, field.name)
    if isinstance(part, Mapping):
        target.update(part)
    elif isinstance(part, tuple):
        for item in part:
            if is_dataclass(item):
                _fill(target.add(), item)
            else:
                target.append(item)
    elif isinstance(part, datetime):
        target.FromDatetime(part.astimezone(UTC))
    elif is_dataclass(part):
        target.SetInParent()
        _fill(target, part)
    elif isinstance(part, StrEnum):
        setattr(message, field.name, _enum_number(field.enum_type, part))
    else:
        setattr(message, field.name, part)


def _read(message: Message, field: Any, declared: Any) -> Any:
    hint: Any
    hint, is_optional = _strip_optional(declared)
    if is_optional and not message.HasField(field.name):
        return None
    raw = getattr(message, field.name)
    origin = get_origin(hint)
    if origin is tuple:
        item: Any = get_args(hint)[0]
        return tuple(from_proto(one, item) for one in raw) if _is_message(item) else tuple(raw)
    if origin is not None and issubclass(origin, Mapping):
        return dict(raw)
    if isinstance(raw, Timestamp):
        return raw.ToDatetime(tzinfo=UTC)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _enum_value(field, raw, hint)
    if _is_message(hint):
        if not message.HasField(field.name) and any(_is_required(hint)):
            raise InvalidRequestError(f"{message.DESCRIPTOR.name}.{field.name} is missing")
        return from_proto(raw, hint)
    return raw


def _is_message(hint: Any) -> bool:
    return is_dataclass(hint)


def _is_required(value_type: Any) -> list[bool]:
    return [True for field in fields(value_type) if field.default is field.default_factory]


def _strip_optional(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in {Union, types.UnionType}:
        rest = [part for part in get_args(hint) if part is not type(None)]
        return rest[0], len(rest) < len(get_args(hint))
    return hint, False


def _enum_prefix(enum: Any) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"


def _enum_number(enum: Any, value: StrEnum) -> int:
    return int(enum.values_by_name[_enum_prefix(enum) + value.name].number)


def _enum_value(field: Any, number: int, kind: type[StrEnum]) -> StrEnum:
    known = field.enum_type.values_by_number.get(number)
    name = known.name.removeprefix(_enum_prefix(field.enum_type)) if known else ""
    if name not in kind.__members__:
        raise InvalidRequestError(f"{field.containing_type.name}.{field.name} has the unusable value {number}")
    return kind[name]
