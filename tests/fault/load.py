"""Load that goes on while something happens to a cluster: round after round of a trial's questions, each answer kept."""

import random
import threading
from collections.abc import Sequence
from types import TracebackType

from fault.answers import Answer
from fault.asking import ask_all
from fault.results import Judged, judge_all
from fault.trial import Arena, Reference


class Load:
    """A context: a round of questions at a time, until its end; then results has every round, whole."""

    def __init__(self, arena: Arena, seed: int = 0) -> None:
        self._arena = arena
        self._rng = random.Random(f"load {seed}")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.rounds: list[tuple[Reference, Sequence[Answer]]] = []

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()

    def judge(self) -> list[Judged]:
        """What became of each round so far."""
        return [judge_all(one.questions, answers, one.answers) for one, answers in list(self.rounds)]

    def _run(self) -> None:
        urls = tuple(self._arena.fleet.gateways.values())
        while not self._stopped.is_set():
            reference = self._rng.choice(self._arena.references)
            self.rounds.append((reference, ask_all(urls, reference.questions, self._rng)))
