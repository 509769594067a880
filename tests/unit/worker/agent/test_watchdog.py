"""When a runner counts as wedged: hand-made stamps, looks at chosen times."""

from dataclasses import replace

import pytest

from paceline_worker.agent.inventory import parse_oom_kills
from paceline_worker.agent.watchdog import (
    LOOK_INTERVAL_S,
    SILENCE_LIMIT_S,
    START_LIMIT_S,
    STOPPED_LIMIT_S,
    Watched,
)
from paceline_worker.stamps import Stamps

IDLE = Stamps(num_begun=7, num_finished=7, tick_ns=1000)
WORKING = Stamps(num_begun=8, num_finished=7, limit_s=5.0, tick_ns=1000)


def watch(
    *stamps: Stamps, passed_s: float = LOOK_INTERVAL_S, is_stopped: bool = False, before: Watched | None = None
) -> Watched:
    """After one look at each of these."""
    watched = before or Watched()
    for one in stamps:
        watched = watched.look(one, passed_s, is_stopped=is_stopped)
    return watched


def times(seconds: float) -> int:
    """Looks in so many seconds."""
    return round(seconds / LOOK_INTERVAL_S)


def ticking(stamps: Stamps, seconds: float) -> list[Stamps]:
    return [replace(stamps, tick_ns=1000 + look) for look in range(times(seconds))]


def test_idle_runner_that_ticks_is_healthy_for_ever() -> None:
    assert watch(*ticking(IDLE, 3600)).find_fault() == ""


def test_step_that_stays_within_its_limit_is_healthy_though_nothing_ticks() -> None:
    assert watch(*[WORKING] * times(4.75)).find_fault() == ""


def test_step_past_its_limit_is_a_fault_though_the_event_loop_ticks() -> None:
    watched = watch(*ticking(WORKING, 5.75))
    assert "has computed for 6 s what may take 5 s" in watched.find_fault()


def test_steps_that_follow_each_other_are_healthy_however_long() -> None:
    steps = [replace(WORKING, num_begun=8 + look, num_finished=7 + look) for look in range(times(60))]
    assert watch(*steps).find_fault() == ""


def test_silent_event_loop_is_a_fault_where_nothing_is_computed() -> None:
    assert watch(*[IDLE] * times(SILENCE_LIMIT_S)).find_fault() == ""
    assert "event loop" in watch(*[IDLE] * times(SILENCE_LIMIT_S + 1)).find_fault()


def test_process_that_has_not_ticked_yet_gets_time_to_import() -> None:
    assert watch(*[Stamps()] * times(START_LIMIT_S - 1)).find_fault() == ""
    assert watch(*[Stamps()] * times(START_LIMIT_S + 1)).find_fault()


def test_stopped_process_is_a_fault_whatever_its_stamps_say() -> None:
    watched = watch(*ticking(IDLE, 5))
    watched = watch(*[IDLE] * times(STOPPED_LIMIT_S), is_stopped=True, before=watched)
    assert watched.find_fault() == ""
    assert watch(IDLE, is_stopped=True, before=watched).find_fault() == "its process is stopped"


def test_process_that_was_stopped_for_a_moment_is_healthy() -> None:
    watched = watch(IDLE, IDLE, is_stopped=True)
    assert watch(IDLE, before=watched).stopped_s == 0


@pytest.mark.parametrize("stamps", [IDLE, WORKING], ids=["idle", "working"])
@pytest.mark.parametrize("is_stopped", [False, True])
def test_agent_that_was_away_for_an_hour_judges_nobody_by_that(stamps: Stamps, is_stopped: bool) -> None:
    watched = watch(stamps, stamps)
    assert watch(stamps, passed_s=3600.0, is_stopped=is_stopped, before=watched).find_fault() == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n", 2),
        ("nr_free_pages 12\noom_kill 5\n", 5),
        ("", 0),
    ],
)
def test_kills_for_lack_of_memory_are_read(text: str, number: int) -> None:
    assert parse_oom_kills(text) == number
