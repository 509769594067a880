"""What bodies are read at all: of which type, how large, how deep. Pure; connection reads them.

Every route takes JSON. It is looked at here before anything walks it, in time that grows with its bytes alone: a body that nests or
repeats without end, or that is no JSON by the letter of RFC 8259 (NaN, half a surrogate pair, bytes that are no UTF-8), goes no further.
Of a key that comes twice the last one counts, as in every common parser.

curl sends forms unless told otherwise, and Ollama's examples rely on that: such a body is read as JSON. Not so one of a web page, which has
an Origin: a browser lets any page send forms and plain text to any address, without asking first as it does for JSON.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from paceline_api_gateway.faults import Fault, RefusedError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_UNDECLARED = frozenset({"", "application/x-www-form-urlencoded", "text/plain"})


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """See GatewaySettings; max_lengths: of lists that are members of the body, by name."""

    max_bytes: int = 16 << 20
    timeout_s: float = 60.0
    max_depth: int = 128
    max_values: int = 1_000_000
    max_lengths: Mapping[str, int] | None = None
    max_held_bytes: int = 256 << 20


def check_headers(headers: Mapping[str, str], limits: BodyLimits, *, is_trusted_origin: bool) -> None:
    """Raise RefusedError for a body that is not to be read."""
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > limits.max_bytes:
        raise RefusedError(too_large(limits))
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        raise RefusedError(Fault(415, f"a body with Content-Encoding {encoding[:40]} is not read: send it as it is"))
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        return
    if media_type not in _UNDECLARED or ("origin" in headers and not is_trusted_origin):
        named = f"of type {media_type[:80]}" if media_type else "without a type"
        raise RefusedError(Fault(415, f"a body {named} is not read: send JSON, with Content-Type: application/json"))


def read_json(body: bytes, limits: BodyLimits) -> bytes:
    """The body, without a byte order mark. Raises RefusedError unless it is JSON within the limits."""
    body = body.removeprefix(_BYTE_ORDER_MARK)
    _check_number(body, limits.max_values)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "depth limit" in error.msg or "ecursion" in error.msg:  # orjson's own limit, 1024
            raise RefusedError(_too_deep(limits)) from None
        raise RefusedError(Fault(400, f"the body is not valid JSON: {error}")) from None
    _check_depth(value, limits)
    _check_lengths(value, limits.max_lengths or {})
    return body


def too_large(limits: BodyLimits) -> Fault:
    return Fault(413, f"the request body is larger than {limits.max_bytes} bytes: send less")


def too_late(limits: BodyLimits) -> Fault:
    return Fault(408, f"the request body did not come within {limits.timeout_s:g} s: send it faster")


def too_many() -> Fault:
    return Fault(503, "too many large request bodies come at once: send yours again", None, "GATEWAY_FULL", 1.0)


def _check_number(body: bytes, max_values: int) -> None:
    # Counting is a hundredth of parsing; only a body with as many commas in its texts is looked at twice.
    if _count_values(body) > max_values and _count_values(_STRING.sub(b"", body)) > max_values:
        raise RefusedError(Fault(400, f"the body has more than {max_values} values: send fewer"))


def _count_values(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _check_depth(value: Any, limits: BodyLimits) -> None:
    level = [value]
    for _ in range(limits.max_depth):
        level = [part for one in level for part in _list_parts(one) if isinstance(part, (dict, list))]
        if not level:
            return
    raise RefusedError(_too_deep(limits))


def _list_parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _too_deep(limits: BodyLimits) -> Fault:
    return Fault(400, f"the body nests deeper than {limits.max_depth} arrays and objects: flatten it")


def _check_lengths(value: Any, max_lengths: Mapping[str, int]) -> None:
    if not isinstance(value, dict):
        return
    for name, max_length in max_lengths.items():
        part = value.get(name)
        if isinstance(part, list) and len(part) > max_length:
            raise RefusedError(Fault(400, f"{name} has {len(part)} entries: at most {max_length} are read", name))
