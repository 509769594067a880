"""What bodies are read: JSON to the letter, within limits, whatever a client calls it; nothing of a web page that was not allowed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_api_gateway.bodies import BodyLimits, check_headers, read_json
from paceline_api_gateway.faults import RefusedError

SMALL = BodyLimits(max_bytes=1000, max_depth=8, max_values=100, max_lengths={"messages": 3})
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Half a surrogate pair is no character: no JSON text can have one.
    | st.text(st.characters(codec="utf-8")),
    lambda parts: (
        st.lists(parts, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), parts, max_size=4)
    ),
    max_leaves=12,
)


def refuse(body: bytes, limits: BodyLimits = SMALL) -> tuple[int, str]:
    with pytest.raises(RefusedError) as caught:
        read_json(body, limits)
    return caught.value.fault.status, caught.value.fault.message


@given(JSON)
def test_json_of_any_kind_is_read(value: object) -> None:
    body = json.dumps(value).encode()
    assert read_json(body, BodyLimits(max_depth=64)) == body


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{} {}",
        b"[1,]",
        b"[NaN]",
        b"[Infinity]",
        b'["\xff"]',
        b'["\\ud800"]',
        b'{"a": 1}trailing',
        b"'a'",
        b"\x00",
        b" ",
    ],
)
def test_what_is_no_json_is_refused_with_a_reason(body: bytes) -> None:
    status, message = refuse(body)
    assert status == 400 and message.startswith("the body is not valid JSON: ")


def test_byte_order_mark_is_left_out() -> None:
    assert read_json(b"\xef\xbb\xbf{}", SMALL) == b"{}"


def test_last_of_equal_keys_counts_and_is_no_error() -> None:
    assert read_json(b'{"a": 1, "a": 2}', SMALL) == b'{"a": 1, "a": 2}'


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [9, 99, 2000, 1 << 20])
def test_nesting_beyond_the_limit_is_refused_however_deep(opening: bytes, depth: int) -> None:
    closing = b"]" if opening == b"[" else b"}"
    limits = BodyLimits(max_bytes=1 << 24, max_depth=8, max_values=1 << 24)
    status, message = refuse(opening * depth + b"1" + closing * depth, limits)
    assert status == 400 and "nests deeper than 8" in message


def test_nesting_up_to_the_limit_is_read() -> None:
    body = b"[" * 8 + b"]" * 8
    assert read_json(body, SMALL) == body
    refuse(b"[" + body + b"]")


def test_unclosed_brackets_without_end_are_refused_before_they_are_parsed() -> None:
    status, message = refuse(b"[" * (16 << 20), BodyLimits())
    assert status == 400 and "more than 1000000 values" in message


def test_values_are_counted_outside_of_texts() -> None:
    text = json.dumps(['a, b, [c], {d}, \\ and "e, f, g",' * 50]).encode()
    assert read_json(text, SMALL) == text
    assert "more than 100 values" in refuse(json.dumps(list(range(200))).encode())[1]


def test_lists_that_are_too_long_are_refused_by_name() -> None:
    with pytest.raises(RefusedError) as caught:
        read_json(b'{"messages": [1, 2, 3, 4]}', SMALL)
    assert (caught.value.fault.status, caught.value.fault.param) == (400, "messages")
    assert read_json(b'{"messages": [1, 2, 3], "other": [1, 2, 3, 4]}', SMALL)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/vnd.api+json",
        None,
        "application/x-www-form-urlencoded",
        "text/plain;charset=UTF-8",
    ],
)
def test_json_is_read_under_the_names_that_clients_give_it(content_type: str | None) -> None:
    check_headers({"content-type": content_type} if content_type else {}, SMALL, is_trusted_origin=False)


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", "text/xml", "image/png"])
def test_other_types_are_refused(content_type: str) -> None:
    with pytest.raises(RefusedError, match="application/json") as caught:
        check_headers({"content-type": content_type}, SMALL, is_trusted_origin=True)
    assert caught.value.fault.status == 415


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_pages_may_not_send_what_browsers_let_any_page_send(content_type: str) -> None:
    headers = {"content-type": content_type, "origin": "https://evil.example"}
    with pytest.raises(RefusedError):
        check_headers(headers, SMALL, is_trusted_origin=False)
    check_headers(headers, SMALL, is_trusted_origin=True)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_encoded_bodies_are_refused(encoding: str) -> None:
    with pytest.raises(RefusedError, match="Content-Encoding") as caught:
        check_headers({"content-encoding": encoding}, SMALL, is_trusted_origin=False)
    assert caught.value.fault.status == 415


def test_announced_size_is_enough_to_refuse() -> None:
    check_headers({"content-length": "1000"}, SMALL, is_trusted_origin=False)
    for size in ("1001", "9" * 400):
        with pytest.raises(RefusedError) as caught:
            check_headers({"content-length": size}, SMALL, is_trusted_origin=False)
        assert caught.value.fault.status == 413
