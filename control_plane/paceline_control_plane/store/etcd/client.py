"""Transport to an etcd cluster: one sticky endpoint at a time, left as soon as it does not answer; deadlines, retries, login.

Decided here: which member is asked, how long, and when again. Not decided here: what is asked (store.py, watch.py), what a failure
means (faults.py). There are no keepalive pings: etcd answers idle ones with GOAWAY "too_many_pings" (measured: a watch stuck for
69 s); hung members are found by the 1.5 s of each try and by the watches' own signs of life.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from prometheus_client import Counter

from paceline.etcd.v1 import etcd_pb2
from paceline_control_plane.store.etcd.faults import (
    CallFault,
    Verdict,
    judge,
    no_login_known,
    no_stream_answer,
    not_connected,
    to_error,
    uncertain,
    unreachable,
)
from paceline_control_plane.store.etcd.methods import AUTHENTICATE, Method
from paceline_control_plane.store.etcd.settings import Endpoint, EtcdSettings, parse_endpoints
from paceline_control_plane.store.interface import StoreClosedError
from paceline_services.backoff import Backoff
from paceline_services.errors import PreconditionError
from paceline_services.logs import get_logger

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)
Metadata = tuple[tuple[str, str], ...]

CALL_TIMEOUT_S = 5.0
"""Time for one call with all its tries."""
TRY_TIMEOUT_S = 1.5
"""Time for one try; after it the member counts as hung."""
_LEAST_TRY_S = 0.05
_PAUSES = Backoff(first_s=0.05, limit_s=0.5)
_LEADER_REQUIRED: Metadata = (("hasleader", "true"),)
_RETRIES = Counter(
    "paceline_control_plane_store_retries", "Calls to etcd that were tried again, by method.", labelnames=("method",)
)
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Connection:
    """A channel to one member. Once it is left it stays open for the calls still on it and closes after the last one."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.channel = _open_channel(endpoint)
        self.is_closed = False
        self._num_users = 0
        self._is_left = False

    @asynccontextmanager
    async def used(self) -> AsyncGenerator[grpc.aio.Channel, None]:
        """The channel, kept open until the block ends."""
        self._num_users += 1
        try:
            yield self.channel
        finally:
            self._num_users -= 1
            if self._is_left and self._num_users == 0:
                await self.close()

    async def leave(self) -> None:
        """Close as soon as no call is on the channel."""
        self._is_left = True
        if self._num_users == 0:
            await self.close()

    async def close(self) -> None:
        """Close now; calls on the channel are cancelled."""
        self.is_closed = True
        await self.channel.close(None)


Attempt = Callable[[Connection, Metadata, float], Awaitable[R]]
"""One try of a call: on a connection, with metadata, within seconds. Raises CallFault."""


