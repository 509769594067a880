"""What a store that lost its contents, or a part of its history, gets back from the nodes: the records of what they run.

The store's contents have a random name. A node that joins tells the name, the newest revision and the records of its last orders; where the
name is another one, or the store is older than that revision, records that are missing or of a lower epoch are written back as they
were. So what runs goes on, at its epoch. Many nodes hand back the same record: the first one wins.

A store that went back under its name gets another name, so that nodes that come later are known to have seen more than it has. What was
removed after the backup was made is wanted again then, as is what a node hands back that was away for longer than the store is old.
"""

import secrets
from dataclasses import dataclass

from paceline_control_plane.keys import Keys
from paceline_control_plane.records import (
    RecordError,
    decode_assignment,
    decode_spec,
    encode_assignment,
    encode_spec,
)
from paceline_control_plane.store.interface import CreatedAt, Entry, ModifiedAt, Put, Store
from paceline_services.domain.instances import InstanceRecord
from paceline_services.domain.nodes import LastOrders
from paceline_services.errors import UnavailableError
from paceline_services.ids import Epoch, Revision
from paceline_services.logs import get_logger

_NUM_TRIES = 5


@dataclass(frozen=True, slots=True)
class StoreName:
    """The name of the store's contents, the revision that made it, and the store's own revision when it was read."""

    store_id: str
    made_at: Revision
    revision: Revision


async def adopt(store: Store, keys: Keys, told: LastOrders | None) -> str:
    """Write back what the store lost of a node's last orders; returns the store's name."""
    name = await read_name(store, keys)
    if told is None or not has_lost(name, told):
        return name.store_id
    if name.store_id == told.store_id:
        await store.transact([ModifiedAt(keys.store, name.made_at)], [Put(keys.store, _make_name())])
        name = await read_name(store, keys)
    for record in told.records:
        await _write_back(store, keys, record)
    return name.store_id


async def read_name(store: Store, keys: Keys) -> StoreName:
    """The name of the store's contents; a store without one gets it."""
    for _ in range(_NUM_TRIES):
        snapshot = await store.list(keys.store)
        for entry in snapshot.entries:
            if entry.key == keys.store:
                return StoreName(entry.value.decode(errors="replace"), entry.mod_revision, snapshot.revision)
        await store.transact([CreatedAt(keys.store, Revision(0))], [Put(keys.store, _make_name())])
    raise UnavailableError("the store's name is deleted again and again: something else writes below Paceline's keys")


def has_lost(name: StoreName, told: LastOrders) -> bool:
    """Whether the store is not the one that a node has its orders from, or lost a part of what it held then."""
    if not told.store_id:
        return False
    return name.store_id != told.store_id or name.revision < told.revision


def is_lost(record: InstanceRecord, spec: Entry | None, assignment: Entry | None) -> bool:
    """Whether a record must be written back over what the store holds. Raises RecordError for what cannot be read."""
    if spec and decode_spec(spec.value).source.model_id != record.spec.source.model_id:
        return False  # the id means something else by now
    if assignment is None:
        return True
    stored = decode_assignment(assignment.value)
    return (stored.epoch or Epoch(assignment.mod_revision)) < record.assignment.epoch


async def _write_back(store: Store, keys: Keys, record: InstanceRecord) -> None:
    instance_id = record.spec.instance_id
    spec_key, assignment_key = keys.spec(instance_id), keys.assignment(instance_id)
    spec, assignment = await store.get(spec_key), await store.get(assignment_key)
    try:
        if not is_lost(record, spec, assignment):
            return
    except RecordError as error:
        get_logger().error("record_not_adopted", instance_id=instance_id, error=str(error))
        return
    guards = [
        ModifiedAt(key, entry.mod_revision if entry else Revision(0))
        for key, entry in ((spec_key, spec), (assignment_key, assignment))
    ]
    puts = [Put(spec_key, encode_spec(record.spec)), Put(assignment_key, encode_assignment(record.assignment))]
    outcome = await store.transact(guards, puts)
    get_logger().warning(
        "record_adopted", instance_id=instance_id, epoch=record.assignment.epoch, made=outcome.succeeded
    )


def _make_name() -> bytes:
    return secrets.token_hex(8).encode()
