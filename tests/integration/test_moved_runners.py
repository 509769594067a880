"""Real agents and real runners of a tiny model: moved, stopped and hung in the middle of an answer."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from paceline_services.addressee import Addressee
from paceline_services.domain.runners import RunnerState
from paceline_services.errors import UnavailableError
from paceline_services.ids import Epoch, InstanceId
from support.nodes import NUM_TOKENS, Stream, make_model, open_node, place


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


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
