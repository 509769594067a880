"""A cluster of real processes for trials: several members of etcd, replicas of the control plane, agents and gateways, each kept running.

Everything is asked over public surfaces: signals, HTTP, etcd's health page. What a state says of the cluster is read in wholeness.
"""

import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from paceline_cli.up.ports import is_free
from support.hosts import LOOPBACK, Host, Sites
from support.keeper import Keeper, held
from support.programs import (
    Member,
    Port,
    agent_program,
    control_plane_program,
    etcd_program,
    gateway_program,
)
from support.wholeness import find_gaps_in_state, find_recovery_s, has_only_fewer_shards

T = TypeVar("T")
Json = dict[str, Any]

MODEL_ID = "smollm2-135m-instruct"
MEMORY_BYTES = 1 << 30
CALL_TIMEOUT_S = 5.0
START_TIMEOUT_S = 180.0
STEADY_S = 1.5
"""A cluster is whole when nothing is missing for so long: a death that nobody has noticed yet is not overlooked."""
POLL_S = 0.1
PORTS = (20000, 32000)


class FleetError(AssertionError):
    """The cluster did not become what every trial begins with."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many of each."""

    members: int = 3
    control_planes: int = 2
    agents: int = 3
    gateways: int = 2
    stages: int = 3
    ranks: int = 1
    """Of each stage."""

    @property
    def shards(self) -> int:
        return self.stages * self.ranks


@dataclass(frozen=True, slots=True)
class Wish:
    """The model that is placed: its id, where it comes from, the longest sequence in tokens, how it is split."""

    location: str
    model_id: str = MODEL_ID
    context_length: int = 1024
    strategy: str = "pipeline"
    tensor_size: int = 0


@dataclass(slots=True)
class Fleet:
    """Made with make_fleet; start and stop it, or use running_fleet."""

    folder: Path
    size: Size
    members: tuple[Member, ...]
    gateways: dict[str, str]
    """URLs by name."""
    keepers: dict[str, Keeper] = field(default_factory=dict)

    def start(self) -> None:
        """Start every process; returns at once."""
        for keeper in self.keepers.values():
            keeper.start()

    def stop(self) -> None:
        """kill -9 of everything, stopped processes included."""
        left = [process for keeper in self.keepers.values() for process in keeper.tree()]
        for keeper in self.keepers.values():
            keeper.end()
        _kill(left)

    def named(self, kind: str) -> list[Keeper]:
        """Those whose name begins so: etcd, control-plane, agent, gateway."""
        return [keeper for name, keeper in self.keepers.items() if name.startswith(kind)]

    @property
    def etcd(self) -> list[Keeper]:
        return self.named("etcd")

    def power_cut(self) -> "PowerCut":
        """kill -9 of everything at once; entering and leaving the block is the time without power."""
        return PowerCut(self)

    # -- what is asked over HTTP --

    def state(self) -> Json:
        """GET /state of the first gateway that answers. Raises httpx.HTTPError when none does."""
        for url in list(self.gateways.values())[:-1]:
            with suppress(httpx.HTTPError):
                return _get(url + "/state")
        return _get(list(self.gateways.values())[-1] + "/state")

    def instance(self) -> Json:
        """The only instance. Raises FleetError when there is none or several."""
        instances: list[Json] = self.state()["instances"]
        if len(instances) != 1:
            raise FleetError(f"{len(instances)} instances where there should be one")
        return instances[0]

    def place(self, wish: Wish) -> None:
        """Want the model in size.stages stages, on whatever gateway answers."""
        body = {
            "model_id": wish.model_id,
            "location": wish.location,
            "num_stages": self.size.stages,
            "context_length": wish.context_length,
            "strategy": wish.strategy,
            "tensor_size": wish.tensor_size,
        }
        self._call("POST", "/place_instance", json=body)

    def place_anew(self, wish: Wish) -> None:
        """Remove every instance and want the model again."""
        for instance in self.state()["instances"]:
            self._call("DELETE", f"/instance/{instance['instance_id']}")
        wait_for(lambda: not self.state()["instances"], "the instances end", 30.0)
        self.place(wish)

    def is_leader(self, keeper: Keeper) -> bool:
        return bool(self.state()["leader_id"] == keeper.program.name)

    def find_missing(self) -> list[str]:
        """What is not as it should be, in words; empty when the cluster is whole."""
        missing = [
            f"{name} does not serve"
            for name, url in self.gateways.items()
            if _read(url + "/health").get("status") != "ok"
        ]
        missing += [one.name + " is not healthy" for one in self.members if not _is_member_healthy(one.client.url)]
        try:
            return missing + find_gaps_in_state(self.state(), self.size.agents, self.size.shards, is_living)
        except httpx.HTTPError:
            return [*missing, "no state"]

    def is_short_of_stages(self) -> bool:
        """Whether all that is missing is that the instance has fewer stages than it was meant for: it may stay so."""
        return has_only_fewer_shards(self.find_missing(), self.size.shards)

    def wait_whole(self, timeout_s: float, *, in_any_stages: bool = False) -> None:
        """Until nothing is missing, for STEADY_S; in_any_stages: but stages. Raises FleetError that names what is."""
        deadline = time.monotonic() + timeout_s
        whole_since: float | None = None
        while True:
            missing = self.find_missing()
            if in_any_stages and has_only_fewer_shards(missing, self.size.shards):
                missing = []
            now = time.monotonic()
            whole_since = None if missing else whole_since or now
            if whole_since and now - whole_since >= STEADY_S:
                return
            if now > deadline:
                raise FleetError(f"not whole after {timeout_s:.0f} s: {'; '.join(missing) or 'it is not steady'}")
            time.sleep(POLL_S)

    def _call(self, method: str, path: str, **options: Any) -> None:
        def call() -> bool:
            url = next(iter(self.gateways.values()))
            answer = httpx.request(method, url + path, timeout=CALL_TIMEOUT_S, trust_env=False, **options)
            return answer.is_success or answer.status_code == 404

        wait_for(call, f"{method} {path} is accepted", 60.0)


