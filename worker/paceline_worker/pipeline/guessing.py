"""Guesses for all sequences of the head: who is asked for them, when, and what came of them. What they are worth is decided in drafting."""

import time
from collections.abc import Sequence

from paceline_services.ids import SequenceId
from paceline_worker.engine.draft_model import MOST_SEQUENCES, DraftModel
from paceline_worker.pipeline.compute import ComputeThread
from paceline_worker.pipeline.costs import StepCosts
from paceline_worker.pipeline.drafting import Drafter, Situation

RECENT = 0.1
"""Weight of the newest measurement in the running mean."""


class Guesser:
    """One drafter for each sequence, and the draft model where there is one. costs: those that the scheduler measures."""

    def __init__(self, costs: StepCosts, compute: ComputeThread, draft_model: DraftModel | None = None) -> None:
        self._costs = costs
        self._compute = compute
        self._draft_model = draft_model
        self._drafters: dict[SequenceId, Drafter] = {}
        self._overhead_s = 0.0

    def add(self, sequence_id: SequenceId, prompt: Sequence[int], max_tokens: int) -> Drafter:
        """Guess for a new sequence from now on. Its drafter counts what is offered and right."""
        drafter = self._drafters[sequence_id] = Drafter(prompt, max_tokens)
        return drafter

    def remove(self, sequence_id: SequenceId) -> None:
        """The sequence is over. Unknown: nothing."""
        self._drafters.pop(sequence_id, None)

    def learn(self, sequence_id: SequenceId, tokens: Sequence[int]) -> None:
        """These tokens were drawn for a sequence: at least one."""
        if drafter := self._drafters.get(sequence_id):
            drafter.learn(tokens)

    def take_overhead(self, seconds: float) -> None:
        """What a step cost beyond computing (links, waiting), measured where no other step was on its way."""
        self._overhead_s += RECENT * (seconds - self._overhead_s)

    def offer(self, sequence_id: SequenceId, num_others: int) -> Sequence[int]:
        """The guesses to check in a sequence's next step, in which so many tokens of others take part."""
        drafter = self._drafters.get(sequence_id)
        return drafter.offer(self._describe_step(num_others)) if drafter else ()

    async def ask_draft_model(self, ready: Sequence[SequenceId]) -> None:
        """Let the draft model guess for sequences that are about to be decoded, where that pays."""
        if self._draft_model is None or len(ready) > MOST_SEQUENCES:
            return
        situation = self._describe_step(len(ready) - 1)
        drafters = {one: drafter for one in ready if (drafter := self._drafters.get(one))}
        counts = {one: drafter.count_wanted(situation) for one, drafter in drafters.items()}
        wanted = {one: (list(drafters[one].tokens), count) for one, count in counts.items() if count}
        if not wanted:
            return
        model, alive, started = self._draft_model, frozenset(self._drafters), time.perf_counter()
        guesses = await self._compute.run(lambda: model.guess(wanted, alive))
        guess_s = (time.perf_counter() - started) / sum(map(len, guesses.values()))
        for one, tokens in guesses.items():
            drafters[one].take_from_model(tokens, guess_s)

    def _describe_step(self, num_others: int) -> Situation:
        return Situation(self._costs, num_others, self._overhead_s)
