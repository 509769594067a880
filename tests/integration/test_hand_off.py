"""Real agents and runners whose stages hand activations off through a ring: the same tokens as over gRPC, and the end of a lost stage."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from paceline_services.domain.runners import RunnerState
from support.nodes import NUM_TOKENS, Stream, make_model, open_nodes, place, place_handing_off

BOUNDS = (1, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("num_stages", [2, 3])
async def test_stages_that_hand_off_answer_like_stages_over_grpc(num_stages: int, model: Path, tmp_path: Path) -> None:
    async with open_nodes(tmp_path, model, num_stages) as nodes:
        bounds = BOUNDS[: num_stages - 1]
        over_grpc = await place(1, nodes, bounds)
        expected = await Stream().read(over_grpc[-1].address)
        handing_off = await place_handing_off(2, nodes, bounds)
        assert {one.pid for one in handing_off}.isdisjoint(one.pid for one in over_grpc)
        several = await asyncio.gather(*(Stream().read(handing_off[-1].address) for _ in range(3)))
        assert several == [expected] * 3
        assert len(expected) == NUM_TOKENS


async def test_stage_that_is_killed_breaks_those_beside_it(model: Path, tmp_path: Path) -> None:
    async with open_nodes(tmp_path, model, 2) as (one, two):
        first, head = await place_handing_off(1, [one, two], BOUNDS[:1])
        stream = Stream()
        reading = asyncio.create_task(stream.read(head.address))
        await stream.wait_for(3)
        os.kill(first.pid, signal.SIGKILL)
        broken = await two.wait(RunnerState.BROKEN, 1)
        assert broken.lost_stage == 0
        await asyncio.wait({reading})
        assert reading.exception() is not None
