"""What an agent does with its runners: real agent processes, real child processes, orders over real gRPC."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from paceline_services.domain.nodes import NodeReport
from paceline_services.domain.runners import Precision, RunnerState, ShardAssignment
from paceline_services.ids import Epoch, InstanceId, ModelId
from support.agents import (
    AgentProcess,
    ScriptedControlPlane,
    find_free_port,
    is_runner,
    is_running,
    running_agent_process,
    serve_control_plane,
    wait_until,
    write_bare_model,
)
from support.fake_runner import FAILING_EXIT_CODE, LOAD, hold_of, read_journal

MODEL = ModelId("bare")
FIRST = ShardAssignment(InstanceId("bare-1"), Epoch(7), MODEL, 0, 2, 0, 2, 512)
HEAD = replace(FIRST, stage=1, start_layer=2, end_layer=4)
WHOLE = replace(FIRST, num_stages=1, end_layer=4)
NEXT_EPOCH = replace(WHOLE, epoch=Epoch(9))


@pytest.fixture
def control_plane() -> ScriptedControlPlane:
    return ScriptedControlPlane()


@asynccontextmanager
async def joined_agent(
    control_plane: ScriptedControlPlane, home: Path, *runner: str, **environment: str
) -> AsyncIterator[AgentProcess]:
    """An agent with the model on its disk, joined."""
    write_bare_model(home / "models" / MODEL)
    async with (
        serve_control_plane(control_plane) as port,
        running_agent_process(
            home, "--node-id", "n1", "--join", f"127.0.0.1:{port}", runner=runner, **environment
        ) as agent,
    ):
        assert await agent.read_line() == "joined n1\n", agent.log
        yield agent


def has_no_runners(report: NodeReport) -> bool:
    return not report.runners


def events(home: Path) -> list[tuple[str, int]]:
    """What the runners did, with their epochs."""
    return [(turn.event, turn.epoch) for turn in read_journal(home)]


async def test_shard_is_started_then_connected_when_its_next_address_is_known(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path):
        control_plane.order(FIRST)
        loaded = await control_plane.wait_for_runner(is_runner(RunnerState.LOADED))
        assert (loaded.epoch, loaded.stage, loaded.start_layer, loaded.end_layer) == (7, 0, 0, 2)
        assert loaded.address == "127.0.0.1:9000"
        later = await control_plane.wait_for_more_reports(3)
        assert all(report.runners[0].state is RunnerState.LOADED for report in later)
        control_plane.order(replace(FIRST, next_address="10.0.0.2:4000"))
        ready = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        assert ready.pid == loaded.pid
        assert is_running(ready.pid)
        await control_plane.wait_for_more_reports(3)
        started, connected = read_journal(tmp_path)
        assert started.model_path == str(tmp_path / "models" / MODEL)
        assert connected.next_address == "10.0.0.2:4000"


async def test_runner_is_told_precision_threads_and_kernels(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    chosen = {"PACELINE_NUM_THREADS": "3", "PACELINE_KERNELS": "off"}
    async with joined_agent(control_plane, tmp_path, **chosen):
        control_plane.order(replace(WHOLE, precision=Precision.FAST))
        await control_plane.wait_for_runner(is_runner(RunnerState.READY))
    started = read_journal(tmp_path)[0]
    assert (started.precision, started.num_threads, started.kernels) == ("fast", 3, "off")


async def test_load_of_runners_reaches_the_control_plane_and_scrapes(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    port = find_free_port()
    async with (
        joined_agent(control_plane, tmp_path, "--load", PACELINE_METRICS_PORT=str(port)),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http,
    ):
        before = await http.get("/metrics")
        control_plane.order(WHOLE)
        ready = await control_plane.wait_for_runner(lambda runner: runner.load is not None)
        assert (ready.state, ready.load) == (RunnerState.READY, LOAD)
        after = (await http.get("/metrics")).text
    assert before.status_code == 200
    assert "# TYPE paceline_worker_sequences_running gauge" in before.text
    assert not [line for line in before.text.splitlines() if not line.startswith("#")]
    for name, value in (("stage_idle_ratio", 0.25), ("sequences_running", 3.0), ("answer_tokens_total", 90.0)):
        assert f'paceline_worker_{name}{{instance_id="bare-1",rank="0",stage="0"}} {value}' in after.splitlines()
    assert (
        'paceline_worker_kv_tokens{instance_id="bare-1",kind="capacity",rank="0",stage="0"} 512.0' in after.splitlines()
    )


async def test_a_taken_metrics_port_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        async with running_agent_process(tmp_path, "--node-id", "n1", "--metrics-port", port) as agent:
            assert await agent.wait() == 1
    (line,) = [line for line in agent.log.splitlines() if line.startswith("paceline: ")]
    assert f"127.0.0.1:{port}" in line and "--metrics-port" in line


async def test_head_is_told_where_its_draft_is(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    write_bare_model(tmp_path / "models" / "small", num_layers=1)
    async with joined_agent(control_plane, tmp_path):
        control_plane.order(replace(WHOLE, draft_model_id=ModelId("small")))
        await control_plane.wait_for_runner(is_runner(RunnerState.READY))
    assert read_journal(tmp_path)[0].draft_model_path == str(tmp_path / "models" / "small")


async def test_single_stage_is_ready_without_a_link(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    async with joined_agent(control_plane, tmp_path):
        control_plane.order(replace(WHOLE, next_address="10.0.0.2:4000"))
        await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        await control_plane.wait_for_more_reports(3)
        assert events(tmp_path) == [("started", 7)]


async def test_runner_that_cannot_load_is_reported_failed_with_its_last_lines_and_not_started_again(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path, "--fail-loading"):
        control_plane.order(WHOLE)
        failed = await control_plane.wait_for_runner(is_runner(RunnerState.FAILED))
        first, *lines = failed.failure_message.splitlines()
        assert first == f"the runner ended with code {FAILING_EXIT_CODE}"
        assert lines == [f"line {number}" for number in range(10, 30)]
        later = await control_plane.wait_for_more_reports(5)
        assert all(report.runners == (failed,) for report in later)
        assert events(tmp_path) == [("started", 7)]
        log = (tmp_path / "logs" / "runner-bare-1-0.log").read_text()
        assert log.splitlines() == [f"line {number}" for number in range(30)]


async def test_error_line_of_a_runner_is_what_its_failure_says(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path, "--fail-loading", "--last-words", "the folder has no weights"):
        control_plane.order(WHOLE)
        failed = await control_plane.wait_for_runner(is_runner(RunnerState.FAILED))
        assert failed.failure_message.splitlines() == ["the runner ended with code 3", "the folder has no weights"]


async def test_killed_runner_is_reported_failed_and_takes_nothing_else_with_it(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path) as agent:
        other = replace(WHOLE, instance_id=InstanceId("bare-2"))
        control_plane.order(WHOLE, other)
        await control_plane.wait_for_report(
            lambda report: [one.state for one in report.runners] == [RunnerState.READY] * 2
        )
        victim, survivor = sorted(control_plane.reports[-1].runners, key=lambda one: one.instance_id)
        os.kill(victim.pid, signal.SIGKILL)
        failed = await control_plane.wait_for_runner(is_runner(RunnerState.FAILED))
        assert failed.instance_id == victim.instance_id
        assert failed.failure_message == "the runner was killed by signal 9"
        assert failed.address == ""
        left = {one.instance_id: one.pid for one in control_plane.reports[-1].runners if one.state is RunnerState.READY}
        assert left == {survivor.instance_id: survivor.pid}
        assert is_running(survivor.pid)
        assert agent.process.returncode is None


async def test_stopped_runner_is_killed_and_reported_failed(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path):
        control_plane.order(WHOLE)
        ready = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        os.kill(ready.pid, signal.SIGSTOP)
        failed = await control_plane.wait_for_runner(is_runner(RunnerState.FAILED))
        assert failed.failure_message.splitlines()[0] == "the runner was wedged: its process is stopped"
        assert not is_running(ready.pid)


async def test_stopped_runner_is_left_alone_without_a_watchdog(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path, PACELINE_WATCHDOG="off"):
        control_plane.order(WHOLE)
        ready = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        os.kill(ready.pid, signal.SIGSTOP)
        later = await control_plane.wait_for_more_reports(25)
        assert all(report.runners[0].state is RunnerState.READY for report in later)


async def test_agent_that_was_stopped_itself_kills_no_runner(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path) as agent:
        control_plane.order(WHOLE)
        ready = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        agent.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2.5)  # the fault itself: longer than a runner may be stopped
        agent.process.send_signal(signal.SIGCONT)
        later = await control_plane.wait_for_more_reports(15)
        assert all(one.pid == ready.pid and one.state is RunnerState.READY for one in later[-1].runners)
        assert is_running(ready.pid)


async def test_new_epoch_starts_what_failed_in_the_old_one(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    async with joined_agent(control_plane, tmp_path):
        control_plane.order(WHOLE)
        ready = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        os.kill(ready.pid, signal.SIGKILL)
        await control_plane.wait_for_runner(is_runner(RunnerState.FAILED))
        control_plane.order(NEXT_EPOCH)
        again = await control_plane.wait_for_runner(is_runner(RunnerState.READY, epoch=9))
        assert again.pid != ready.pid
        assert [one.epoch for one in control_plane.reports[-1].runners] == [9]


async def test_unwanted_runner_gets_time_to_finish_and_leaves_the_reports(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path, PACELINE_STOP_TIMEOUT_S="3.5"):
        control_plane.order(WHOLE)
        ready = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        control_plane.order()
        await control_plane.wait_for_report(has_no_runners)
        assert not is_running(ready.pid)
        _, drained, ended = read_journal(tmp_path)
        assert (drained.event, drained.deadline_s) == ("drained", 3.5)
        assert ended.cause == "drain"


async def test_runner_is_moved_to_the_next_epoch(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    async with joined_agent(control_plane, tmp_path):
        control_plane.order(replace(FIRST, next_address="10.0.0.2:4000"))
        before = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        control_plane.order(replace(HEAD, epoch=Epoch(9)))
        moved = await control_plane.wait_for_runner(is_runner(RunnerState.LOADED, epoch=9))
        assert moved.pid == before.pid
        assert (moved.stage, moved.start_layer, moved.end_layer) == (1, 2, 4)
        assert [one.epoch for one in control_plane.reports[-1].runners] == [9]
        control_plane.order(replace(HEAD, epoch=Epoch(9), next_address="10.0.0.3:4000"))
        await control_plane.wait_for_runner(is_runner(RunnerState.READY, epoch=9))
        assert events(tmp_path) == [("started", 7), ("connected", 7), ("moved", 9), ("connected", 9)]
        assert read_journal(tmp_path)[2].model_path == str(tmp_path / "models" / MODEL)


async def test_runner_that_cannot_be_moved_is_gone_before_its_successor_starts(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    os.mkfifo(hold_of(tmp_path))
    async with joined_agent(control_plane, tmp_path, "--hold"):
        control_plane.order(WHOLE)
        old = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        control_plane.order(replace(NEXT_EPOCH, kv_bits=8))
        await control_plane.wait_for_runner(lambda one: one.failure_message == "held")
        held = await control_plane.wait_for_more_reports(5)
        assert all([one.epoch for one in report.runners] == [7] for report in held)
        await asyncio.to_thread(hold_of(tmp_path).write_bytes, b"go")
        new = await control_plane.wait_for_runner(is_runner(RunnerState.READY, epoch=9))
        assert new.pid != old.pid
        assert events(tmp_path) == [("started", 7), ("drained", 7), ("ended", 7), ("started", 9)]
        control_plane.order()
        await control_plane.wait_for_runner(lambda one: one.failure_message == "held")
        await asyncio.to_thread(hold_of(tmp_path).write_bytes, b"go")
        await control_plane.wait_for_report(has_no_runners)


async def test_runner_that_does_not_end_is_killed(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    async with joined_agent(control_plane, tmp_path, "--deaf", PACELINE_STOP_TIMEOUT_S="0.1"):
        control_plane.order(WHOLE)
        ready = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        control_plane.order()
        await control_plane.wait_for_report(has_no_runners)
        assert not is_running(ready.pid)
        assert events(tmp_path) == [("started", 7)]


async def test_lines_that_are_no_reports_are_passed_over(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    async with joined_agent(control_plane, tmp_path, "--garbage") as agent:
        control_plane.order(WHOLE)
        ready = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        assert ready.instance_id == WHOLE.instance_id
        assert "runner_line_ignored" in agent.log


async def test_termination_ends_runners_then_says_goodbye(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    async with joined_agent(control_plane, tmp_path) as agent:
        control_plane.order(FIRST, HEAD)
        await control_plane.wait_for_report(
            lambda report: [one.state for one in report.runners] == [RunnerState.LOADED] * 2
        )
        pids = [one.pid for one in control_plane.reports[-1].runners]
        assert await agent.stop() == 0
        assert not any(map(is_running, pids))
        assert control_plane.num_goodbyes == 1
        assert has_no_runners(control_plane.reports[-1])
        assert await agent.read_line() == ""


async def test_termination_does_not_wait_for_a_deaf_runner_for_ever(
    control_plane: ScriptedControlPlane, tmp_path: Path
) -> None:
    async with joined_agent(control_plane, tmp_path, "--deaf", PACELINE_STOP_TIMEOUT_S="0.1") as agent:
        control_plane.order(WHOLE)
        ready = await control_plane.wait_for_runner(is_runner(RunnerState.READY))
        assert await agent.stop() == 0
        assert not is_running(ready.pid)


async def test_runners_end_with_an_agent_that_was_killed(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    async with joined_agent(control_plane, tmp_path) as agent:
        control_plane.order(FIRST, HEAD)
        await control_plane.wait_for_report(
            lambda report: [one.state for one in report.runners] == [RunnerState.LOADED] * 2
        )
        pids = [one.pid for one in control_plane.reports[-1].runners]
        await agent.kill()
        await wait_until(lambda: not any(map(is_running, pids)))
        assert [turn.cause for turn in read_journal(tmp_path) if turn.event == "ended"] == ["end of file"] * 2
