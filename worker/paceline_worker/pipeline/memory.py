"""Room for KV caches, counted in tokens: who holds how much, what is kept for prompts to come, and what must go. Pure.

Every stage holds the same tokens of the same sequences, so the head counts once for all; the room is that of the stage with the least.
Finished sequences stay as long as nobody needs their room, those used longest ago leave first. Prompts that begin as they do, or as a
running sequence does, start with a copy.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline_services.ids import SequenceId
from paceline_worker.pipeline.prefixes import MIN_TOKENS, PrefixIndex

GROWTH_TOKENS = 256
"""KV caches grow by so many tokens at a time (mlx-lm's step)."""

UNCOUNTED_TOKENS = 1 << 40
"""Room where caches do not grow with tokens, so that nobody counts."""
MOST_OF_AVAILABLE = 0.9
"""Part of the memory that is free once the weights are loaded; the rest is for activations and for others."""


def round_up(num_tokens: int) -> int:
    """Tokens of KV cache that a sequence of so many takes."""
    return -(-num_tokens // GROWTH_TOKENS) * GROWTH_TOKENS


def count_capacity(wanted_bytes: int, available_bytes: int, bytes_per_token: int) -> int:
    """Tokens of KV cache that fit where so many bytes are wanted and so many are there; 0 where caches do not grow with tokens."""
    if not bytes_per_token:
        return 0
    usable = min(wanted_bytes, int(available_bytes * MOST_OF_AVAILABLE))
    return max(GROWTH_TOKENS, usable // bytes_per_token // GROWTH_TOKENS * GROWTH_TOKENS)


def fewest_tokens(*capacities: int) -> int:
    """The room of those who have the least; those who counted none (0) are passed over, and 0 where nobody did."""
    return min((capacity for capacity in capacities if capacity), default=0)


@dataclass(frozen=True, slots=True)
class Found:
    """A sequence whose first tokens are those of a prompt."""

    source_id: SequenceId
    num_tokens: int


@dataclass(slots=True)
class KvMemory:
    """The caches of one epoch. can_cut: whether a cache can be cut back to any of its tokens."""

    capacity_tokens: int
    can_cut: bool = True
    _running: dict[SequenceId, int] = field(default_factory=dict)
    _kept: OrderedDict[SequenceId, int] = field(default_factory=OrderedDict)
    _prefixes: PrefixIndex = field(default_factory=PrefixIndex)
    _evicted: list[SequenceId] = field(default_factory=list)

    @property
    def running_tokens(self) -> int:
        return sum(self._running.values())

    @property
    def num_kept(self) -> int:
        """Finished sequences whose caches are kept."""
        return len(self._kept)

    @property
    def kept_tokens(self) -> int:
        return sum(map(round_up, self._kept.values()))

    def can_ever_hold(self, num_tokens: int) -> bool:
        return round_up(num_tokens) <= self.capacity_tokens

    def start(self, sequence_id: SequenceId, prompt: Sequence[int], num_tokens: int) -> bool:
        """Room for a new sequence of so many tokens, whose prompt others may begin with; False where there is none."""
        if not self.reserve(sequence_id, num_tokens):
            return False
        self._prefixes.add(sequence_id, prompt)
        return True

    def reserve(self, sequence_id: SequenceId, num_tokens: int) -> bool:
        """Let a sequence grow to so many tokens, at the cost of what is kept; False where running ones leave no room."""
        held, needed = self._running.get(sequence_id, 0), round_up(num_tokens)
        if needed <= held:
            return True
        others = self.running_tokens - held
        if others + needed > self.capacity_tokens:
            return False
        self._running[sequence_id] = needed
        while others + needed + self.kept_tokens > self.capacity_tokens:
            self._evict(next(iter(self._kept)))
        return True

    def release(self, sequence_id: SequenceId) -> None:
        """A running sequence's cache is given up."""
        if self._running.pop(sequence_id, None) is not None:
            self._prefixes.remove(sequence_id)
            self._evicted.append(sequence_id)

    def keep(self, sequence_id: SequenceId, tokens: Sequence[int]) -> None:
        """A running sequence is finished; its cache holds these tokens and stays while there is room."""
        if len(tokens) < MIN_TOKENS:
            self.release(sequence_id)
            return
        self._running.pop(sequence_id, None)
        self._prefixes.remove(sequence_id)
        for other, num_shared in self._prefixes.find(tokens):
            if self._kept.get(other) == num_shared:
                self._evict(other)  # all that it holds, this one holds too
        self._kept[sequence_id] = len(tokens)
        self._prefixes.add(sequence_id, tokens)

    def drop(self, sequence_id: SequenceId) -> None:
        """What a sequence holds is not to be trusted: nobody begins with it. Not kept: nothing."""
        if sequence_id in self._kept:
            self._evict(sequence_id)

    def find(self, prompt: Sequence[int], num_computed: dict[SequenceId, int]) -> Found | None:
        """The sequence that saves most of a prompt's work; num_computed: tokens of the running ones that are computed by now.

        At least one token of the prompt is left to compute: its logits are wanted.
        """
        best: Found | None = None
        for other, num_shared in self._prefixes.find(prompt[:-1]):
            kept = self._kept.get(other)
            usable = min(num_shared, num_computed.get(other, 0) if kept is None else kept)
            if not self.can_cut and (kept is None or usable < kept):
                continue
            if usable >= MIN_TOKENS and (best is None or usable > best.num_tokens):
                best = Found(other, usable)
        if best and best.source_id in self._kept:
            self._kept.move_to_end(best.source_id)
        return best

    def find_coming(self, prompt: Sequence[int]) -> int:
        """How many of a prompt's tokens some running sequence computes or has computed."""
        shared = (num_shared for other, num_shared in self._prefixes.find(prompt[:-1]) if other in self._running)
        return max(shared, default=0) if self.can_cut else 0

    def take_evicted(self) -> tuple[SequenceId, ...]:
        """Sequences whose caches must be freed on every stage, since the last call."""
        evicted, self._evicted = tuple(self._evicted), []
        return evicted

    def _evict(self, sequence_id: SequenceId) -> None:
        del self._kept[sequence_id]
        self._prefixes.remove(sequence_id)
        self._evicted.append(sequence_id)
