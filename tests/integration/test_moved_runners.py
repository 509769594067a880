"""Real agents and real runners of a tiny model: moved, stopped and hung in the middle of an answer."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from paceline_services.addressee import Addressee
from paceline_services.clients import GenerationClient
from paceline_services.domain.generation import ChoiceDelta, GenerateRequest, Limits, Sampling, TokenIds
from paceline_services.domain.runners import RunnerReport, RunnerState, ShardAssignment
from paceline_services.errors import UnavailableError
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("model") / MODEL
    make_tiny_model("llama", path, num_hidden_layers=NUM_LAYERS, max_position_embeddings=CONTEXT)
    return path


async def test_answer_goes_on_while_its_parts_are_moved_and_ends_where_the_head_is_no_longer(
    model: Path, tmp_path: Path
) -> None:
    async with open_node(tmp_path / "one", model) as one, open_node(tmp_path / "two", model) as two:
        _, head = await place(1, [one, two], [2])
        expected = await Stream().read(head.address)
        stream = Stream()
        reading = asyncio.create_task(stream.read(head.address))
        await stream.wait_for(10)
        _, moved = await place(2, [one, two], [3])
        assert (moved.pid, moved.address) == (head.pid, head.address)
        assert moved.read_bytes == 0
        await stream.wait_for(50)
        (alone,) = await place(3, [two], [])
        assert (alone.pid, alone.address) == (head.pid, head.address)
        assert 0 < alone.read_bytes < alone.loaded_bytes
        await stream.wait_for(90)
        await place(4, [one, two], [1])
        assert await reading == expected
        assert len(expected) == NUM_TOKENS

        stream = Stream()
        reading = asyncio.create_task(stream.read(head.address))
        await stream.wait_for(10)
        turned, other = await place(5, [two, one], [2])
        with pytest.raises(UnavailableError) as ended:
            await reading
        assert ended.value.reason == "INSTANCE_BROKEN"
        assert turned.pid == head.pid
        assert await Stream().read(other.address) == expected


async def test_first_stage_passes_calls_on_to_the_head_in_every_epoch(model: Path, tmp_path: Path) -> None:
    async with open_node(tmp_path / "one", model) as one, open_node(tmp_path / "two", model) as two:
        first, head = await place(1, [one, two], [2])
        expected = await Stream().read(head.address)
        to_head = Addressee(InstanceId("tiny-1"), Epoch(1))
        assert await Stream().read(first.address, addressee=to_head) == expected
        assert await Stream().read(head.address, addressee=to_head) == expected
        stream = Stream()
        reading = asyncio.create_task(stream.read(first.address, addressee=to_head))
        await stream.wait_for(10)
        await place(2, [one, two], [3])
        assert await reading == expected
        for address in (first.address, head.address):
            with pytest.raises(UnavailableError) as refused:
                await Stream().read(address, addressee=to_head)
            assert refused.value.reason == "INSTANCE_BROKEN"
        assert await Stream().read(first.address, addressee=replace(to_head, epoch=Epoch(2))) == expected


async def test_answer_goes_on_when_a_stage_was_killed_or_stopped(model: Path, tmp_path: Path) -> None:
    async with open_node(tmp_path / "one", model) as one, open_node(tmp_path / "two", model) as two:
        first, head = await place(1, [one, two], [2])
        expected = await Stream().read(head.address)
        stream = Stream()
        reading = asyncio.create_task(stream.read(head.address))
        await stream.wait_for(10)
        os.kill(first.pid, signal.SIGKILL)
        broken = await two.wait(RunnerState.BROKEN, 1)
        assert broken.lost_stage == 0
        with pytest.raises(UnavailableError) as refused:
            await Stream().read(head.address)
        assert refused.value.reason == "INSTANCE_BROKEN"
        again, _ = await place(2, [one, two], [2])
        await stream.wait_for(40)
        os.kill(again.pid, signal.SIGSTOP)
        failed = await one.wait(RunnerState.FAILED, 2)
        assert "was wedged: its process is stopped" in failed.failure_message
        await place(3, [one, two], [2])
        assert await reading == expected


async def test_hung_step_is_found_from_outside_though_the_event_loop_ticks(model: Path, tmp_path: Path) -> None:
    async with open_node(tmp_path / "one", model, PACELINE_FAULTS="hang_step=12") as one:
        (head,) = await place(1, [one], [])
        with pytest.raises(UnavailableError):
            await Stream().read(head.address)
        failed = await one.wait(RunnerState.FAILED, 1)
        assert "was wedged: it has computed for" in failed.failure_message
        assert not failed.is_out_of_memory
