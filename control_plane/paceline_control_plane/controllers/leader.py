"""Carries out what changes decides, for as long as this replica leads: woken by a new view or by a time, never polling.

Every write is guarded twice: by the leader's key, so that a leader that was replaced changes nothing, and by the revision that the
decision was made from. A guard that fails only means that the view is old: the next one decides again.
"""

import asyncio
import time
from collections.abc import Callable

from paceline_control_plane.controllers.changes import next_changes, see
from paceline_control_plane.controllers.decision import Assign, Change, LearnModel, Unassign
from paceline_control_plane.controllers.memory import Memory
from paceline_control_plane.controllers.patience import Patience
from paceline_control_plane.election.election import Leadership
from paceline_control_plane.keys import Keys
from paceline_control_plane.records import encode_assignment, encode_model
from paceline_control_plane.store.interface import Delete, ModifiedAt, Put, Store, StoreUnavailableError
from paceline_control_plane.topology.feed import ClusterFeed
from paceline_control_plane.topology.view import ClusterView
from paceline_services.backoff import Backoff
from paceline_services.domain.instances import Assignment, ShardPlacement
from paceline_services.logs import get_logger


class Leader:
    """Reconciles one namespace."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        feed: ClusterFeed,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
        *,
        may_hand_off: bool = False,
    ) -> None:
        self._store = store
        self._keys = keys
        self._feed = feed
        self._patience = patience
        self._clock = clock
        self._may_hand_off = may_hand_off

    async def lead(self, leadership: Leadership) -> None:
        """Reconcile until cancelled, or until the view shows that the leader's key is no longer ours."""
        view = await self._feed.until(lambda view: view.leader_revision == leadership.revision)
        memory = Memory(self._clock())
        failures = 0
        while view.leader_revision == leadership.revision:
            now = self._clock()
            memory = see(memory, view, now, self._patience)
            decision = next_changes(view, now, memory, self._patience, may_hand_off=self._may_hand_off)
            wake_at = decision.wake_at
            try:
                for change in decision.changes:
                    await self._write(change, leadership)
                failures = 0
            except StoreUnavailableError as error:
                failures += 1
                get_logger().warning("reconcile_failed", failures=failures, error=str(error))
                wake_at = self._clock() + Backoff().pause_s(failures)
            view = await self._next_view(view, wake_at)

    async def _next_view(self, view: ClusterView, wake_at: float | None) -> ClusterView:
        """The next view, or the same one once it is wake_at."""
        timeout_s = None if wake_at is None else max(0.0, wake_at - self._clock())
        try:
            async with asyncio.timeout(timeout_s):
                return await self._feed.changed(view)
        except TimeoutError:
            return view

    async def _write(self, change: Change, leadership: Leadership) -> None:
        key, put = self._encode(change)
        guards = (leadership.guard, ModifiedAt(key, change.over))
        outcome = await self._store.transact(guards, [put or Delete(key)])
        log = get_logger(revision=outcome.revision, made=outcome.succeeded)
        match change:
            case Assign(assignment):
                nodes = ", ".join(_describe_place(assignment, shard) for shard in assignment.shards)
                log.info(
                    "instance_assigned" if nodes else "instance_refused",
                    instance_id=assignment.instance_id,
                    epoch=assignment.epoch,
                    nodes=nodes,
                    refusal=assignment.refusal,
                    num_failures=assignment.num_failures,
                    last_failure=assignment.last_failure,
                )
            case Unassign(instance_id):
                log.info("instance_unassigned", instance_id=instance_id)
            case LearnModel(model):
                log.info("model_learned", model_id=model.source.model_id, location=model.source.location)

    def _encode(self, change: Change) -> tuple[str, Put | None]:
        """The key that a change touches and what to put there; None deletes it."""
        match change:
            case Assign(assignment):
                key = self._keys.assignment(assignment.instance_id)
                return key, Put(key, encode_assignment(assignment))
            case LearnModel(model):
                key = self._keys.model(model.source.model_id)
                return key, Put(key, encode_model(model))
            case Unassign(instance_id):
                return self._keys.assignment(instance_id), None


def _describe_place(assignment: Assignment, shard: ShardPlacement) -> str:
    rank = f"/{shard.rank}" if assignment.tensor_size > 1 else ""
    return f"{shard.node_id}{rank}[{shard.start_layer},{shard.end_layer})"
