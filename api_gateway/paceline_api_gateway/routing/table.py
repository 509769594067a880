"""The cluster as last seen, kept fresh by a watch; it outlives the control plane."""

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from paceline_api_gateway.routing.affinity import PrefixHash, PrefixMemory, holder_of
from paceline_api_gateway.routing.choice import (
    Absent,
    Choice,
    Coming,
    Search,
    Traffic,
    choose_instance,
    choose_retry_s,
    explain_absence,
    is_hopeless,
    leave_out_failed,
    list_active,
    list_fitting,
    list_lost,
    list_models,
)
from paceline_api_gateway.routing.load import SeenLoad, add_loads, follow_loads
from paceline_api_gateway.routing.paths import list_paths
from paceline_services.clients import ControlPlaneClient
from paceline_services.domain.instances import Instance, InstanceSpec
from paceline_services.domain.models import ModelSource
from paceline_services.domain.nodes import ClusterState
from paceline_services.errors import NotFoundError, UnavailableError
from paceline_services.ids import Epoch, InstanceId, ModelId

ANSWER_TIMEOUT_S = 1.0
"""Time in seconds after which a control plane that does not answer counts as away."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long requests wait for their model, in seconds; see GatewaySettings."""

    wait_s: float = 120.0
    recovery_s: float = 30.0


class RouteTable:
    """Knows the instances, how busy each one is, and which prompts this gateway sent it."""

    def __init__(self, client: ControlPlaneClient, *, place_on_demand: bool, patience: Patience) -> None:
        self._client = client
        self._place_on_demand = place_on_demand
        self.patience = patience
        self._state: ClusterState | None = None
        self._seen_time = 0.0
        self._lost: dict[ModelId, float] = {}
        self._standstills: dict[InstanceId, tuple[Epoch, float, float]] = {}
        """Epoch, progress and time of the loop's clock since which an instance that is called hopeless has been so far."""
        self._changed = asyncio.Condition()
        self._in_flight: Counter[InstanceId] = Counter()
        self._reported: Mapping[InstanceId, SeenLoad] = {}
        self._turns: dict[InstanceId, int] = {}
        self._turn = itertools.count(1)
        self._prefixes = PrefixMemory()

    @property
    def state(self) -> ClusterState:
        """The cluster as last seen. Raises UnavailableError when it never was."""
        if self._state is None:
            raise UnavailableError("the control plane has not answered yet: try again", reason="CONTROL_PLANE_DOWN")
        return self._state

    @property
    def age_s(self) -> float | None:
        """Seconds since the control plane was last heard of; None when it never was."""
        return None if self._state is None else time.monotonic() - self._seen_time

    @property
    def has_state(self) -> bool:
        return self._state is not None

    async def read_state(self) -> ClusterState:
        """The cluster as the control plane tells it now; as last seen when it does not answer at once."""
        return await self._ask_control_plane() or self.state

    async def check_control_plane(self) -> bool:
        """Whether a replica answers at once."""
        return await self._ask_control_plane() is not None

    async def _ask_control_plane(self) -> ClusterState | None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                state = await self._client.get_cluster_state()
        except (TimeoutError, UnavailableError):
            return None
        self._seen_time = time.monotonic()
        return state

    async def follow(self) -> None:
        """Keep the table fresh, for ever."""
        async for state in self._client.watch_cluster_state():
            async with self._changed:
                known = {one.spec.instance_id for one in state.instances}
                self._turns = {name: turn for name, turn in self._turns.items() if name in known}
                self._reported = follow_loads(self._reported, state, self._in_flight)
                self._note_losses(state)
                self._state = state
                self._seen_time = time.monotonic()
                self._changed.notify_all()

    @property
    def addresses(self) -> frozenset[str]:
        """Where all instances that answer can be asked."""
        return frozenset(path.address for one in self.state.instances if one.head_address for path in list_paths(one))

    async def wait_for_change(self, timeout_s: float) -> None:
        """Return when the cluster changes, at the latest after a time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait()

    def has_untried(self, search: Search) -> bool:
        """Whether an instance that will do answers at a head that has not failed the request."""
        return any(one.head_address not in search.failed for one in list_active(self.state, search))

    async def find(self, search: Search, until: float | None) -> Choice:
        """An ACTIVE instance, waited for and placed if need be, until a time of the loop's clock (None: without end).

        Raises NotFoundError for an unknown model (or one without instance, where placing on demand is off) and UnavailableError
        when it did not come up in time or cannot.
        """
        waiting = Coming("the control plane has not answered yet")
        try:
            async with asyncio.timeout_at(until):
                while True:
                    async with self._changed:
                        found = self._look(search)
                        if isinstance(found, Choice):
                            return found
                        if isinstance(found, Coming):
                            waiting = found
                            await self._wait_in_hope(search)
                            continue
                    await self._place(search.model_id)
        except TimeoutError as error:
            raise _not_ready(search.model_id, self.patience.wait_s, waiting) from error

    def remember(self, prefixes: tuple[PrefixHash, ...], instance: Instance) -> None:
        """The instance computes a prompt with these prefixes."""
        self._prefixes.remember(prefixes, holder_of(instance))

    @contextmanager
    def count(self, instance: Instance, num_sequences: int) -> Iterator[None]:
        """Count a request's sequences in flight on the instance."""
        name = instance.spec.instance_id
        self._in_flight[name] += num_sequences
        try:
            yield
        finally:
            self._in_flight[name] -= num_sequences
            if not self._in_flight[name]:
                del self._in_flight[name]

    def _look(self, search: Search) -> Choice | Coming | Absent:
        """What there is for a request now; raises what find raises."""
        if self._state is None:
            return Coming("the control plane has not answered yet")
        if active := list_active(self._state, search):
            return self._choose(leave_out_failed(active, search.failed), search.prefixes)
        has_hope = self._hope_until(search, self._state) > _now()
        try:
            absence = explain_absence(self._state, search)
        except (NotFoundError, UnavailableError) as error:
            if has_hope:
                return Coming(error.message)
            raise
        return Coming("the cluster is finding its state again") if has_hope and isinstance(absence, Absent) else absence

    def _hope_until(self, search: Search, state: ClusterState) -> float:
        """Time of the loop's clock up to which a model that is not coming is waited for all the same: one that was lost with the
        cluster's state, and for an answer that has begun one that moved not long ago."""
        since = [self._lost.get(search.model_id, -math.inf)]
        if search.has_begun:
            names = [one.spec.instance_id for one in list_fitting(state, search)]
            since += [self._standstills[name][-1] for name in names if name in self._standstills]
        return max(since) + self.patience.recovery_s

    async def _wait_in_hope(self, search: Search) -> None:
        """Return when the cluster changes, or when hope for the model ends."""
        until = self._hope_until(search, self._state) if self._state else -math.inf
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until if until > _now() else None):
                await self._changed.wait()

    def _note_losses(self, state: ClusterState) -> None:
        """Remember since when models are missing, and since when instances without hope stand still."""
        now, models = _now(), list_models(state)
        before, self._standstills = self._standstills, {}
        for one in filter(is_hopeless, state.instances):  # FAILED ones are tried again
            name, point = one.spec.instance_id, (one.epoch, one.progress)
            known = before.get(name)
            self._standstills[name] = known if known and known[:2] == point else (*point, now)
        recent = now - self.patience.recovery_s
        self._lost = {name: since for name, since in self._lost.items() if since > recent and not models.get(name)}
        if self._state is not None:
            self._lost |= dict.fromkeys(list_lost(self._state, state), now)

    def _choose(self, active: Sequence[Instance], prefixes: tuple[PrefixHash, ...]) -> Choice:
        knowing = self._prefixes.find(prefixes, [holder_of(one) for one in active])
        traffic = Traffic(add_loads(self._reported, self._in_flight), self._turns)
        choice = choose_instance(active, {name for name, _ in knowing}, traffic)
        name = choice.instance.spec.instance_id
        self._turns[name] = next(self._turn)
        return choice

    async def _place(self, model_id: ModelId) -> None:
        if not self._place_on_demand:
            raise NotFoundError(f"No instance found for model {model_id}: place it first", reason="INSTANCE_NOT_FOUND")
        seen = self.state.revision
        await self._client.place_instance(InstanceSpec(InstanceId(""), ModelSource(model_id)))
        async with self._changed:
            await self._changed.wait_for(lambda: self._state is not None and self._state.revision != seen)


def _not_ready(model_id: ModelId, waited_s: float, coming: Coming) -> UnavailableError:
    retry_s = choose_retry_s(coming.progress)
    message = f"{model_id} is not ready after {waited_s:.0f} s: {coming.message}; try again in {retry_s:.0f} s"
    return UnavailableError(message, reason="INSTANCE_LOADING", retry_after_s=f"{retry_s:.1f}")


def _now() -> float:
    return asyncio.get_running_loop().time()
