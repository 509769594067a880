"""Speculative decoding: guesses at the tokens that follow, to be checked several at a time.

Two sources. Prompt lookup: when the last tokens occurred before, in prompt or answer, what followed them then is the guess (Saxena, "prompt
lookup decoding", 2023); it costs nothing and is right where an answer repeats what it is about. A small draft model, where the instance
has one: it guesses when nothing occurred before.

Guesses never change a token: each is compared with the one that is drawn from the model's own logits at its place (choice.py), and the
first that differs ends the step's gain. Whether guessing pays is measured all the time, for lookup also while it is off. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline_worker.pipeline.costs import Odds, StepCosts

MATCHED_TOKENS = 3
"""So many last tokens must have occurred before."""
MOST_PLACES = 8
"""Of a run that occurred often, so many first and last places are compared."""
MOST_COMPARED = 24
"""Tokens before a place that are looked at to choose among places."""
MOST_GUESSES = 32
LEARNING = 0.1
"""Weight of the newest guess in the running mean."""
FORGETTING = 0.02
"""How fast what was learnt of the draft model fades while it is not asked, so that it is tried again."""


@dataclass(slots=True)
class PromptLookup:
    """Where every run of MATCHED_TOKENS tokens of a sequence occurred."""

    tokens: list[int] = field(default_factory=list)
    _places: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def extend(self, tokens: Sequence[int]) -> None:
        """More tokens of the sequence. The run at its very end is not entered before something follows it."""
        for token in tokens:
            if len(self.tokens) >= MATCHED_TOKENS:
                self._places.setdefault(tuple(self.tokens[-MATCHED_TOKENS:]), []).append(len(self.tokens))
            self.tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Up to so many tokens that followed when the last ones occurred before; empty where they did not.

        Of several places it is the one before which most is the same too, of those the latest.
        """
        places = self._places.get(tuple(self.tokens[-MATCHED_TOKENS:]), [])
        if not places or most < 1:
            return []
        compared = dict.fromkeys([*places[:MOST_PLACES], *places[-MOST_PLACES:]])
        place = max(compared, key=lambda place: (self._count_same_before(place), place))
        return self.tokens[place : place + most]

    def _count_same_before(self, place: int) -> int:
        """Tokens before a place that are those at the end, going back."""
        end = len(self.tokens)
        same = MATCHED_TOKENS
        while same < MOST_COMPARED and same < place and self.tokens[place - 1 - same] == self.tokens[end - 1 - same]:
            same += 1
        return same


@dataclass(frozen=True, slots=True)
class Situation:
    """What a step is like that guesses may join: costs of steps, tokens of others in it, seconds a step costs beyond computing."""

    costs: StepCosts
    num_others: int
    overhead_s: float


@dataclass(slots=True)
class Drafter:
    """Guesses for one sequence, and how often they are right. prompt: its tokens; max_tokens: those that its answer may have."""

    prompt: Sequence[int]
    max_tokens: int
    lookup_odds: Odds = field(default_factory=Odds)
    model_odds: Odds = field(default_factory=Odds)
    num_drafted: int = 0
    num_accepted: int = 0
    _index: PromptLookup = field(default_factory=PromptLookup)
    _guesses: list[int] = field(default_factory=list)
    _of_model: list[int] = field(default_factory=list)
    _num_offered: int = 0

    @property
    def _lookup(self) -> PromptLookup:
        """Filled with the prompt at its first use: sequences that wait need none."""
        if not self._index.tokens:
            self._index.extend(self.prompt)
        return self._index

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer so far."""
        return self._lookup.tokens

    @property
    def _most(self) -> int:
        """Guesses that the answer has room for, besides the token that is drawn after them."""
        return min(MOST_GUESSES, self.max_tokens - (len(self.tokens) - len(self.prompt)) - 1)

    def count_wanted(self, situation: Situation) -> int:
        """How many guesses of the draft model are worth making now."""
        if self._most < 1 or self._lookup.guess(1):
            return 0
        return situation.costs.choose_draft(situation.num_others, self.model_odds, self._most, situation.overhead_s)

    def take_from_model(self, guesses: Sequence[int], guess_s: float) -> None:
        """The draft model's guesses, for the next offer, and what one took in seconds."""
        self._of_model = list(guesses)
        self.model_odds.guess_s += LEARNING * (guess_s - self.model_odds.guess_s)

    def offer(self, situation: Situation) -> list[int]:
        """The guesses worth checking in the next step."""
        if self._of_model:
            self._guesses = self._of_model
            self._num_offered = len(self._guesses)
            return self._guesses
        self._guesses = self._lookup.guess(self._most)
        self._num_offered = situation.costs.choose_draft(
            situation.num_others, self.lookup_odds, len(self._guesses), situation.overhead_s
        )
        return self._guesses[: self._num_offered]

    def learn(self, tokens: Sequence[int]) -> None:
        """What was drawn since the last offer: at least one token."""
        odds = self.model_odds if self._of_model else self.lookup_odds
        for guess, token in zip(self._guesses, tokens, strict=False):
            odds.acceptance += LEARNING * ((guess == token) - odds.acceptance)
            if guess != token:
                break
        if not self._of_model:
            self.model_odds.acceptance += FORGETTING * (Odds().acceptance - self.model_odds.acceptance)
        self.num_drafted += self._num_offered
        self.num_accepted += len(tokens) - 1 if self._num_offered else 0
        self._guesses, self._of_model, self._num_offered = [], [], 0
        self._lookup.extend(tokens)
