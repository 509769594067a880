"""Wishes of clients: which instances are wanted. Any replica stores them; the leader sees to them.

A wish is checked before it is stored, and storing it twice stores it once: every write is guarded by what was read before.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from paceline_control_plane.keys import Keys
from paceline_control_plane.records import decode_spec, encode_spec
from paceline_control_plane.store.interface import CreatedAt, Delete, ModifiedAt, Put, Store
from paceline_control_plane.topology.feed import ClusterFeed
from paceline_control_plane.topology.observe import known_models
from paceline_control_plane.topology.view import ClusterView
from paceline_services.domain.instances import InstanceSpec
from paceline_services.domain.models import NodeModelState
from paceline_services.errors import ConflictError, NotFoundError, UnavailableError
from paceline_services.ids import InstanceId, ModelId, Revision, parse_instance_id, parse_model_id

_NUM_TRIES = 5


class Wishes:
    """Stores and deletes specs of one namespace."""

    def __init__(self, store: Store, keys: Keys, feed: ClusterFeed) -> None:
        self._store = store
        self._keys = keys
        self._feed = feed

    async def place(self, wish: InstanceSpec) -> tuple[InstanceSpec, bool]:
        """The wish as stored, and whether it is new.

        Without an instance id, an instance of the model that is wanted already is the answer. Raises InvalidRequestError for
        unusable ids, ConflictError when instance id or model id mean something else, NotFoundError MODEL_NOT_FOUND.
        """
        parse_model_id(wish.source.model_id)
        if wish.instance_id:
            parse_instance_id(wish.instance_id)
        check_model_is_known(self._feed.current, wish)
        for _ in range(_NUM_TRIES):
            wanted = await self._wanted()
            if found := find_same(wanted, wish):
                return found, False
            spec = replace(
                wish,
                instance_id=wish.instance_id or name_instance(wish.source.model_id, wanted),
                create_time=datetime.now(UTC),
            )
            key = self._keys.spec(spec.instance_id)
            outcome = await self._store.transact([CreatedAt(key, Revision(0))], [Put(key, encode_spec(spec))])
            if outcome.succeeded:
                return spec, True
        raise UnavailableError(f"too many clients place {wish.source.model_id} at once: try again")

    async def remove(self, instance_id: InstanceId) -> None:
        """End an instance. Raises NotFoundError INSTANCE_NOT_FOUND."""
        key = self._keys.spec(instance_id)
        entry = await self._store.get(key)
        if entry is None:
            names = ", ".join((await self._wanted()).keys()) or "none"
            raise NotFoundError(
                f"there is no instance {instance_id!r}; there are: {names}", reason="INSTANCE_NOT_FOUND"
            )
        await self._store.transact([ModifiedAt(key, entry.mod_revision)], [Delete(key)])

    async def _wanted(self) -> Mapping[InstanceId, InstanceSpec]:
        """Every spec, read from the store itself: this replica's view may be older than a client's last call."""
        snapshot = await self._store.list(self._keys.specs)
        specs = (decode_spec(entry.value) for entry in snapshot.entries)
        return {spec.instance_id: spec for spec in specs}


def check_model_is_known(view: ClusterView, wish: InstanceSpec) -> None:
    """Raise NotFoundError MODEL_NOT_FOUND when neither the wish nor the cluster tells where the model is."""
    known = known_models(view)
    if wish.source.location or wish.source.model_id in known or _is_being_fetched(view, wish.source.model_id):
        return
    names = ", ".join(known) or "none"
    raise NotFoundError(
        f"model {wish.source.model_id!r} is not known: give its location (a folder, a GGUF file or a hub id); "
        f"known models: {names}",
        reason="MODEL_NOT_FOUND",
        model_id=wish.source.model_id,
    )


def find_same(wanted: Mapping[InstanceId, InstanceSpec], wish: InstanceSpec) -> InstanceSpec | None:
    """The stored wish that this one repeats.

    Raises ConflictError INSTANCE_EXISTS when its instance id means another wish, MODEL_ID_TAKEN when its model id means a model
    from another location.
    """
    _check_location(wanted, wish)
    if wish.instance_id:
        found = wanted.get(wish.instance_id)
        if found and not _is_same(found, wish):
            raise ConflictError(
                f"instance {wish.instance_id!r} exists and is another one (of {found.source.model_id}): "
                "remove it or choose another id",
                reason="INSTANCE_EXISTS",
                instance_id=wish.instance_id,
            )
        return found
    same_model = [spec for spec in wanted.values() if spec.source.model_id == wish.source.model_id]
    return min(same_model, key=lambda spec: spec.instance_id, default=None)


def name_instance(model_id: ModelId, wanted: Mapping[InstanceId, InstanceSpec]) -> InstanceId:
    """The id of a model's first instance: made from the model id alone, so that two who want it at once want the same one."""
    name = re.sub(r"[^a-z0-9]+", "-", model_id.split("/")[-1].lower()).strip("-")[:50].strip("-") or "model"
    holder = wanted.get(InstanceId(name))
    if holder is None or holder.source.model_id == model_id:
        return InstanceId(name)
    return InstanceId(f"{name}-{hashlib.sha256(model_id.encode()).hexdigest()[:6]}")


def _is_same(stored: InstanceSpec, wish: InstanceSpec) -> bool:
    source = stored.source if not wish.source.location else wish.source
    return replace(wish, source=source, create_time=stored.create_time) == stored and (
        wish.source.model_id == stored.source.model_id
    )


def _check_location(wanted: Mapping[InstanceId, InstanceSpec], wish: InstanceSpec) -> None:
    for spec in wanted.values():
        is_other = spec.source.location and wish.source.location and spec.source.location != wish.source.location
        if is_other and spec.source.model_id == wish.source.model_id:
            raise ConflictError(
                f"model id {wish.source.model_id!r} means {spec.source.location} while instance {spec.instance_id!r} is "
                "wanted: choose another model id or remove that instance",
                reason="MODEL_ID_TAKEN",
                model_id=wish.source.model_id,
            )


def _is_being_fetched(view: ClusterView, model_id: ModelId) -> bool:
    return bool(view.nodes_with(model_id, NodeModelState.FETCHING))
