"""The pure parts of the store over etcd: endpoints, ranges of keys, and what a failure means."""

from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.etcd.v1 import etcd_pb2
from paceline_control_plane.store.etcd.faults import Verdict, judge, not_connected, to_error
from paceline_control_plane.store.etcd.ranges import next_key, prefix_range, to_entry, to_event
from paceline_control_plane.store.etcd.settings import EtcdSettings, parse_endpoints
from paceline_control_plane.store.interface import Entry, Event, LeaseExpiredError, LeaseId, StoreUnavailableError
from paceline_services.errors import (
    ConfigurationError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    PacelineError,
)
from paceline_services.ids import Revision

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("url", "target", "is_secure"),
    [
        ("http://127.0.0.1:2379", "127.0.0.1:2379", False),
        ("https://etcd.example:4001/", "etcd.example:4001", True),
        ("http://etcd.example", "etcd.example:2379", False),
        ("http://[::1]:2379", "[::1]:2379", False),
    ],
)
def test_endpoint_url_is_parsed(url: str, target: str, is_secure: bool) -> None:
    (endpoint,) = parse_endpoints(EtcdSettings((url,)))
    assert (endpoint.url, endpoint.target, endpoint.credentials is not None) == (url, target, is_secure)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:2379",
        "etcd",
        "ftp://a:1",
        "http://",
        "http://a:port",
        "http://a:99999",
        "http://u:p@a:1",
        "http://a:1/x",
    ],
)
def test_unusable_endpoint_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"must look like http://host:2379"):
        parse_endpoints(EtcdSettings((url,)))


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--etcd"):
        parse_endpoints(EtcdSettings(()))
    with pytest.raises(ConfigurationError, match="both"):
        parse_endpoints(EtcdSettings(("https://a",), cert_file=tmp_path / "cert"))
    with pytest.raises(ConfigurationError, match="No such file"):
        parse_endpoints(EtcdSettings(("https://a",), ca_file=tmp_path / "ca"))


def test_password_is_not_shown() -> None:
    assert "secret" not in repr(EtcdSettings(("http://a",), username="u", password="secret"))


@given(prefix=st.text(), key=st.text())
def test_range_of_a_prefix_holds_exactly_what_begins_with_it(prefix: str, key: str) -> None:
    start, end = prefix_range(prefix)
    raw = key.encode()
    is_inside = raw >= start and (end == b"\0" or raw < end) if raw else not prefix
    assert is_inside == (key.startswith(prefix) if prefix else True)


@given(key=st.text(min_size=1), other=st.text(min_size=1))
def test_nothing_lies_between_a_key_and_the_next(key: str, other: str) -> None:
    assert not key.encode() < other.encode() < next_key(key.encode())


def test_events_become_values() -> None:
    put = etcd_pb2.Event(kv=etcd_pb2.KeyValue(key=b"/a", value=b"v", create_revision=2, mod_revision=3, lease=4))
    entry = Entry("/a", b"v", Revision(2), Revision(3), LeaseId(4))
    assert to_entry(put.kv) == entry
    assert to_event(put) == Event("/a", entry, Revision(3))
    deletion = etcd_pb2.Event(type=etcd_pb2.EVENT_TYPE_DELETE, kv=etcd_pb2.KeyValue(key=b"/a", mod_revision=5))
    assert to_event(deletion) == Event("/a", None, Revision(5))


def test_foreign_key_that_is_no_text_is_named() -> None:
    with pytest.raises(InternalError, match="no UTF-8"):
        to_entry(etcd_pb2.KeyValue(key=b"\xff"))


@pytest.mark.parametrize(
    ("code", "details", "verdict"),
    [
        (Code.UNAVAILABLE, "etcdserver: no leader", Verdict.NOT_DONE),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Verdict.NOT_DONE),
        (Code.UNAVAILABLE, "etcdserver: request timed out", Verdict.UNCERTAIN),
        (Code.UNAVAILABLE, "etcdserver: leader changed", Verdict.UNCERTAIN),
        (Code.UNAVAILABLE, "Socket closed", Verdict.UNCERTAIN),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Verdict.UNCERTAIN),
        (Code.UNKNOWN, "raft: stopped", Verdict.UNCERTAIN),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", Verdict.NEEDS_LOGIN),
        (Code.INVALID_ARGUMENT, "etcdserver: user name is empty", Verdict.NEEDS_LOGIN),
        (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Verdict.NEEDS_LOGIN),
        (Code.NOT_FOUND, "etcdserver: requested lease not found", Verdict.REFUSED),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", Verdict.REFUSED),
        (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Verdict.REFUSED),
    ],
)
def test_failure_is_judged_by_what_it_says_of_the_request(code: Code, details: str, verdict: Verdict) -> None:
    assert judge(code, details).verdict is verdict


def test_call_without_connection_was_surely_not_made() -> None:
    assert not_connected("http://a").verdict is Verdict.NOT_DONE


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (Code.NOT_FOUND, "etcdserver: requested lease not found", LeaseExpiredError),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", StoreUnavailableError),
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max", OverloadedError),
        (Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password", ConfigurationError),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large", InvalidRequestError),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", ConfigurationError),
        (Code.UNIMPLEMENTED, "unknown service etcdserverpb.KV", ConfigurationError),
        (Code.DATA_LOSS, "etcdserver: corrupt", InternalError),
    ],
)
def test_definite_answer_becomes_an_error_of_ours(code: Code, details: str, kind: type[PacelineError]) -> None:
    assert type(to_error(judge(code, details))) is kind
