"""What is read of a connection's bytes before they are parsed."""

import pytest

from paceline_api_gateway.client_connection import pass_over_upgrade

HEAD = b"POST /x HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n%s: h2c\r\nContent-Length: 2\r\n\r\n"


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade", b"UPGRADE "])
def test_wish_for_another_protocol_is_passed_over_and_nothing_moves(name: bytes) -> None:
    data = HEAD % name + b"{}"
    passed = pass_over_upgrade(data)
    assert b"pgrade: h2c" not in passed.lower() and len(passed) == len(data) and passed.endswith(b"\r\n\r\n{}")


def test_other_requests_are_as_they_came() -> None:
    for data in (
        HEAD % b"X-Upgrade" + b"\r\nupgrade: body",
        b"\r\n\r\nupgrade: h2c",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        assert pass_over_upgrade(data) == data