class EtcdClient:
    """Makes calls to whichever member answers. Made and used on one event loop, by any number of tasks."""

    def __init__(self, settings: EtcdSettings) -> None:
        """Nothing is connected yet. Raises ConfigurationError for unusable settings."""
        self._endpoints = parse_endpoints(settings)
        self._settings = settings
        self._index = random.randrange(len(self._endpoints))
        self._connection = Connection(self._endpoints[self._index])
        self._open_connections = {self._connection}
        self._token: str | None = None
        self._login_lock = asyncio.Lock()
        self._is_closed = False

    @property
    def connection(self) -> Connection:
        """The connection to the member that is asked now. Raises StoreClosedError after close."""
        if self._is_closed:
            raise StoreClosedError
        return self._connection

    async def call(self, method: Method[Q, R], request: Q, *, timeout_s: float = CALL_TIMEOUT_S) -> R:
        """Ask one member after the other until one answers, within timeout_s.

        Raises StoreUnavailableError when none does, or when a call that must not be repeated lost its answer; other errors of ours
        for definite answers (faults.to_error).
        """

        async def attempt(connection: Connection, metadata: Metadata, left_s: float) -> R:
            return await _call_unary(connection, method, request, metadata, left_s)

        return await self._repeat(method, attempt, timeout_s)

    async def call_streamed(self, method: Method[Q, R], request: Q, *, timeout_s: float = CALL_TIMEOUT_S) -> R:
        """As call, for a method that streams both ways and of which one request and its response are wanted."""

        async def attempt(connection: Connection, metadata: Metadata, left_s: float) -> R:
            return await _call_streamed(connection, method, request, metadata, left_s)

        return await self._repeat(method, attempt, timeout_s)

    async def metadata(self, timeout_s: float = CALL_TIMEOUT_S) -> Metadata:
        """What goes with every call. Logs in first where a user is set and has no token yet."""
        if self._settings.username and self._token is None:
            await self._log_in(self._metadata(), timeout_s)
        return self._metadata()

    async def recover(
        self, fault: CallFault, connection: Connection, metadata: Metadata, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        """Make another try promising: log in anew, or leave the connection's member. Raises what is a definite answer."""
        if fault.verdict is Verdict.REFUSED:
            raise to_error(fault) from fault
        if fault.verdict is Verdict.NEEDS_LOGIN:
            await self._log_in(metadata, timeout_s)
        else:
            await self._rotate(connection)

    async def close(self) -> None:
        """Close every connection; calls end with StoreClosedError."""
        self._is_closed = True
        for connection in self._open_connections:
            await connection.close()

    async def _repeat(self, method: Method[Q, R], attempt: Attempt[R], timeout_s: float) -> R:
        now = asyncio.get_running_loop().time
        deadline = now() + timeout_s
        failures = 0
        while True:
            metadata = await self.metadata(deadline - now()) if method.needs_login else _LEADER_REQUIRED
            connection = self.connection
            try:
                return await self._attempt(connection, attempt, metadata, deadline - now())
            except CallFault as fault:
                await self.recover(fault, connection, metadata, deadline - now())
                if fault.verdict is Verdict.UNCERTAIN and not method.is_repeatable:
                    raise uncertain(method.name, fault) from fault
                failures += 1
                pause_s = _PAUSES.pause_s(failures)
                if now() + pause_s >= deadline:
                    raise unreachable(self._settings.endpoints, fault) from fault
            _RETRIES.labels(method.name).inc()
            await asyncio.sleep(pause_s)

    async def _attempt(self, connection: Connection, attempt: Attempt[R], metadata: Metadata, left_s: float) -> R:
        try:
            async with connection.used():
                return await attempt(connection, metadata, max(_LEAST_TRY_S, min(TRY_TIMEOUT_S, left_s)))
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # Closing a channel cancels the calls on it as if their tasks had been cancelled.
            if self._is_closed and not _is_task_cancelled():
                raise StoreClosedError from None
            raise

    async def _rotate(self, left: Connection) -> None:
        """Leave a connection for one to the next member, unless another task did so already."""
        if self._is_closed or self._connection is not left:
            return
        self._index = (self._index + 1) % len(self._endpoints)
        self._connection = Connection(self._endpoints[self._index])
        still_open = {connection for connection in self._open_connections if not connection.is_closed}
        self._open_connections = still_open | {self._connection}
        get_logger().debug("store_member_left", left=left.endpoint.url, next=self._connection.endpoint.url)
        await left.leave()

    async def _log_in(self, stale: Metadata, timeout_s: float) -> None:
        """Get a token, unless another task replaced the stale one meanwhile. Raises ConfigurationError when etcd refuses us."""
        if not self._settings.username:
            raise no_login_known()
        async with self._login_lock:
            if self._metadata() != stale:
                return
            request = etcd_pb2.AuthenticateRequest(name=self._settings.username, password=self._settings.password)
            try:
                self._token = (await self.call(AUTHENTICATE, request, timeout_s=timeout_s)).token
            except PreconditionError:
                self._token = ""
                get_logger().warning("store_login_ignored", reason="authentication is not enabled in this etcd")

    def _metadata(self) -> Metadata:
        return (*_LEADER_REQUIRED, ("token", self._token)) if self._token else _LEADER_REQUIRED


async def _call_unary(
    connection: Connection, method: Method[Q, R], request: Q, metadata: Metadata, timeout_s: float
) -> R:
    if not method.is_repeatable and not await _is_connected(connection.channel, timeout_s):
        raise not_connected(connection.endpoint.url)
    call = connection.channel.unary_unary(
        method.path,
        request_serializer=method.request_type.SerializeToString,
        response_deserializer=method.response_type.FromString,
    )
    try:
        response: R = await call(request, timeout=timeout_s, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise judge(error.code(), error.details() or "") from error
    return response


async def _call_streamed(
    connection: Connection, method: Method[Q, R], request: Q, metadata: Metadata, timeout_s: float
) -> R:
    call = open_stream(connection, method, metadata, timeout_s)
    try:
        await call.write(request)
        response = await call.read()
    except grpc.aio.AioRpcError as error:
        raise judge(error.code(), error.details() or "") from error
    except asyncio.InvalidStateError as error:
        raise no_stream_answer(connection.endpoint.url) from error
    finally:
        call.cancel()
    if not isinstance(response, method.response_type):
        raise no_stream_answer(connection.endpoint.url)
    return response


def open_stream(
    connection: Connection, method: Method[Q, R], metadata: Metadata, timeout_s: float | None = None
) -> grpc.aio.StreamStreamCall[Q, R]:
    """Open a stream both ways. Only a stream that shows signs of life, such as a watch, may go without timeout_s."""
    call: grpc.aio.StreamStreamCall[Q, R] = connection.channel.stream_stream(
        method.path,
        request_serializer=method.request_type.SerializeToString,
        response_deserializer=method.response_type.FromString,
    )(None, timeout=timeout_s, metadata=metadata)
    return call


async def _is_connected(channel: grpc.aio.Channel, timeout_s: float) -> bool:
    """Whether the channel is ready, after waiting for it for timeout_s at most: only then can a call have reached the member."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                if state in {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}:
                    return False
                await channel.wait_for_state_change(state)
            return True
    return False


def _open_channel(endpoint: Endpoint) -> grpc.aio.Channel:
    if endpoint.credentials is None:
        return grpc.aio.insecure_channel(endpoint.target, options=_OPTIONS)
    return grpc.aio.secure_channel(endpoint.target, endpoint.credentials, options=_OPTIONS)


def _is_task_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
