"""Real agents with real runners of a tiny model, each with a control plane of its own whose orders the test writes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paceline_services.addressee import Addressee
from paceline_services.clients import GenerationClient
from paceline_services.domain.generation import ChoiceDelta, GenerateRequest, Limits, Sampling, TokenIds
from paceline_services.domain.runners import GroupBackend, GroupSeat, RunnerReport, RunnerState, ShardAssignment
from paceline_services.ids import Epoch, InstanceId, ModelId
from support.agents import AgentProcess, ScriptedControlPlane, is_runner, running_agent_process, serve_control_plane
from support.models import make_tiny_model

MODEL = ModelId("tiny")
NUM_LAYERS = 4
CONTEXT = 512
NUM_TOKENS = 160
REQUEST = GenerateRequest(
    MODEL,
    token_ids=TokenIds(tuple(range(3, 33))),
    sampling=Sampling(temperature=1.0, seed=5),
    limits=Limits(max_tokens=NUM_TOKENS, ignore_eos=True),
)


@dataclass
class Node:
    """A real agent, and the control plane that it alone listens to."""

    agent: AgentProcess
    control_plane: ScriptedControlPlane

    async def wait(self, state: RunnerState, epoch: int) -> RunnerReport:
        return await self.control_plane.wait_for_runner(is_runner(state, epoch))

    async def wait_for_seat(self, epoch: int) -> RunnerReport:
        """Until its runner has set an address aside for its group."""
        return await self.control_plane.wait_for_runner(
            lambda runner: runner.epoch == epoch and runner.group_address != ""
        )

    async def wait_loaded(self, epoch: int) -> RunnerReport:
        """Until its runner's data plane listens: the ranks after a stage's first one are READY then."""
        return await self.control_plane.wait_for_runner(lambda runner: runner.epoch == epoch and runner.address != "")


def make_model(folder: Path) -> Path:
    """The model that nodes serve, made in a folder below this one."""
    path = folder / MODEL
    make_tiny_model("llama", path, num_hidden_layers=NUM_LAYERS, max_position_embeddings=CONTEXT)
    return path


@asynccontextmanager
async def open_node(home: Path, model: Path, **environment: str) -> AsyncIterator[Node]:
    (home / "models").mkdir(parents=True)
    (home / "models" / MODEL).symlink_to(model)
    control_plane = ScriptedControlPlane()
    async with (
        serve_control_plane(control_plane) as port,
        running_agent_process(
            home,
            *("--node-id", home.name, "--join", f"127.0.0.1:{port}"),
            runner=None,
            PACELINE_NUM_THREADS="1",
            **environment,
        ) as agent,
    ):
        assert await agent.read_line() == f"joined {home.name}\n", agent.log
        yield Node(agent, control_plane)


@asynccontextmanager
async def open_nodes(home: Path, model: Path, number: int) -> AsyncIterator[Sequence[Node]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_node(home / f"n{index}", model)) for index in range(number)]


async def place(epoch: int, nodes: Sequence[Node], bounds: Sequence[int]) -> list[RunnerReport]:
    """Divide the model over the nodes, the last of which is the head, and wait until every part is READY."""
    edges = (0, *bounds, NUM_LAYERS)
    shards = [
        ShardAssignment(
            *(InstanceId("tiny-1"), Epoch(epoch), MODEL, stage, len(nodes), edges[stage], edges[stage + 1], CONTEXT)
        )
        for stage in range(len(nodes))
    ]
    for node, shard in zip(nodes, shards, strict=True):
        node.control_plane.order(shard)
    if len(nodes) > 1:
        loaded = [await node.wait(RunnerState.LOADED, epoch) for node in nodes]
        for node, shard, following in zip(nodes, shards, [*loaded[1:], loaded[0]], strict=True):
            node.control_plane.order(replace(shard, next_address=following.address))
    return [await node.wait(RunnerState.READY, epoch) for node in nodes]


async def place_ranks(epoch: int, stages: Sequence[Sequence[Node]], bounds: Sequence[int] = ()) -> list[RunnerReport]:
    """Divide the model over stages and each stage over its nodes, as the control plane does; returns every part once it is READY."""
    places = [(stage, rank, node) for stage, nodes in enumerate(stages) for rank, node in enumerate(nodes)]
    edges = (0, *bounds, NUM_LAYERS)
    seats = {(stage, rank): GroupSeat(GroupBackend.RING, rank, len(stages[stage])) for stage, rank, _ in places}
    links: dict[tuple[int, int], dict[str, Any]] = {(stage, rank): {} for stage, rank, _ in places}

    def order() -> None:
        for stage, rank, node in places:
            node.control_plane.order(
                ShardAssignment(
                    *(
                        InstanceId("tiny-1"),
                        Epoch(epoch),
                        MODEL,
                        stage,
                        len(stages),
                        edges[stage],
                        edges[stage + 1],
                        CONTEXT,
                    ),
                    rank=rank,
                    num_ranks=len(stages[stage]),
                    group=seats[stage, rank],
                    **links[stage, rank],
                )
            )

    order()
    found = {(stage, rank): (await node.wait_for_seat(epoch)).group_address for stage, rank, node in places}
    for (stage, rank), seat in seats.items():
        addresses = tuple(found[stage, other] for other in range(seat.size))
        seats[stage, rank] = replace(seat, addresses=addresses)
    order()
    loaded = {(stage, rank): (await node.wait_loaded(epoch)).address for stage, rank, node in places}
    for stage, nodes in enumerate(stages):
        links[stage, 0] = {
            "rank_addresses": tuple(loaded[stage, rank] for rank in range(1, len(nodes))),
            "next_address": loaded[(stage + 1) % len(stages), 0] if len(stages) > 1 else "",
        }
    order()
    return [await node.wait(RunnerState.READY, epoch) for _, _, node in places]


async def place_handing_off(epoch: int, nodes: Sequence[Node], bounds: Sequence[int]) -> list[RunnerReport]:
    """Divide the model over the nodes as stages that are the members of a group; returns every part once it is READY."""
    edges = (0, *bounds, NUM_LAYERS)
    size = len(nodes)
    places = [
        (InstanceId("tiny-1"), Epoch(epoch), MODEL, stage, size, edges[stage], edges[stage + 1], CONTEXT)
        for stage in range(size)
    ]

    def order(addresses: Sequence[str] = (), following: Sequence[str] = ("",) * size) -> None:
        for stage, node in enumerate(nodes):
            seat = GroupSeat(GroupBackend.RING, stage, size, tuple(addresses))
            shard = ShardAssignment(*places[stage], group=seat, hands_off_in_group=True)
            node.control_plane.order(replace(shard, next_address=following[stage]))

    order()
    addresses = [(await node.wait_for_seat(epoch)).group_address for node in nodes]
    order(addresses)
    loaded = [(await node.wait_loaded(epoch)).address for node in nodes]
    order(addresses, [*loaded[1:], loaded[0]])
    return [await node.wait(RunnerState.READY, epoch) for node in nodes]


@dataclass
class Stream:
    """An answer as it comes."""

    tokens: list[int] = field(default_factory=list)
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(
        self, address: str, request: GenerateRequest = REQUEST, addressee: Addressee | None = None
    ) -> list[int]:
        client = GenerationClient(address)
        try:
            async for event in client.generate(request, 120, addressee):
                if isinstance(event, ChoiceDelta):
                    assert event.first_token_index == len(self.tokens)
                    self.tokens.extend(event.token_ids)
                    self.grown.set()
        finally:
            await client.close()
        return self.tokens

    async def wait_for(self, num_tokens: int) -> None:
        async with asyncio.timeout(60):
            while len(self.tokens) < num_tokens:
                self.grown.clear()
                await self.grown.wait()
