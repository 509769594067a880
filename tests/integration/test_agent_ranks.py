"""What an agent does with runners that share a stage: real agent processes, child processes without a model, orders over real gRPC."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from paceline_services.domain.runners import GroupBackend, GroupSeat, RunnerReport, RunnerState, ShardAssignment
from paceline_services.ids import Epoch, InstanceId, ModelId
from support.agents import (
    AgentProcess,
    ScriptedControlPlane,
    is_runner,
    is_running,
    running_agent_process,
    serve_control_plane,
    write_bare_model,
)
from support.fake_runner import read_journal

MODEL = ModelId("bare")
MEMBERS = ("127.0.0.1:7000", "127.0.0.1:7001")
WHOLE = ShardAssignment(InstanceId("bare-1"), Epoch(7), MODEL, 0, 1, 0, 4, 512)
FIRST = replace(WHOLE, num_ranks=2, group=GroupSeat(GroupBackend.RING, 0, 2))
OTHER = replace(FIRST, rank=1, group=GroupSeat(GroupBackend.RING, 1, 2))


def knowing_members(shard: ShardAssignment) -> ShardAssignment:
    assert shard.group
    return replace(shard, group=replace(shard.group, addresses=MEMBERS))


@pytest.fixture
def control_plane() -> ScriptedControlPlane:
    return ScriptedControlPlane()


@asynccontextmanager
async def joined_agent(control_plane: ScriptedControlPlane, home: Path, *runner: str) -> AsyncIterator[AgentProcess]:
    write_bare_model(home / "models" / MODEL)
    async with (
        serve_control_plane(control_plane) as port,
        running_agent_process(home, "--node-id", "n1", "--join", f"127.0.0.1:{port}", runner=runner) as agent,
    ):
        assert await agent.read_line() == "joined n1\n", agent.log
        yield agent


async def wait_for_ranks(control_plane: ScriptedControlPlane, *states: RunnerState) -> list[RunnerReport]:
    """Until the ranks, in order, are in these states."""
    report = await control_plane.wait_for_report(
        lambda report: [one.state for one in sorted(report.runners, key=lambda one: one.rank)] == list(states)
    )
    return sorted(report.runners, key=lambda one: one.rank)


async def bring_to_work(control_plane: ScriptedControlPlane) -> list[RunnerReport]:
    """Both ranks on one node, told bit by bit what the control plane finds out."""
    control_plane.order(FIRST, OTHER)
    waiting = await wait_for_ranks(control_plane, RunnerState.LOADING, RunnerState.LOADING)
    assert tuple(one.group_address for one in waiting) == MEMBERS
    control_plane.order(knowing_members(FIRST), knowing_members(OTHER))
    loaded = await wait_for_ranks(control_plane, RunnerState.LOADED, RunnerState.READY)
    addresses = (loaded[1].address,)
    control_plane.order(replace(knowing_members(FIRST), rank_addresses=addresses), knowing_members(OTHER))
    return await wait_for_ranks(control_plane, RunnerState.READY, RunnerState.READY)


async def test_ranks_join_their_group_and_the_first_one_is_connected_to_the_others(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path):
        await bring_to_work(control_plane)
        await control_plane.wait_for_more_reports(3)
        journal = read_journal(tmp_path)
    first, other = [turn for turn in journal if turn.rank == 0], [turn for turn in journal if turn.rank == 1]
    assert [turn.event for turn in first] == ["started", "joined", "connected"]
    assert [turn.event for turn in other] == ["started", "joined"]
    assert tuple(first[1].group_addresses) == tuple(other[1].group_addresses) == MEMBERS
    assert (first[2].next_address, list(first[2].rank_addresses)) == ("", ["127.0.0.1:9100"])


async def test_ranks_of_the_next_epoch_are_new_processes_and_the_old_ones_get_no_time(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path, "--deaf"):
        before = await bring_to_work(control_plane)
        control_plane.order(replace(WHOLE, epoch=Epoch(9)))
        alone = await control_plane.wait_for_runner(is_runner(RunnerState.READY, epoch=9))
        assert not any(is_running(one.pid) for one in before)
        assert alone.pid not in {one.pid for one in before}
        control_plane.order(replace(FIRST, epoch=Epoch(11)), replace(OTHER, epoch=Epoch(11)))
        await control_plane.wait_for_report(
            lambda report: [(one.epoch, one.group_address != "") for one in report.runners] == [(11, True)] * 2
        )
        assert not is_running(alone.pid)
    assert not [turn for turn in read_journal(tmp_path) if turn.event in {"moved", "drained"} and turn.epoch < 9]


async def test_each_rank_has_a_log_of_its_own(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    async with joined_agent(control_plane, tmp_path, "--fail-loading"):
        control_plane.order(FIRST, OTHER)
        failed = await wait_for_ranks(control_plane, RunnerState.FAILED, RunnerState.FAILED)
    assert [one.rank for one in failed] == [0, 1]
    logs = [tmp_path / "logs" / name for name in ("runner-bare-1-0.log", "runner-bare-1-0-1.log")]
    assert [len(log.read_text().splitlines()) for log in logs] == [30, 30]


async def test_runners_that_cannot_be_started_are_reported_by_rank(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    write_bare_model(tmp_path / "models" / MODEL)
    async with (
        serve_control_plane(control_plane) as port,
        running_agent_process(
            tmp_path, "--node-id", "n1", "--join", f"127.0.0.1:{port}", runner_program="/nowhere/runner"
        ) as agent,
    ):
        assert await agent.read_line() == "joined n1\n", agent.log
        control_plane.order(OTHER)
        (failed,) = await wait_for_ranks(control_plane, RunnerState.FAILED)
    assert (failed.rank, failed.stage, failed.pid) == (1, 0, 0)
