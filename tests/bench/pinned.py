"""Clusters whose stages compute on one core each: one thread a runner, pinned once the cluster is ready.

Several are open side by side, as an idle one costs nothing; those that are asked in turn share the cores.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.rounds import say
from bench.streams import Stream, ask, ask_together, draw_prompt, make_request
from bench.system import UnavailableError, allowed_cores, pick_cores
from paceline_services.clients import GenerationClient
from support.cluster import Cluster

MIB = 1 << 20
NUM_CORES = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """A cluster to open: its name in tables, its stages, settings of its processes, and the ranks of each stage."""

    name: str
    num_stages: int
    settings: Mapping[str, str]
    num_ranks: int = 1
    first_core: int | None = None
    """Which of the cores the first runner gets; None: so that the last one gets the last core."""

    @property
    def num_runners(self) -> int:
        return self.num_stages * self.num_ranks

    @property
    def arguments(self) -> list[str]:
        """What `paceline up` is told of ranks."""
        if self.num_ranks == 1:
            return []
        return ["--strategy", "tensor" if self.num_stages == 1 else "hybrid", "--tensor-size", str(self.num_ranks)]


@dataclass(frozen=True, slots=True)
class Model:
    """What the clusters serve: a GGUF file or folder, the id it is asked by, and how many ids its prompts are drawn from."""

    title: str
    path: Path
    model_id: str
    vocab_size: int


@dataclass(frozen=True, slots=True)
class PinnedCluster:
    """A running cluster; asked at its head over gRPC, as the gateway asks it, or at its gateway."""

    layout: Layout
    model: Model
    cluster: Cluster
    client: GenerationClient
    pids: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.layout.name

    async def ask(self, prompt: Sequence[int], num_tokens: int) -> Stream:
        return await ask(self.client, make_request(self.model.model_id, prompt, num_tokens))

    async def ask_together(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Stream]:
        requests = [make_request(self.model.model_id, prompt, num_tokens) for prompt in prompts]
        return await ask_together(self.client, requests)

    def draw_prompt(self, name: str, num_tokens: int) -> list[int]:
        return draw_prompt(name, num_tokens, self.model.vocab_size)

    def resident_mib(self) -> list[float]:
        """Of every runner, by stage and rank."""
        return [psutil.Process(pid).memory_info().rss / MIB for pid in self.pids]

    def loaded_bytes(self) -> list[int]:
        """Bytes of weights that every runner holds, by stage and rank."""
        return [int(shard["loaded_bytes"]) for shard in self._shards()]

    def read_load(self) -> dict[str, Any]:
        """What the head last reported of itself; empty where the cluster's state does not tell."""
        return self._instance().get("load") or {}

    def check_alive(self) -> None:
        """Raise UnavailableError when a runner is not the one that was pinned: what follows would measure something else."""
        if (pids := tuple(shard["pid"] for shard in self._shards())) != self.pids:
            raise UnavailableError(f"{self.name}: runners {self.pids} became {pids} while they were measured")

    def _shards(self) -> list[dict[str, Any]]:
        return sort_shards(self._instance()["shards"])

    def _instance(self) -> dict[str, Any]:
        instance: dict[str, Any] = self.cluster.state()["instances"][0]
        return instance


@asynccontextmanager
async def open_pinned(layout: Layout, model: Model, home: Path) -> AsyncIterator[PinnedCluster]:
    """Start a cluster, wait until it is ready, pin its runners. Raises UnavailableError where cores are too few."""
    check_cores()
    shutil.rmtree(home, ignore_errors=True)  # or an earlier run's placement would come back
    cluster = Cluster(
        home,
        workers=layout.num_runners,
        model=str(model.path),
        model_id=model.model_id,
        extra_args=layout.arguments,
    )
    with changed_environment({"PACELINE_NUM_THREADS": "1", **layout.settings}):
        await asyncio.to_thread(cluster.start)
    try:
        shards = sort_shards(cluster.state()["instances"][0]["shards"])
        pids = tuple(shard["pid"] for shard in shards)
        first = NUM_CORES - layout.num_runners if layout.first_core is None else layout.first_core
        for pid, core in zip(pids, pick_cores(NUM_CORES)[first : first + layout.num_runners], strict=True):
            pin(pid, core)
        say(f"{model.title}: {layout.name} ready")
        client = GenerationClient(shards[-layout.num_ranks]["address"])
        yield PinnedCluster(layout, model, cluster, client, pids)
        await client.close()
    finally:
        await asyncio.to_thread(cluster.stop)


def sort_shards(shards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By stage and rank: rank 0 of the last stage is the head."""
    return sorted(shards, key=lambda shard: (int(shard["stage"]), int(shard["rank"])))


def check_cores() -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise UnavailableError("this system does not let processes be pinned to cores")
    if (found := len(allowed_cores())) < NUM_CORES:
        raise UnavailableError(f"two stages on a core each need {NUM_CORES} cores, {found} is usable")


@contextmanager
def changed_environment(settings: Mapping[str, str]) -> Iterator[None]:
    """This process's environment, which children inherit, with settings meanwhile."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def pin(pid: int, core: int) -> None:
    """Let every thread of a process run on one core only. A thread that starts meanwhile inherits from one that was not pinned yet."""
    pinned: set[int] = set()
    while fresh := {thread.id for thread in psutil.Process(pid).threads()} - pinned:
        for thread in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, {core})
        pinned |= fresh
