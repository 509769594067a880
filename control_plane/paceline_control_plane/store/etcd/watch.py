"""Watches that outlive connections: every change exactly once, whatever members do.

A watch resumes from the last revision whose events were handed on, never from a header's: a header may be ahead of the events that
are still to come. It asks for that revision once more and drops what it has, so that a compaction of anything later than what was
seen is reported instead of losing a deletion (etcd before 3.5.16 forgets deletions at the very revision of a compaction).
Progress requests serve as signs of life only.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc
import grpc.aio

from paceline.etcd.v1 import etcd_pb2
from paceline_control_plane.store.etcd.client import Connection, EtcdClient, Metadata, open_stream
from paceline_control_plane.store.etcd.faults import CallFault, Verdict, judge, no_stream_answer
from paceline_control_plane.store.etcd.methods import RANGE, WATCH
from paceline_control_plane.store.etcd.ranges import prefix_range, to_event
from paceline_control_plane.store.interface import (
    CompactedError,
    Event,
    EventBatch,
    StoreClosedError,
    StoreUnavailableError,
)
from paceline_services.backoff import Backoff
from paceline_services.ids import Revision
from paceline_services.logs import get_logger

PROBE_INTERVAL_S = 0.8
"""Silence after which a sign of life is asked for."""
NUM_PROBES = 3
"""Silent intervals after which the member counts as hung: 2.4 s."""
_PAUSES = Backoff(first_s=0.05, limit_s=1.0)
_PROGRESS = etcd_pb2.WatchRequest(progress_request=etcd_pb2.WatchProgressRequest())

WatchCall = grpc.aio.StreamStreamCall[etcd_pb2.WatchRequest, etcd_pb2.WatchResponse]


async def watch_prefix(client: EtcdClient, prefix: str, after: Revision) -> AsyncGenerator[EventBatch, None]:
    """Every change under prefix later than after (Store.watch), until the client is closed."""
    failures = 0
    while True:
        try:
            async with aclosing(_watch_once(client, prefix, after)) as batches:
                async for batch in batches:
                    failures = 0
                    after = batch.revision
                    yield batch
        except StoreClosedError:
            return
        except (CallFault, StoreUnavailableError) as error:
            failures += 1
            get_logger().info("store_watch_resumed", prefix=prefix, after=after, failures=failures, cause=str(error))
        await asyncio.sleep(_PAUSES.pause_s(failures))


async def _watch_once(client: EtcdClient, prefix: str, after: Revision) -> AsyncGenerator[EventBatch, None]:
    """Changes as long as one stream lives; when it breaks, the client is made ready for the next one and CallFault is raised."""
    metadata = await client.metadata()
    connection = client.connection
    try:
        async with connection.used(), aclosing(_read_batches(client, connection, metadata, prefix, after)) as batches:
            async for batch in batches:
                yield batch
    except CallFault as fault:
        await client.recover(fault, connection, metadata)
        raise


async def _read_batches(
    client: EtcdClient, connection: Connection, metadata: Metadata, prefix: str, after: Revision
) -> AsyncGenerator[EventBatch, None]:
    """Changes from one stream, with fragments put together again."""
    call = open_stream(connection, WATCH, metadata)
    try:
        await _write(call, _create_request(prefix, after))
        events: list[Event] = []
        while True:
            response = await _read(call, connection.endpoint.url)
            await _check_alive(client, response, prefix, after)
            events.extend(to_event(event) for event in response.events if event.kv.mod_revision > after)
            if events and response.events and not response.fragment:
                after = events[-1].revision
                yield EventBatch(after, tuple(events))
                events.clear()
    finally:
        call.cancel()


def _create_request(prefix: str, after: Revision) -> etcd_pb2.WatchRequest:
    key, range_end = prefix_range(prefix)
    # Nothing ever happened at revision 1, and 0 would mean "from now on".
    create = etcd_pb2.WatchCreateRequest(key=key, range_end=range_end, start_revision=max(after, 1), fragment=True)
    return etcd_pb2.WatchRequest(create_request=create)


async def _check_alive(client: EtcdClient, response: etcd_pb2.WatchResponse, prefix: str, after: Revision) -> None:
    """Raise CompactedError when history after `after` is not to be had, CallFault when the watch ended for another reason."""
    if response.compact_revision:
        raise CompactedError(Revision(response.compact_revision))
    if response.canceled:
        if not _is_about_rights(response.cancel_reason):
            raise judge(grpc.StatusCode.UNAVAILABLE, response.cancel_reason)
        # Watches call an old token "permission denied" too. A read tells the two apart: it logs in anew, or raises.
        await _read_revision(client, prefix)
        raise CallFault(grpc.StatusCode.UNAUTHENTICATED, response.cancel_reason, Verdict.NEEDS_LOGIN)
    if response.created and response.header.revision < after:
        # A member that lags behind, or a store that was restored from a backup: its revisions tell of another past.
        newest = await _read_revision(client, prefix)
        if newest < after:
            get_logger().warning("store_history_replaced", prefix=prefix, seen=after, newest=newest)
            raise CompactedError(newest)


def _is_about_rights(reason: str) -> bool:
    return any(text in reason for text in ("permission denied", "auth token", "auth store is old"))


async def _read_revision(client: EtcdClient, prefix: str) -> Revision:
    key, range_end = prefix_range(prefix)
    answer = await client.call(RANGE, etcd_pb2.RangeRequest(key=key, range_end=range_end, limit=1, keys_only=True))
    return Revision(answer.header.revision)


async def _read(call: WatchCall, url: str) -> etcd_pb2.WatchResponse:
    """The next response; asks for a sign of life in silence and raises CallFault when none comes."""
    reading = asyncio.ensure_future(call.read())
    try:
        for num_silent in range(1, NUM_PROBES + 1):
            await asyncio.wait({reading}, timeout=PROBE_INTERVAL_S)
            if reading.done():
                return _response_of(reading, url)
            if num_silent < NUM_PROBES:
                await _write(call, _PROGRESS)
    finally:
        reading.cancel()
        reading.add_done_callback(_forget)
    raise judge(grpc.StatusCode.DEADLINE_EXCEEDED, f"{url} is silent for {NUM_PROBES * PROBE_INTERVAL_S:.1f} s")


def _response_of(
    reading: "asyncio.Future[etcd_pb2.WatchResponse | grpc.aio.EOFType]", url: str
) -> etcd_pb2.WatchResponse:
    # Cancelled without our asking: the channel was closed.
    if reading.cancelled():
        raise no_stream_answer(url)
    try:
        response = reading.result()
    except grpc.aio.AioRpcError as error:
        raise judge(error.code(), error.details() or "") from error
    if not isinstance(response, etcd_pb2.WatchResponse):
        raise no_stream_answer(url)
    return response


async def _write(call: WatchCall, request: etcd_pb2.WatchRequest) -> None:
    try:
        async with asyncio.timeout(PROBE_INTERVAL_S):
            await call.write(request)
    except asyncio.CancelledError as error:
        # grpc says so too when the channel was closed, without anybody having cancelled us.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise judge(grpc.StatusCode.UNAVAILABLE, "the channel was closed") from error
    except grpc.aio.AioRpcError as error:
        raise judge(error.code(), error.details() or "") from error
    except (TimeoutError, asyncio.InvalidStateError) as error:
        raise judge(grpc.StatusCode.UNAVAILABLE, f"the watch stream takes no more requests: {error!r}") from error


def _forget(reading: "asyncio.Future[etcd_pb2.WatchResponse | grpc.aio.EOFType]") -> None:
    """Take note of an outcome that nobody waits for any more."""
    if not reading.cancelled():
        reading.exception()
