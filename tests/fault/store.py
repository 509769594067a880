"""All of etcd: away under load, back empty, back with an older copy of its contents. Serving goes on, and nothing is torn down."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from fault.answers import Verdict
from fault.faults import Fault, Target
from fault.load import Load
from fault.results import TrialResult
from fault.trial import Arena, make_whole
from fault.wounds import find_victim, strike_process
from support.fleet import copy_members, restore_members, wipe
from support.keeper import held

AWAY_S = 60.0
AFTERWARDS_S = 25.0
"""How long load goes on after etcd is back: longer than leases, elections and every interval of the control plane."""


def run_store_trials(arena: Arena, seed: int, folder: Path, away_s: float = AWAY_S) -> Iterator[TrialResult]:
    """Each of the three; folder: for the copy."""
    yield run_store_trial(arena, seed, 0, f"away for {away_s:g} s", lambda: time.sleep(away_s))
    yield run_store_trial(arena, seed, 1, "comes back empty", lambda: wipe(arena.fleet.members))
    age_copy(arena, folder / "older")
    restore = lambda: restore_members(arena.fleet.members, folder / "older")  # noqa: E731
    yield run_store_trial(arena, seed, 2, "comes back as an older copy", restore)


def run_store_trial(arena: Arena, seed: int, number: int, name: str, meanwhile: Callable[[], None]) -> TrialResult:
    """Kill all members, do something, start them again, all under load; then compare answers and runners."""
    fleet = arena.fleet
    runners = find_runners(arena)
    with Load(arena, seed) as load:
        with held(*fleet.etcd):
            meanwhile()
        time.sleep(AFTERWARDS_S)  # what a cluster does wrong after that, it does in this time
    torn_down = tell_torn_down(runners)
    missing, mended = make_whole(arena)
    rounds = load.judge()
    counts = {verdict: sum(one.verdicts[verdict] for one in rounds) for verdict in Verdict}
    return TrialResult(
        *("store", seed, number, "all of etcd", name, sum(counts.values())),
        num_lost=counts[Verdict.LOST],
        num_changed=counts[Verdict.CHANGED],
        num_doubled=counts[Verdict.DOUBLED],
        num_retries=sum(one.num_retries for one in rounds),
        pause_s=max((one.pause_s for one in rounds if one.pause_s is not None), default=None),
        missing="; ".join(filter(None, [missing, torn_down])),
        mended=mended,
        notes=tuple(note for one in rounds for note in one.notes),
    )


def age_copy(arena: Arena, folder: Path) -> None:
    """Copy what etcd has, then let the cluster go on to another epoch, so that the copy is older than what runs."""
    fleet = arena.fleet
    with held(*fleet.etcd):
        copy_members(fleet.members, folder)
    make_whole(arena)
    strike_process(find_victim(fleet, Target.STAGE, 0.0), Fault.KILL, 0.0)
    make_whole(arena)


def find_runners(arena: Arena) -> list[psutil.Process]:
    return [psutil.Process(shard["pid"]) for shard in arena.fleet.instance()["shards"]]


def tell_torn_down(runners: Sequence[psutil.Process]) -> str:
    """How many of these processes are gone, in words; empty when none is."""
    num_left = sum(runner.is_running() and runner.status() != psutil.STATUS_ZOMBIE for runner in runners)
    return "" if num_left == len(runners) else f"{len(runners) - num_left} of {len(runners)} runners were torn down"
