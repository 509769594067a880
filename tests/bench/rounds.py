"""Interleaved rounds: every system answers the same request one after the other, and figures are medians over rounds.

The machines this runs on are shared, so speeds drift within a run; a ratio is therefore taken within a round, and then its median
over the rounds that both systems took part in.
"""

import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.system import System, Timing, UnavailableError


class Case(NamedTuple):
    """What was asked of whom: a system's name, its threads, the prompt's tokens, and whether a foreign process was busy."""

    system: str
    num_threads: int
    prompt_tokens: int
    is_busy: bool = False


Figure = Callable[[Timing], float]


def decode(timing: Timing) -> float:
    return timing.decode_tokens_per_s


def mean_decode(timing: Timing) -> float:
    return timing.mean_decode_tokens_per_s


def prefill(timing: Timing) -> float:
    return timing.prefill_tokens_per_s


@dataclass(slots=True)
class Ledger:
    """All timings of a run, by case and round."""

    timings: dict[Case, dict[int, Timing]] = field(default_factory=dict)

    def add(self, case: Case, number: int, timing: Timing) -> None:
        self.timings.setdefault(case, {})[number] = timing

    def has(self, *cases: Case) -> bool:
        return all(case in self.timings for case in cases)

    def median(self, case: Case, read: Figure) -> float | None:
        """None where the case was not measured."""
        if case not in self.timings:
            return None
        return statistics.median(read(timing) for timing in self.timings[case].values())

    def ratio(self, case: Case, base: Case, read: Figure) -> float | None:
        """Median over common rounds of case's figure over base's; None where there is none."""
        mine, theirs = self.timings.get(case, {}), self.timings.get(base, {})
        common = mine.keys() & theirs.keys()
        return statistics.median(read(mine[number]) / read(theirs[number]) for number in common) if common else None

    def to_json(self) -> list[dict[str, object]]:
        return [
            {**case._asdict(), "round": number, "prefill_s": timing.prefill_s, "token_s": timing.token_s}
            for case, rounds in self.timings.items()
            for number, timing in rounds.items()
        ]


@dataclass(slots=True)
class Lineup:
    """The systems that take part, each with its threads; those that cannot are left out, with the reason."""

    stack: ExitStack
    systems: list[tuple[System, int]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def enter(self, open_system: Callable[[], System], num_threads: int) -> None:
        try:
            system = self.stack.enter_context(open_system())
            say(f"{system.name}, {num_threads} threads: {system.loaded.get('kernels') or 'loaded'}")
            self.systems.append((system, num_threads))
        except UnavailableError as error:
            self.give_up(error)

    def give_up(self, error: UnavailableError) -> None:
        say(f"left out: {error}")
        if str(error) not in self.reasons:
            self.reasons.append(str(error))

    def drop(self, system: System, error: UnavailableError) -> None:
        """A system that died while it was measured."""
        self.systems = [(one, threads) for one, threads in self.systems if one is not system]
        self.give_up(error)

    def find(self, name: str, num_threads: int) -> System | None:
        return next((one for one, threads in self.systems if one.name == name and threads == num_threads), None)


def in_turn(items: Sequence[Any], number: int) -> Iterable[Any]:
    """The items, beginning with another one each round."""
    start = number % max(1, len(items))
    return [*items[start:], *items[:start]]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
