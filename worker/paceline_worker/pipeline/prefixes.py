"""Which sequences hold the beginning of a prompt: finds the one with the longest common prefix. Pure.

Candidates are found by their first tokens, then compared token by token as arrays: microseconds for thousands of tokens, and no tree
with a node per token to keep.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paceline_services.ids import SequenceId

MIN_TOKENS = 16
"""Prefixes shorter than this are computed again: copying a cache is not worth it."""

Tokens = npt.NDArray[np.int32]


@dataclass(slots=True)
class PrefixIndex:
    """Sequences by their tokens."""

    _tokens: dict[SequenceId, Tokens] = field(default_factory=dict)
    _by_start: dict[bytes, set[SequenceId]] = field(default_factory=dict)

    def add(self, sequence_id: SequenceId, tokens: Sequence[int]) -> None:
        """Remember a sequence of at least MIN_TOKENS tokens; shorter ones are not worth it."""
        if len(tokens) < MIN_TOKENS:
            return
        array = np.asarray(tokens, np.int32)
        self._tokens[sequence_id] = array
        self._by_start.setdefault(_start(array), set()).add(sequence_id)

    def remove(self, sequence_id: SequenceId) -> None:
        array = self._tokens.pop(sequence_id, None)
        if array is not None:
            same = self._by_start[_start(array)]
            same.discard(sequence_id)
            if not same:
                del self._by_start[_start(array)]

    def find(self, tokens: Sequence[int]) -> list[tuple[SequenceId, int]]:
        """Sequences that share at least MIN_TOKENS tokens with these, and how many they share; the longest first."""
        if len(tokens) < MIN_TOKENS:
            return []
        array = np.asarray(tokens, np.int32)
        candidates: Collection[SequenceId] = self._by_start.get(_start(array), ())
        found = [(one, count_common(self._tokens[one], array)) for one in candidates]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def count_common(one: Tokens, other: Tokens) -> int:
    """Tokens that two sequences share from the first on."""
    size = min(len(one), len(other))
    differs = one[:size] != other[:size]
    return int(differs.argmax()) if differs.any() else size


def _start(array: Tokens) -> bytes:
    return array[:MIN_TOKENS].tobytes()
