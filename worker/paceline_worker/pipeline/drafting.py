"""Speculative decoding: guesses at the tokens that follow, to be checked several at a time.

Prompt lookup: when the last tokens occurred before, in prompt or answer, what followed them then is the guess (Saxena, "prompt lookup
decoding", 2023). It costs nothing and is right where an answer repeats what it is about. Guesses never change a token: each is compared
with the one that is drawn from the model's own logits at its place (choice.py), and the first that differs ends the step's gain.
Whether guessing pays is measured all the time, also while it is off. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline_worker.pipeline.costs import StepCosts

MATCHED_TOKENS = 3
"""So many last tokens must have occurred before."""
MOST_GUESSES = 32
FIRST_ACCEPTANCE = 0.5
LEARNING = 0.1
"""Weight of the newest guess in the running mean."""


@dataclass(slots=True)
class PromptLookup:
    """Where every run of MATCHED_TOKENS tokens of a sequence occurred last."""

    tokens: list[int] = field(default_factory=list)
    _places: dict[tuple[int, ...], int] = field(default_factory=dict)

    def extend(self, tokens: Sequence[int]) -> None:
        """More tokens of the sequence. The run at its very end is not entered before something follows it."""
        for token in tokens:
            if len(self.tokens) >= MATCHED_TOKENS:
                self._places[tuple(self.tokens[-MATCHED_TOKENS:])] = len(self.tokens)
            self.tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Up to so many tokens that followed when the last ones occurred before; empty where they did not."""
        place = self._places.get(tuple(self.tokens[-MATCHED_TOKENS:]))
        return [] if place is None else self.tokens[place : place + most]


@dataclass(slots=True)
class Drafter:
    """Guesses for one sequence, and how often they are right. tokens: the prompt."""

    prompt: Sequence[int]
    acceptance: float = FIRST_ACCEPTANCE
    num_drafted: int = 0
    num_accepted: int = 0
    _lookup: PromptLookup = field(default_factory=PromptLookup)
    _guesses: list[int] = field(default_factory=list)
    _num_offered: int = 0

    def offer(self, costs: StepCosts, num_others: int, most: int, overhead_s: float) -> list[int]:
        """The guesses worth checking in the next step, at most so many; see StepCosts.choose_draft for the rest."""
        if not self._lookup.tokens:
            self._lookup.extend(self.prompt)
        self._guesses = self._lookup.guess(min(most, MOST_GUESSES)) if most > 0 else []
        self._num_offered = costs.choose_draft(num_others, self.acceptance, len(self._guesses), overhead_s)
        return self._guesses[: self._num_offered]

    def learn(self, tokens: Sequence[int]) -> None:
        """What was drawn since the last offer: at least one token."""
        for guess, token in zip(self._guesses, tokens, strict=False):
            self.acceptance += LEARNING * ((guess == token) - self.acceptance)
            if guess != token:
                break
        self.num_drafted += self._num_offered
        self.num_accepted += len(tokens) - 1 if self._num_offered else 0
        self._guesses, self._num_offered = [], 0
        if self._lookup.tokens:
            self._lookup.extend(tokens)
