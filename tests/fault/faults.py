"""Which process of a cluster is struck how and when, and which hosts are cut from which: drawn from a seed. Pure.

Cases come from shuffled decks, so that each is struck about as often as any other, in any number of trials.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import TypeVar

T = TypeVar("T")

EARLIEST, LATEST = 0.05, 0.85
"""When to strike, as a share of the time that undisturbed answers take."""
PAUSES_S = (2.0, 8.0)
"""Least and longest time between SIGSTOP and SIGCONT."""
CUTS_S = (1.0, 5.0, 30.0)


class Target(StrEnum):
    STAGE = "stage before the head"
    HEAD = "head"
    AGENT = "agent"
    LEADER = "control plane leader"
    ETCD = "etcd member"
    GATEWAY = "gateway"


class Rank(StrEnum):
    """A runner of a tensor-parallel stage."""

    FIRST = "rank 0"
    OTHER = "another rank"


class Fault(StrEnum):
    KILL = "kill -9"
    STOP = "SIGSTOP"
    PAUSE = "SIGSTOP, SIGCONT"


class Edge(StrEnum):
    """Between which two hosts."""

    WORKERS = "worker - worker"
    BRAIN = "worker - control plane"
    FRONT = "gateway - head"


class Way(StrEnum):
    BOTH = "both ways"
    THERE = "first to second"
    BACK = "second to first"


@dataclass(frozen=True, slots=True)
class Timing:
    """When a trial strikes: moment is a share of the undisturbed time; pick (0 <= pick < 1) chooses among several equal victims."""

    number: int
    moment: float
    pick: float
    question_set: int


@dataclass(frozen=True, slots=True)
class Blow:
    """A process is struck."""

    timing: Timing
    target: Target | Rank
    fault: Fault
    pause_s: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Two hosts are parted for so long."""

    timing: Timing
    edge: Edge
    way: Way
    duration_s: float


def draw_blows(seed: int, num_trials: int, num_sets: int, targets: type[Target] | type[Rank] = Target) -> list[Blow]:
    """Trials 0.. of a seed; more trials begin with the same ones."""
    cases = _draw_cases(f"blows {seed}", num_trials, list(product(targets, Fault)))
    blows = []
    for number, (target, fault) in enumerate(cases):
        rng = random.Random(f"blow {seed} {number}")
        blows.append(Blow(_draw_timing(rng, number, num_sets), target, fault, rng.uniform(*PAUSES_S)))
    return blows


def draw_cuts(seed: int, num_trials: int, num_sets: int, durations_s: Sequence[float] = CUTS_S) -> list[Cut]:
    """As draw_blows."""
    cases = _draw_cases(f"cuts {seed}", num_trials, list(product(Edge, Way, durations_s)))
    return [
        Cut(_draw_timing(random.Random(f"cut {seed} {number}"), number, num_sets), edge, way, duration_s)
        for number, (edge, way, duration_s) in enumerate(cases)
    ]


def choose(candidates: Sequence[T], pick: float) -> T:
    """One of several equal victims."""
    return candidates[int(pick * len(candidates))]


def _draw_timing(rng: random.Random, number: int, num_sets: int) -> Timing:
    return Timing(number, rng.uniform(EARLIEST, LATEST), rng.random(), rng.randrange(num_sets))


def _draw_cases(seed: str, number: int, deck: Sequence[T]) -> list[T]:
    rng = random.Random(seed)
    drawn: list[T] = []
    while len(drawn) < number:
        drawn += rng.sample(deck, len(deck))
    return drawn[:number]
