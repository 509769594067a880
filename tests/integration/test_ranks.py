"""Real agents and real runners that share a stage: ranks of a tiny model over a ring on loopback, answering, killed and stopped."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from paceline_services.domain.generation import Limits
from paceline_services.domain.runners import RunnerState
from paceline_services.errors import UnavailableError
from paceline_services.ids import Epoch, InstanceId
from paceline_worker.transport.grpc_link import GrpcLink
from paceline_worker.transport.link import LinkBrokenError
from support.nodes import NUM_TOKENS, REQUEST, Node, Stream, make_model, open_nodes, place, place_ranks

SHORT = replace(REQUEST, limits=Limits(max_tokens=24, ignore_eos=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


async def start_answer(address: str, num_tokens: int) -> "tuple[Stream, asyncio.Task[list[int]]]":
    """An answer of which so many tokens are there; the rest comes."""
    stream = Stream()
    reading = asyncio.create_task(stream.read(address))
    await stream.wait_for(num_tokens)
    return stream, reading


async def expect_lost(node: Node, epoch: int, rank: int) -> None:
    """The node's runner says that it lost the rank, though its compute thread may wait for that one for ever."""
    broken = await node.wait(RunnerState.BROKEN, epoch)
    assert (broken.lost_rank, broken.lost_stage) == (rank, None), broken


async def test_two_ranks_answer_like_one_runner_and_so_does_what_follows_them(model: Path, tmp_path: Path) -> None:
    async with open_nodes(tmp_path, model, 2) as (one, two):
        (alone,) = await place(1, [one], [])
        expected = await Stream().read(alone.address)
        head, other = await place_ranks(2, [[one, two]])
        assert head.loaded_bytes + other.loaded_bytes < 1.1 * alone.loaded_bytes
        assert await Stream().read(head.address) == expected
        assert len(expected) == NUM_TOKENS
        with pytest.raises(UnavailableError) as refused:
            await Stream().read(other.address, SHORT)
        assert refused.value.reason == "INSTANCE_BROKEN"
        with pytest.raises(LinkBrokenError, match="at epoch 2"):
            await GrpcLink.connect(other.address, InstanceId("tiny-1"), Epoch(1), 5)
        (again,) = await place(3, [two], [])
        assert await Stream().read(again.address) == expected


async def test_two_stages_of_two_ranks_answer_like_one_runner(model: Path, tmp_path: Path) -> None:
    async with open_nodes(tmp_path, model, 4) as nodes:
        (alone,) = await place(1, nodes[:1], [])
        expected = await Stream().read(alone.address, SHORT)
        *_, head, _ = await place_ranks(2, [nodes[:2], nodes[2:]], [3])
        assert await Stream().read(head.address, SHORT) == expected


async def test_killed_rank_is_named_at_once_and_the_next_epoch_answers(model: Path, tmp_path: Path) -> None:
    async with open_nodes(tmp_path, model, 2) as (one, two):
        head, other = await place_ranks(1, [[one, two]])
        _, reading = await start_answer(head.address, 10)
        os.kill(other.pid, signal.SIGKILL)
        await expect_lost(one, 1, 1)
        with pytest.raises(UnavailableError) as ended:
            await reading
        assert ended.value.reason == "INSTANCE_BROKEN"
        turned, other = await place_ranks(2, [[two, one]])
        assert turned.pid not in {head.pid, other.pid}
        assert len(await Stream().read(turned.address, SHORT)) == 24

        _, reading = await start_answer(turned.address, 10)
        os.kill(turned.pid, signal.SIGKILL)
        await expect_lost(one, 2, 0)
        with pytest.raises(UnavailableError):
            await reading


@pytest.mark.parametrize("stopped_rank", [0, 1])
async def test_stopped_rank_is_killed_by_its_agent_and_named_by_the_other(
    model: Path, tmp_path: Path, stopped_rank: int
) -> None:
    async with open_nodes(tmp_path, model, 2) as nodes:
        ranks = await place_ranks(1, [nodes])
        _, reading = await start_answer(ranks[0].address, 10)
        os.kill(ranks[stopped_rank].pid, signal.SIGSTOP)
        failed = await nodes[stopped_rank].wait(RunnerState.FAILED, 1)
        assert "was wedged: its process is stopped" in failed.failure_message
        await expect_lost(nodes[1 - stopped_rank], 1, stopped_rank)
        with pytest.raises(UnavailableError):
            await reading
