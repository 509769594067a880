"""One trial: clients of every kind, one blow, every answer waited for and compared, and the cluster made whole again.

What strikes is a function that returns how to undo it (Wound); how a cluster is struck is decided in wounds and partitions.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fault.answers import Answer, Verdict, judge
from fault.asking import Crowd, ask_all
from fault.faults import Timing
from fault.questions import NUM_SETS, Question, make_questions
from fault.results import TrialResult, judge_all
from support.fleet import START_TIMEOUT_S, Fleet, FleetError, StateWatch, Wish, wipe

WHOLE_TIMEOUT_S = 60.0
REBALANCE_TIMEOUT_S = 20.0
"""An instance that came back in fewer stages gets so long to take up the node that is back; then it is placed anew."""


class UnsteadyError(AssertionError):
    """Undisturbed answers differ among themselves: no trial can say anything."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A set of questions with undisturbed answers, and the seconds that those took together."""

    questions: tuple[Question, ...]
    answers: tuple[Answer, ...]
    duration_s: float

    def only_streams(self) -> "Reference":
        """Without whole answers: a client that waits for one cannot tell a silent gateway from a long answer."""
        kept = [pair for pair in zip(self.questions, self.answers, strict=True) if pair[0].body["stream"]]
        return Reference(tuple(one for one, _ in kept), tuple(answer for _, answer in kept), self.duration_s)


@dataclass(frozen=True, slots=True)
class Wound:
    """What was done: undo ends it, in words what had to be done that the cluster did not do by itself; empty if nothing."""

    undo: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Case:
    """A trial to be run: its place in the table, when it strikes, and how. is_gateway: clients may suspect their gateway."""

    part: str
    seed: int
    timing: Timing
    target: str
    fault: str
    strike: Callable[[], Wound]
    is_gateway: bool = False


@dataclass(frozen=True, slots=True)
class Arena:
    """A whole cluster, and the undisturbed answers of each set of questions."""

    fleet: Fleet
    wish: Wish
    references: tuple[Reference, ...]


def make_arena(fleet: Fleet, wish: Wish, num_sets: int = NUM_SETS) -> Arena:
    """Ask every set twice. Raises UnsteadyError when a second answer is not the first."""
    return Arena(fleet, wish, tuple(make_reference(fleet, make_questions(number)) for number in range(num_sets)))


def make_reference(fleet: Fleet, questions: tuple[Question, ...]) -> Reference:
    """The second of two rounds is the reference: it finds kept prefixes, as trials do."""
    urls, rng = tuple(fleet.gateways.values()), random.Random(0)
    first = ask_all(urls, questions, rng)
    begin = time.monotonic()
    second = ask_all(urls, questions, rng)
    duration_s = time.monotonic() - begin
    for question, one, other in zip(questions, first, second, strict=True):
        if one.failure or other.failure or judge(one, other) is not Verdict.FINE:
            raise UnsteadyError(f"undisturbed answers to {question.name!r} differ: {one.failure or other.failure}")
    return Reference(questions, tuple(second), duration_s)


def run_trial(arena: Arena, case: Case) -> TrialResult:
    """Strike in the middle of the answers. The cluster is whole afterwards, or the result says what is missing."""
    timing, fleet = case.timing, arena.fleet
    reference = arena.references[timing.question_set % len(arena.references)]
    if case.is_gateway:
        reference = reference.only_streams()
    rng = random.Random(f"clients {case.seed} {timing.number}")
    with StateWatch(fleet) as watch:
        asked = Crowd(tuple(fleet.gateways.values()), case.is_gateway).begin(reference.questions, rng)
        time.sleep(timing.moment * reference.duration_s)  # the moment of the blow is what the trial is about
        struck = time.monotonic()
        wound = case.strike()
        answers = asked.wait()
        answered = time.monotonic()
        mended = wound.undo()
        missing, more = make_whole(arena)
        recovery_s = watch.recovery_s(struck, answered)
    judged = judge_all(reference.questions, answers, reference.answers)
    return TrialResult(
        *(case.part, case.seed, timing.number, case.target, case.fault, len(answers)),
        num_lost=judged.verdicts[Verdict.LOST],
        num_changed=judged.verdicts[Verdict.CHANGED],
        num_doubled=judged.verdicts[Verdict.DOUBLED],
        num_retries=judged.num_retries,
        pause_s=judged.pause_s,
        recovery_s=recovery_s,
        missing=missing,
        mended="; ".join(filter(None, (mended, more))),
        notes=judged.notes,
    )


def make_whole(arena: Arena) -> tuple[str, str]:
    """Wait until the cluster is as at the beginning. Returns what was missing in the end, and what was done for it, in words.

    Raises FleetError where nothing helps.
    """
    fleet = arena.fleet
    missing = ""
    for timeout_s in (REBALANCE_TIMEOUT_S, WHOLE_TIMEOUT_S - REBALANCE_TIMEOUT_S):
        try:
            fleet.wait_whole(timeout_s)
            return "", ""
        except FleetError as error:
            missing = str(error)
        if fleet.is_short_of_stages():
            return "", _repair(arena)
    return missing, _repair(arena)


def _repair(arena: Arena) -> str:
    """Place the instance anew; where that does not help, start everything with an empty store. Returns what was done."""
    fleet = arena.fleet
    try:
        fleet.place_anew(arena.wish)
        fleet.wait_whole(WHOLE_TIMEOUT_S)
        return "placed anew"
    except FleetError:
        with fleet.power_cut():
            wipe(fleet.members)
        fleet.place(arena.wish)
        fleet.wait_whole(START_TIMEOUT_S)
        return "started anew with an empty store"


def find_failures(results: Sequence[TrialResult]) -> list[TrialResult]:
    return [result for result in results if not result.is_good]