class PowerCut:
    """Everything is dead while the block runs, and is started again after it; nothing is told what it was doing."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._held = held(*fleet.keepers.values())

    def __enter__(self) -> None:
        for keeper in self._fleet.keepers.values():
            keeper.forbid()
        left = [process for keeper in self._fleet.keepers.values() for process in keeper.tree()]
        # Stopped first: nothing sees the others die, as when the power goes.
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
        _kill(left)
        self._held.__enter__()

    def __exit__(self, *_: object) -> None:
        self._held.__exit__(None, None, None)


def make_fleet(folder: Path, sites: Sites, size: Size = Size(), environment: dict[str, str] | None = None) -> Fleet:
    """A fleet whose files lie below folder; environment: of agents and their runners, beside the usual."""
    members = tuple(
        Member(f"etcd-{index + 1}", _port(sites.brain), _port(sites.brain), folder / f"etcd-{index + 1}")
        for index in range(size.members)
    )
    replicas = {f"control-plane-{index + 1}": _port(sites.brain) for index in range(size.control_planes)}
    gateways = {f"gateway-{index + 1}": _port(sites.front) for index in range(size.gateways)}
    etcd, addresses = [one.client.url for one in members], [port.address for port in replicas.values()]
    agents = [
        agent_program(
            f"agent-{index + 1}", sites.workers[index], addresses, folder / f"agent-{index + 1}", MEMORY_BYTES
        )
        for index in range(size.agents)
    ]
    for agent in agents:
        agent.environment.update(environment or {})
    programs = [
        *(etcd_program(one, members) for one in members),
        *(control_plane_program(name, port, etcd, folder / name) for name, port in replicas.items()),
        *agents,
        *(gateway_program(name, port, addresses, folder / name) for name, port in gateways.items()),
    ]
    keepers = {one.name: Keeper(one, folder / "logs" / f"{one.name}.log") for one in programs}
    return Fleet(folder, size, members, {name: port.url for name, port in gateways.items()}, keepers)


@contextmanager
def running_fleet(
    folder: Path,
    wish: Wish,
    *,
    sites: Sites | None = None,
    size: Size = Size(),
    environment: dict[str, str] | None = None,
) -> Iterator[Fleet]:
    """A whole cluster that serves the model, for as long as the block runs."""
    fleet = make_fleet(folder, sites or Sites.on_this_machine(size.agents), size, environment)
    try:
        fleet.start()
        fleet.place(wish)
        fleet.wait_whole(START_TIMEOUT_S)
        yield fleet
    finally:
        fleet.stop()


def wait_for(holds: Callable[[], T | None], what: str, timeout_s: float) -> T:
    """The first true value of something that sends no event; servers that do not answer count as not yet. Raises FleetError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if value := holds():
                return value
        time.sleep(POLL_S)
    raise FleetError(f"waited {timeout_s:.0f} s in vain: {what}")


def wipe(members: Sequence[Member]) -> None:
    """Delete the data of members that do not run."""
    for member in members:
        shutil.rmtree(member.folder, ignore_errors=True)


def copy_members(members: Sequence[Member], to: Path) -> None:
    """Copy the data of members that do not run."""
    for member in members:
        shutil.copytree(member.folder, to / member.name)


def restore_members(members: Sequence[Member], copied: Path) -> None:
    """Put a copy in the place of the data of members that do not run."""
    wipe(members)
    for member in members:
        shutil.copytree(copied / member.name, member.folder)


def is_living(pid: int) -> bool:
    """Whether a process exists and is neither stopped nor a name that nobody has collected."""
    try:
        return psutil.Process(pid).status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _port(host: Host) -> Port:
    """A free port below those that the kernel gives out: nobody takes it while its program is dead."""
    return Port(host, next(port for port in iter(lambda: random.randrange(*PORTS), None) if is_free(LOOPBACK, port)))


def _get(url: str) -> Json:
    answer: Json = httpx.get(url, timeout=CALL_TIMEOUT_S, trust_env=False).raise_for_status().json()
    return answer


def _read(url: str) -> Json:
    try:
        return _get(url)
    except httpx.HTTPError:
        return {}


def _is_member_healthy(url: str) -> bool:
    return str(_read(url + "/health").get("health")).lower() == "true"


class StateWatch:
    """Asks for the state ten times a second and notes whether the instance is ACTIVE; a context."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._seen: list[tuple[float, bool]] = []

    def __enter__(self) -> "StateWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def recovery_s(self, since: float, until: float) -> float:
        """See find_recovery_s."""
        return find_recovery_s(self._seen, since, until)

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            with suppress(httpx.HTTPError):
                states = {one["state"] for one in self._fleet.state()["instances"]}
                self._seen.append((time.monotonic(), states == {"ACTIVE"}))
