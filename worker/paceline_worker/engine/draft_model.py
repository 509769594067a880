"""A small model that guesses what a big one will say: whole on the head, with KV caches of its own.

It only ever proposes: the tokens are checked against the big model's logits. It guesses for a few sequences at once, all in one forward;
with many sequences a step is full anyway, and guessing does not pay.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from paceline_services.ids import SequenceId
from paceline_worker.model.stage import Part, SequenceCache, StageModel

MOST_SEQUENCES = 4
"""Sequences whose caches are kept."""
CHUNK_TOKENS = 512


@dataclass(slots=True)
class _Draft:
    """A sequence's cache here, and the tokens in it."""

    cache: SequenceCache
    tokens: list[int]


class DraftModel:
    """Owns its caches, of capacity_tokens together. Called from the compute thread only."""

    def __init__(self, model: StageModel, capacity_tokens: int) -> None:
        self._model = model
        self._capacity_tokens = capacity_tokens
        self._drafts: OrderedDict[SequenceId, _Draft] = OrderedDict()

    def guess(
        self, wanted: Mapping[SequenceId, tuple[Sequence[int], int]], alive: Collection[SequenceId]
    ) -> dict[SequenceId, list[int]]:
        """The most likely next tokens of at most MOST_SEQUENCES sequences: for each its tokens so far and how many to guess.

        Caches of sequences that are not alive any more are given up.
        """
        for over in [one for one in self._drafts if one not in alive]:
            del self._drafts[over]
        drafts = {one: self._catch_up(one, tokens) for one, (tokens, _) in wanted.items()}
        pending = {one: tokens[len(drafts[one].tokens) :] for one, (tokens, _) in wanted.items()}
        guesses: dict[SequenceId, list[int]] = {one: [] for one in wanted}
        while pending:
            following = self._forward(drafts, pending)
            for one, token in following.items():
                guesses[one].append(token)
            pending = {one: [token] for one, token in following.items() if len(guesses[one]) < wanted[one][1]}
        return guesses

    def _catch_up(self, sequence_id: SequenceId, tokens: Sequence[int]) -> _Draft:
        """The sequence's cache with all its tokens but the last few, at least one: wrong guesses cut off, long prompts computed."""
        draft = self._drafts.pop(sequence_id, None) or _Draft(self._model.make_cache(), [])
        self._drafts[sequence_id] = draft
        self._make_room(len(tokens))
        num_shared = _count_common(draft.tokens, tokens[:-1])
        self._model.trim(draft.cache, num_shared)
        del draft.tokens[num_shared:]
        while len(tokens) - len(draft.tokens) > CHUNK_TOKENS:
            chunk = list(tokens[len(draft.tokens) : len(draft.tokens) + CHUNK_TOKENS])
            mx.eval(self._model.forward(mx.array(chunk, mx.int32), [Part(draft.cache, len(chunk), is_prompt=True)]))
            draft.tokens += chunk
        return draft

    def _make_room(self, num_tokens: int) -> None:
        """Give up the caches used longest ago, until the newest one has room for so many tokens."""
        others = len(self._drafts) - 1
        total = num_tokens + sum(len(draft.tokens) for draft in list(self._drafts.values())[:others])
        while others and (others >= MOST_SEQUENCES or total > self._capacity_tokens):
            _, draft = self._drafts.popitem(last=False)
            others, total = others - 1, total - len(draft.tokens)

    def _forward(
        self, drafts: Mapping[SequenceId, _Draft], pending: Mapping[SequenceId, Sequence[int]]
    ) -> dict[SequenceId, int]:
        parts = [Part(drafts[one].cache, len(tokens), num_logits=1) for one, tokens in pending.items()]
        inputs = mx.array([token for tokens in pending.values() for token in tokens], mx.int32)
        best = np.array(mx.argmax(self._model.forward(inputs, parts), axis=-1))
        for one, tokens in pending.items():
            drafts[one].tokens += tokens
        return {one: int(token) for one, token in zip(pending, best, strict=True)}


def _count_common(one: Sequence[int], other: Sequence[int]) -> int:
    return next(
        (index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )
