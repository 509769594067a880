"""The cluster as last seen, kept fresh by a watch; it outlives the control plane."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from paceline_api_gateway.routing.affinity import PrefixHash, PrefixMemory, holder_of
from paceline_api_gateway.routing.choice import (
    Absent,
    Choice,
    Traffic,
    choose_instance,
    explain_absence,
    leave_out_failed,
    list_active,
)
from paceline_api_gateway.routing.load import SeenLoad, add_loads, follow_loads
from paceline_services.clients import ControlPlaneClient
from paceline_services.domain.instances import Instance, InstanceSpec
from paceline_services.domain.models import ModelSource
from paceline_services.domain.nodes import ClusterState
from paceline_services.errors import NotFoundError, UnavailableError
from paceline_services.ids import InstanceId, ModelId

ANSWER_TIMEOUT_S = 1.0
"""Time in seconds after which a control plane that does not answer counts as away."""


class RouteTable:
    """Knows the instances, how busy each one is, and which prompts this gateway sent it."""

    def __init__(self, client: ControlPlaneClient, *, place_on_demand: bool, wait_s: float) -> None:
        self._client = client
        self._place_on_demand = place_on_demand
        self.wait_s = wait_s
        self._state: ClusterState | None = None
        self._seen_time = 0.0
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
                self._state = state
                self._seen_time = time.monotonic()
                self._changed.notify_all()

    @property
    def head_addresses(self) -> frozenset[str]:
        """Where the heads of all instances that answer are."""
        return frozenset(one.head_address for one in self.state.instances if one.head_address)

    async def wait_for_change(self, timeout_s: float) -> None:
        """Return when the cluster changes, at the latest after a time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait()

    def has_untried(self, model_id: ModelId, tried: Collection[str]) -> bool:
        """Whether an instance of the model answers at a head that is not among these addresses."""
        return any(one.head_address not in tried for one in list_active(self.state, model_id))

    async def find(
        self, model_id: ModelId, until: float, prefixes: tuple[PrefixHash, ...] = (), failed: Collection[str] = ()
    ) -> Choice:
        """An ACTIVE instance of the model, waited for and placed if need be, until a time of the loop's clock.

        prefixes: those of the prompt. failed: addresses of heads that failed the request; they are taken again only when there is
        no other. Raises NotFoundError for an unknown model (or one without instance, where placing on demand is off) and
        UnavailableError when it did not come up in time or cannot.
        """
        waiting = "the control plane has not answered yet"
        try:
            async with asyncio.timeout_at(until):
                while True:
                    async with self._changed:
                        if self._state is None:
                            await self._changed.wait()
                            continue
                        if active := list_active(self._state, model_id):
                            return self._choose(leave_out_failed(active, failed), prefixes)
                        absence = explain_absence(self._state, model_id)
                        if not isinstance(absence, Absent):
                            waiting = absence.message
                            await self._changed.wait()
                            continue
                    await self._place(model_id)
        except TimeoutError as error:
            raise UnavailableError(
                f"{model_id} is not ready after {self.wait_s:.0f} s: {waiting}", reason="INSTANCE_LOADING"
            ) from error

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
