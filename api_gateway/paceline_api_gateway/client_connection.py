"""One connection of a client: how much may come before a request is one, and how long either side may be silent.

uvicorn parses, and bounds neither: a header of any length is gathered in memory, a client that stops amid its headers or stops reading its
answer keeps connection, generation and buffers for ever. Here each has a limit and a deadline. What a body may be is decided in bodies.
"""

import asyncio
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from paceline_api_gateway.faults import Fault

WriteBody = Callable[[str, Fault], dict[str, Any]]
"""The body for a fault of a request with this path."""

_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)
_UNSENT_BYTES = 128 << 10
"""Kept by the system for a client that reads slowly, before the gateway notices; what is more stays at the head."""
_BODY_SLACK_S = 5.0
"""After a body's own deadline, which answers in words, its connection is closed without."""
_TICKS = 4
"""A client that takes nothing is noticed after its deadline, at most a fourth of it later."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """See GatewaySettings."""

    max_url_bytes: int = 16 << 10
    max_header_bytes: int = 64 << 10
    max_headers: int = 128
    header_timeout_s: float = 30.0
    body_timeout_s: float = 60.0
    write_timeout_s: float = 60.0


class ClientConnection(HttpToolsProtocol):
    """A class of uvicorn's protocols; make_connection_class gives it its limits."""

    limits: ClassVar[ConnectionLimits]
    write_body: ClassVar[WriteBody]

    # What comes
    _arrival: asyncio.TimerHandle | None = None
    _has_headers = False
    _num_bytes = 0
    _num_header_bytes = 0
    _refusal: Fault | None = None
    # What goes
    _stall: asyncio.TimerHandle | None = None
    _unsent_bytes = 0
    _taken_time = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(self.limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self._watch_writing(is_on=False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._has_headers:
            self._num_bytes += len(data)
            data = pass_over_upgrade(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        most = self.limits.max_url_bytes + self.limits.max_header_bytes
        if not self._has_headers and self._num_bytes > most:  # a header that does not end is told to nobody
            self._refusal = self._refuse_headers()
            self.send_400_response("")
        elif self._is_idle and self._arrival is None and self.timeout_keep_alive_task is None:
            self._expect(
                self.limits.header_timeout_s
            )  # blank lines between requests, or the end of a body that was refused

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_headers, self._num_header_bytes = False, 0
        self._expect(self.limits.header_timeout_s)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.max_url_bytes:
            raise self._refuse(Fault(414, f"the URL is longer than {self.limits.max_url_bytes} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._num_header_bytes += len(name) + len(value)
        if self._num_header_bytes > self.limits.max_header_bytes or len(self.headers) > self.limits.max_headers:
            raise self._refuse(self._refuse_headers())

    def on_headers_complete(self) -> None:
        self._has_headers, self._num_bytes = True, 0
        self._expect(self.limits.body_timeout_s + _BODY_SLACK_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._has_headers = False
        self._expect(None)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Instead of what could not be read as a request; the connection ends with it."""
        fault = self._refusal or Fault(400, f"this is no HTTP request: {msg}")
        if self._is_idle:
            self.transport.write(self._write_response(fault))
        self.transport.close()

    @property
    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing(is_on=True)

    def resume_writing(self) -> None:
        self._watch_writing(is_on=False)
        super().resume_writing()

    def _refuse(self, fault: Fault) -> ValueError:
        """To be raised: the parser stops with it, and uvicorn asks for the response."""
        self._refusal = fault
        return ValueError(fault.message)

    def _refuse_headers(self) -> Fault:
        limits = self.limits
        return Fault(
            431, f"the headers are more than {limits.max_headers}, or larger than {limits.max_header_bytes} bytes"
        )

    def _write_response(self, fault: Fault) -> bytes:
        path = unquote(bytes(getattr(self, "url", b"")).partition(b"?")[0].decode("latin-1"))
        body = json.dumps(type(self).write_body(path, fault)).encode()
        headers = (
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
        )
        return STATUS_LINE[fault.status] + b"\r\n".join((*headers, b"", body))

    def _expect(self, timeout_s: float | None) -> None:
        """Something of a request within a time; None: nothing is waited for."""
        if self._arrival is not None:
            self._arrival.cancel()
        self._arrival = None if timeout_s is None else self.loop.call_later(timeout_s, self._on_late)

    def _on_late(self) -> None:
        if self.flow.read_paused:  # nothing is late that was not let in
            self._expect(self.limits.body_timeout_s)
            return
        is_amid_headers = self._num_bytes > 0 and not self._has_headers
        if is_amid_headers and self._is_idle:
            seconds = f"{self.limits.header_timeout_s:g} s"
            self.transport.write(self._write_response(Fault(408, f"the headers did not come within {seconds}")))
        self.transport.close()

    def _watch_writing(self, *, is_on: bool) -> None:
        """Whether the client takes what is written for it, while more is there than is kept for it."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if is_on:
            self._unsent_bytes, self._taken_time = self.transport.get_write_buffer_size(), self.loop.time()
            self._stall = self.loop.call_later(self.limits.write_timeout_s / _TICKS, self._check_writing)

    def _check_writing(self) -> None:
        unsent_bytes, now = self.transport.get_write_buffer_size(), self.loop.time()
        if unsent_bytes < self._unsent_bytes:
            self._unsent_bytes, self._taken_time = unsent_bytes, now
        elif now - self._taken_time >= self.limits.write_timeout_s:
            self.transport.abort()
            return
        self._stall = self.loop.call_later(self.limits.write_timeout_s / _TICKS, self._check_writing)


def pass_over_upgrade(data: bytes) -> bytes:
    """The beginning of a request without its wish for another protocol, which a server may pass over: the parser ends with it, body unread.

    Java's HttpClient offers HTTP/2 so with its first request.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nignored", head) + end + rest if _UPGRADE.search(head) else data


def make_connection_class(limits: ConnectionLimits, write_body: WriteBody) -> type[ClientConnection]:
    """What uvicorn makes for each connection."""

    class LimitedConnection(ClientConnection):
        pass

    LimitedConnection.limits, LimitedConnection.write_body = limits, staticmethod(write_body)
    return LimitedConnection


def tune_listener(listener: socket.socket, write_timeout_s: float) -> None:
    """Options that accepted connections inherit, where the system has them: little is kept for slow readers, vanished ones are noticed."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_NOTSENT_LOWAT": _UNSENT_BYTES,
        "TCP_KEEPIDLE": 30,
        "TCP_KEEPINTVL": 10,
        "TCP_KEEPCNT": 3,
        # Covers what lies in the system's buffers, where a client's are full or it is gone.
        "TCP_USER_TIMEOUT": round(write_timeout_s * 1e3),
    }
    for name, value in options.items():
        if (number := getattr(socket, name, None)) is not None:
            listener.setsockopt(socket.IPPROTO_TCP, number, value)
