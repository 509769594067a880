"""Several sequences in one forward, each with its own KV cache: the tokens are rows, the caches of a layer stand side by side.

A model gets its input as [tokens, 1, hidden], the tokens of one sequence after those of the other, as if each were a batch of its own:
norms, projections and MLPs see rows and nothing else, positions are told row by row. Only attention must know which rows belong together.
There each sequence is attended by itself, over its own cache and with its own mask, exactly as when it is alone: no padding, no copying
when sequences join and leave, any lengths, prompts and single tokens in one step. (mlx-lm's batch caches pad to the longest sequence and
are made anew when one joins; docs/decisions/0005.) Sliding windows and quantised caches go this way too; states that are no attention
(Mamba, linear attention) do not, and families that do something of their own between cache and attention neither: stage.py finds out.
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models import base

from paceline_worker.model.cut import HandedOut

Cache = Any
_SIGNATURE = inspect.signature(base.scaled_dot_product_attention)
_CACHE_PLACE = list(_SIGNATURE.parameters).index("cache")


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring rows of one sequence, and its cache of one layer."""

    cache: Cache
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SegmentMask:
    """What a layer wants of its mask; the masks themselves are made for each segment."""

    window_size: int | None
    return_array: bool


class SegmentedCache:
    """The caches of one layer of several sequences, where mlx-lm's model code expects one. positions: int32 [tokens], of every row."""

    def __init__(self, segments: Sequence[Segment], positions: mx.array) -> None:
        self.segments = tuple(segments)
        self.offset = positions

    def make_mask(self, _num_tokens: int, *, return_array: bool = False, window_size: int | None = None) -> SegmentMask:
        return SegmentMask(window_size, return_array)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The new keys and values as they came, [tokens, heads, 1, dim]: they reach the caches in attend."""
        return keys, values

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, *, mask: SegmentMask, **options: Any
    ) -> mx.array:
        """Attention of queries [tokens, heads, 1, dim], segment by segment; grows the caches. Returns [tokens, heads, 1, dim]."""
        outputs = []
        start = 0
        for segment in self.segments:
            rows = slice(start, start + segment.num_tokens)
            outputs.append(_attend_segment(segment, (queries[rows], keys[rows], values[rows]), mask, options))
            start = rows.stop
        return mx.concatenate(outputs)


def _attend_segment(
    segment: Segment, rows: tuple[mx.array, mx.array, mx.array], mask: SegmentMask, options: dict[str, Any]
) -> mx.array:
    cache = segment.cache
    # Before the cache grows: the mask tells new tokens from old ones.
    own_mask = cache.make_mask(segment.num_tokens, window_size=mask.window_size, return_array=mask.return_array)
    queries, keys, values = (_as_sequence(part) for part in rows)
    whole = cache.update_and_fetch(keys, values)
    return _as_sequence(base.scaled_dot_product_attention(queries, *whole, cache=cache, mask=own_mask, **options))


def _as_sequence(rows: mx.array) -> mx.array:
    """[tokens, heads, 1, dim] as [1, heads, tokens, dim], and back."""
    return rows.transpose(2, 1, 0, 3)


def attend(*args: Any, **named: Any) -> mx.array:
    """mlx-lm's scaled_dot_product_attention, which knows SegmentedCache too."""
    cache = named["cache"] if "cache" in named else args[_CACHE_PLACE]
    if not isinstance(cache, SegmentedCache):
        return base.scaled_dot_product_attention(*args, **named)
    arguments = _SIGNATURE.bind(*args, **named).arguments
    del arguments["cache"]
    return cache.attend(**arguments)


def teach_attention(model: nn.Module) -> None:
    """Let the model files behind a model call our attend: each has mlx-lm's function under its name."""
    for _, module in model.named_modules():
        for kind in type(module).__mro__:
            source: Any = sys.modules.get(kind.__module__)
            has_it = getattr(source, "scaled_dot_product_attention", None) is base.scaled_dot_product_attention
            if has_it and source is not base:
                source.scaled_dot_product_attention = attend


class SelectedRows(nn.Module):
    """Stands where the first part after the layers was: only the rows whose logits are wanted go on to it and to the LM head."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.select(None)

    def select(self, rows: Sequence[int] | None) -> None:
        """Of the next calls' tokens, counted over the whole input; None: all; none of them: the forward ends here."""
        object.__setattr__(self, "_is_last", rows is not None and not rows)
        object.__setattr__(self, "_rows", None if not rows else mx.array(list(rows), mx.int32))

    def __call__(self, x: mx.array) -> mx.array:
        """x [batch, tokens, hidden] to [1, selected, hidden]; all of them to x's own shape. Raises HandedOut with the last row of x."""
        if self.__dict__["_is_last"]:
            raise HandedOut(x.reshape(1, -1, x.shape[-1])[:, -1:])
        rows = self.__dict__["_rows"]
        return self.part(x if rows is None else x.reshape(1, -1, x.shape[-1])[:, rows])
