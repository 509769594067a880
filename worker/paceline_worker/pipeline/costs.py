"""What a step costs, as measured: from its number of tokens to seconds, and what follows from it. Pure.

A step's time is nearly flat over a few tokens where reading the weights decides, and grows with them where arithmetic does; which it is
differs by machine and by model. So it is measured while serving, by size classes that double, and read between them.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

RECENT = 0.2
"""Weight of the newest measurement in the running mean."""
MAX_STRETCH = 2.0
"""A step that decodes may take this much longer for a chunk of somebody's prompt."""
MAX_CHUNK_S = 0.5
"""Of pure prefill: how long a sequence that starts meanwhile may have to wait for a chunk."""
MIN_CHUNK_TOKENS = 8
FIRST_CHUNK_TOKENS = 64
"""Until anything was measured."""
DRAFT_SIZES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(slots=True)
class Odds:
    """What guesses of one kind are worth. acceptance: part of them that were right; guess_s: seconds that one costs to make."""

    acceptance: float = 0.5
    guess_s: float = 0.0


@dataclass(slots=True)
class _Class:
    tokens: float
    seconds: float


@dataclass(slots=True)
class StepCosts:
    """Measured times of steps, over all stages, by number of tokens."""

    _classes: dict[int, _Class] = field(default_factory=dict)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens was computed."""
        if num_tokens < 1 or seconds <= 0:
            return
        key = _class_of(num_tokens)
        known = self._classes.get(key)
        if known is None:
            self._classes[key] = _Class(num_tokens, seconds)
            return
        # An interrupted step says little about the next one: what is far above the mean counts as twice the mean.
        known.seconds += RECENT * (min(seconds, 2 * known.seconds) - known.seconds)
        known.tokens += RECENT * (num_tokens - known.tokens)

    def forget(self) -> None:
        """Other stages compute from now on."""
        self._classes.clear()

    def predict(self, num_tokens: int) -> float | None:
        """Seconds of a step of so many tokens; None while nothing was measured. Never less for more tokens."""
        known = [one for _, one in sorted(self._classes.items())]
        if not known:
            return None
        sizes = [one.tokens for one in known]
        points = list(zip(sizes, accumulate((one.seconds for one in known), max), strict=True))
        at = bisect_left(sizes, num_tokens)
        if at == 0:
            return points[0][1]
        if at == len(points):
            tokens, seconds = points[-1]
            return seconds * num_tokens / tokens
        (low, low_s), (high, high_s) = points[at - 1], points[at]
        return max(low_s, low_s + (high_s - low_s) * (num_tokens - low) / max(high - low, 1e-9))

    def choose_chunk(self, num_decoding: int, most: int) -> int:
        """Tokens of prompts that a step may compute beside so many that decode, at most `most`."""
        if num_decoding:
            alone = self.predict(num_decoding)
            limit_s = None if alone is None else MAX_STRETCH * alone
        else:
            limit_s = MAX_CHUNK_S if self._classes else None
        if limit_s is None:
            return min(FIRST_CHUNK_TOKENS, most)
        return max(min(MIN_CHUNK_TOKENS, most), self._largest_within(limit_s, num_decoding, most))

    def _largest_within(self, limit_s: float, num_decoding: int, most: int) -> int:
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if (self.predict(num_decoding + middle) or 0.0) <= limit_s:
                low = middle
            else:
                high = middle - 1
        return low

    def choose_draft(self, num_others: int, odds: "Odds", most: int, overhead_s: float) -> int:
        """Tokens to guess for a sequence in a step with so many tokens of others, for the most tokens per second.

        overhead_s: what a step costs beyond computing (links, waiting).
        """
        best, best_rate = 0, 0.0
        for count in (size for size in DRAFT_SIZES if size <= most):
            seconds = (self.predict(num_others + 1 + count) or 1.0) + overhead_s + count * odds.guess_s
            rate = (num_others + expect_tokens(count, odds.acceptance)) / seconds
            if rate > best_rate * 1.02:
                best, best_rate = count, rate
        return best


def expect_tokens(num_drafted: int, acceptance: float) -> float:
    """Tokens that a step gives a sequence on average: the guessed ones up to the first wrong one, and one more."""
    if acceptance >= 1:
        return 1.0 + num_drafted
    return float((1 - acceptance ** (num_drafted + 1)) / (1 - acceptance))


def _class_of(num_tokens: int) -> int:
    return math.ceil(math.log2(num_tokens)) if num_tokens > 1 else 0
