"""Heartbeats cost no writes; what counts is written at once."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_control_plane.records import decode_report, encode_report
from paceline_control_plane.registry.settling import BUSY_S, mark_busy, settle_report
from paceline_services.domain.nodes import NodeReport
from paceline_services.domain.runners import RunnerLoad, RunnerState
from support.views import GIB, fetching_model, make_assignment, make_inventory, make_report, make_runner

TOTAL = 8 * GIB
RUNNER = make_runner(make_assignment("a"), 0, 7, RunnerState.LOADING)


def count_writes(reports: list[NodeReport]) -> int:
    stored: NodeReport | None = None
    writes = 0
    for report in reports:
        settled = settle_report(stored, report, TOTAL)
        writes += settled != stored
        stored = settled
    return writes


def test_a_repeated_report_is_written_once() -> None:
    report = replace(make_report(), inventory=make_inventory("a"), runners=(RUNNER,))
    assert count_writes([report] * 10) == 1


def test_creeping_memory_is_written_in_steps() -> None:
    reports = [make_report(4 * GIB + index * GIB // 1000) for index in range(1000)]
    assert count_writes(reports) <= 1 + 1000 * GIB // 1000 // (TOTAL // 20) + 1


def test_progress_is_written_in_steps() -> None:
    loading = [replace(make_report(), runners=(replace(RUNNER, load_progress=part / 1000),)) for part in range(1001)]
    assert count_writes(loading) == 21
    fetching = [make_report(models=[replace(fetching_model(part / 1000), total_bytes=10**9)]) for part in range(1001)]
    assert count_writes(fetching) == 21


@pytest.mark.parametrize(
    "change", [{"state": RunnerState.READY}, {"address": "127.0.0.1:9"}, {"pid": 5}, {"failure_message": "x"}]
)
def test_what_counts_is_written_at_once(change: dict[str, object]) -> None:
    before = replace(make_report(), runners=(RUNNER,))
    after = replace(before, runners=(replace(RUNNER, **change),))  # type: ignore[arg-type]
    assert count_writes([before, after]) == 2


def test_a_new_state_takes_the_memory_of_that_moment_along() -> None:
    before = settle_report(None, replace(make_report(), runners=(RUNNER,)), TOTAL)
    after = replace(RUNNER, state=RunnerState.READY, resident_bytes=RUNNER.resident_bytes + 1)
    settled = settle_report(before, replace(make_report(), runners=(after,)), TOTAL)
    assert settled.runners[0].resident_bytes == RUNNER.resident_bytes + 1


@given(st.floats(0, 1, width=32))
def test_settled_values_survive_being_stored(part: float) -> None:
    report = replace(make_report(), runners=(replace(RUNNER, load_progress=part),))
    settled = settle_report(None, report, TOTAL)
    again = decode_report(encode_report(settled))
    assert settle_report(settled, report, TOTAL) == settled
    assert again.runners[0].load_progress == pytest.approx(settled.runners[0].load_progress, abs=1e-6)
    assert settled.runners[0].load_progress <= part + 1e-6


def test_a_runner_is_busy_until_some_time_after_its_last_request() -> None:
    last: dict[tuple[str, int, int, int], float] = {}
    seen = []
    for now, load in (
        (0.0, None),
        (1.0, RunnerLoad()),
        (2.0, RunnerLoad(num_waiting=1)),
        (3.0, RunnerLoad()),
        (1.9 + BUSY_S, RunnerLoad()),
        (2.0 + BUSY_S, RunnerLoad()),
    ):
        report, last = mark_busy(replace(make_report(), runners=(replace(RUNNER, load=load),)), last, now)
        seen.append(report.runners[0].is_busy)
    assert seen == [False, False, True, True, True, False]


def test_being_busy_is_written_and_load_is_not() -> None:
    before = replace(make_report(), runners=(RUNNER,))
    loaded = replace(before, runners=(replace(RUNNER, load=RunnerLoad(num_running=1)),))
    busy = replace(before, runners=(replace(RUNNER, is_busy=True),))
    assert count_writes([before, loaded]) == 1
    assert count_writes([before, busy, busy]) == 2
