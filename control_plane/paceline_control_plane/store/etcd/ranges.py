"""Keys, entries and events between etcd's bytes and our values."""

from paceline.etcd.v1 import etcd_pb2
from paceline_control_plane.store.interface import Entry, Event, LeaseId
from paceline_services.errors import InternalError
from paceline_services.ids import Revision


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """First key, and key after the last one, of all keys that begin with prefix; two zero bytes mean every key."""
    if not prefix:
        return b"\0", b"\0"
    start = prefix.encode()
    # The last byte of UTF-8 is never 0xff.
    return start, start[:-1] + bytes((start[-1] + 1,))


def next_key(key: bytes) -> bytes:
    """The smallest key after this one."""
    return key + b"\0"


def to_entry(found: etcd_pb2.KeyValue) -> Entry:
    return Entry(
        key=_to_text(found.key),
        value=found.value,
        create_revision=Revision(found.create_revision),
        mod_revision=Revision(found.mod_revision),
        lease=LeaseId(found.lease),
    )


def to_event(event: etcd_pb2.Event) -> Event:
    is_deletion = event.type == etcd_pb2.EVENT_TYPE_DELETE
    return Event(
        key=_to_text(event.kv.key),
        entry=None if is_deletion else to_entry(event.kv),
        revision=Revision(event.kv.mod_revision),
    )


def _to_text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise InternalError(f"etcd holds the key {key!r}, which is no UTF-8: use a namespace of your own") from error
