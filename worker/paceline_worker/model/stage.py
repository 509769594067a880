"""One stage of a model at work: token ids or activations of several sequences in, activations or logits out.

How a stage is cut out of a model is decided in shard.py and cut.py, how several sequences share a forward in segments.py. That they
may, and that the LM head may be given single rows, is not assumed of a family: both are tried when the stage is made, and where the
results are not those of each sequence alone, sequences are run one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, takewhile
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from paceline_kernels import Loops, using_loops
from paceline_kernels.ranks import find_group, holds_everywhere
from paceline_services.errors import ConfigurationError, InternalError
from paceline_services.logs import get_logger
from paceline_worker.model.anatomy import ModelPart, Phase
from paceline_worker.model.caches import (
    can_cut,
    can_stand_side_by_side,
    copy_first,
    count_bytes_per_token,
    make_blank,
    quantize,
    set_growth,
)
from paceline_worker.model.cut import CutModel
from paceline_worker.model.segments import Segment, SegmentedCache, SelectedRows, teach_attention

Cache = Any
_TRIAL_FAULTS = (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError)


@dataclass(slots=True)
class SequenceCache:
    """The caches of one sequence that this stage holds."""

    layers: list[Cache]
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """What one sequence adds to a forward: its next tokens, for how many of the last of them logits are wanted, how many will follow.

    is_prompt: a chunk of a prompt, of which no logits are wanted. Such chunks come after all other parts, and what a token's forward
    gives is the same to the last bit whatever else is in the step, for those of prompts and for all others (on CPUs with the kernels).
    """

    cache: SequenceCache
    num_tokens: int
    num_logits: int = 0
    num_to_come: int = 0
    is_prompt: bool = False


class StageModel:
    """The layers of one stage, loaded. Make it with load_shard."""

    def __init__(self, cut_model: CutModel, kv_bits: int = 0) -> None:
        whole = make_prompt_cache(cut_model.model)
        self._cut_model: CutModel | None = cut_model
        self._shard = cut_model.shard
        self._kv_bits = kv_bits
        self._caches = cut_model.plan_caches(whole)
        self._blanks = [whole[index] for index in self._caches.blanks]
        self._selected: SelectedRows | None = None
        self._joins_sequences = False
        self.can_cut = can_cut(whole)
        """Whether a sequence can be cut back to any of its tokens, on every stage of the model."""
        self.kv_bytes_per_token = 0
        """Bytes of KV cache that a token takes on this stage."""

    def give_up(self) -> None:
        """Forget the layers, so that what nobody else holds of them is freed. Nothing can be run any more."""
        self._cut_model = self._selected = None

    @property
    def joins_sequences(self) -> bool:
        """Whether several sequences are computed in one forward; else one after another."""
        return self._joins_sequences

    def make_cache(self) -> SequenceCache:
        """Empty KV caches of the held layers, of the kinds that mlx-lm makes for them, quantised where that is wanted."""
        model = self._get_cut().model
        whole = make_prompt_cache(model)
        layers = [whole[index] for index in self._caches.held]
        if self._kv_bits:
            layers = [quantize(layer, self._kv_bits, find_head_dim(model)) for layer in layers]
        return SequenceCache(layers)

    def forward(self, inputs: mx.array, parts: Sequence[Part]) -> mx.array:
        """Run the stage over the next tokens of several sequences and grow their caches.

        inputs: token ids [tokens] int32 on the first stage, activations [tokens, hidden] on later ones, one part after the other.
        Returns activations [tokens, hidden]; on the last stage the wanted logits [rows, vocab], or where none are wanted something that
        stands for the work. Nothing is computed before the result is evaluated, which must happen before the caches are used again.
        """
        for part in parts:
            set_growth(part.cache.layers, part.num_tokens + part.num_to_come)
        answers = list(takewhile(lambda part: not part.is_prompt, parts))
        groups = [(answers, Loops.FEW), (parts[len(answers) :], Loops.MANY)]
        pieces: list[mx.array] = []
        for group, loops in groups:
            num_tokens = sum(part.num_tokens for part in group)
            if group:
                with using_loops(loops):
                    pieces.append(self._run_together(inputs[:num_tokens], group))
            inputs = inputs[num_tokens:]
        for part in parts:
            part.cache.num_tokens += part.num_tokens
        return self._put_together(pieces, [_wants_logits(group) for group, _ in groups if group])

    def trim(self, cache: SequenceCache, num_tokens: int) -> bool:
        """Cut a sequence back to so many tokens; False when its caches cannot be cut."""
        cut = cache.num_tokens - num_tokens
        if not can_cut(cache.layers) or cut < 0:
            return False
        for layer in cache.layers:
            layer.trim(cut)
        cache.num_tokens = num_tokens
        return True

    def fork(self, cache: SequenceCache, num_tokens: int) -> SequenceCache:
        """A sequence of its own that begins with the first tokens of another. Raises ConfigurationError when that cannot be cut there."""
        if num_tokens != cache.num_tokens and not can_cut(cache.layers):
            raise ConfigurationError(
                f"the caches of a sequence with {cache.num_tokens} tokens cannot be cut to {num_tokens} tokens"
            )
        copied = SequenceCache([copy_first(layer, num_tokens) for layer in cache.layers], num_tokens)
        mx.eval([layer.state for layer in copied.layers])
        return copied

    def _get_cut(self) -> CutModel:
        if self._cut_model is None:
            raise InternalError("a stage was used after it was given up")
        return self._cut_model

    def _run_together(self, inputs: mx.array, parts: Sequence[Part]) -> mx.array:
        if len(parts) == 1:
            return self._run(inputs[None], self._list_shown(parts[0].cache), parts)
        if self._joins_sequences:
            return self._run(inputs[:, None], self._join(parts), parts)
        starts = accumulate((part.num_tokens for part in parts), initial=0)
        pieces = [
            self._run(inputs[None, start : start + part.num_tokens], self._list_shown(part.cache), [part])
            for start, part in zip(starts, parts, strict=False)
        ]
        return self._put_together(pieces, [_wants_logits([part]) for part in parts])

    def _put_together(self, pieces: list[mx.array], are_logits: Sequence[bool]) -> mx.array:
        """One result of several, which are all evaluated: on the last stage the logits among them, if there are any."""
        if len(pieces) == 1:
            return pieces[0]
        mx.eval(pieces)
        logits = list(compress(pieces, are_logits)) if self._shard.is_last else []
        return mx.concatenate(logits or pieces)

    def _run(self, inputs: mx.array, shown: Sequence[Cache], parts: Sequence[Part]) -> mx.array:
        caches = [shown[place] for place in self._caches.stand_ins]
        num_tokens = inputs.shape[0] * inputs.shape[1]
        rows = find_logit_rows(parts)
        if self._selected is not None:
            self._selected.select(rows if len(rows) < num_tokens else None)
        result = _as_rows(self._get_cut()(inputs, caches))
        if not self._shard.is_last or self._selected is not None or len(rows) == num_tokens:
            return result
        return result[mx.array(rows or [num_tokens - 1])]

    def _list_shown(self, cache: SequenceCache) -> list[Cache]:
        return [*cache.layers, *(make_blank(blank, cache.num_tokens) for blank in self._blanks)]

    def _join(self, parts: Sequence[Part]) -> list[SegmentedCache]:
        positions = mx.array([part.cache.num_tokens + i for part in parts for i in range(part.num_tokens)], mx.int32)
        shown = [self._list_shown(part.cache) for part in parts]
        return [
            SegmentedCache(
                [Segment(caches[place], part.num_tokens) for caches, part in zip(shown, parts, strict=True)], positions
            )
            for place in range(len(shown[0]))
        ]

    def try_out(self, example: mx.array) -> None:
        """Find out what holds for this family. example: an input of the stage, token ids [tokens] or activations [tokens, hidden]."""
        self._try_selecting(example)
        self._try_joining(example)
        cache = self.make_cache()
        mx.eval(self.forward(example, [Part(cache, example.shape[0])]), [layer.state for layer in cache.layers])
        self.kv_bytes_per_token = count_bytes_per_token(cache.layers)

    def _try_selecting(self, example: mx.array) -> None:
        part = find_first_after(self._get_cut()) if self._shard.is_last else None
        if part is None:
            return

        def last_logits() -> mx.array:
            return self.forward(example, [Part(self.make_cache(), example.shape[0], num_logits=1)])

        expected, own = last_logits(), part.owner[part.key]
        mx.eval(expected)
        self._selected = part.owner[part.key] = SelectedRows(own)
        if not self._agrees(last_logits, expected):
            part.owner[part.key], self._selected = own, None

    def _try_joining(self, example: mx.array) -> None:
        model = self._get_cut().model
        if not can_stand_side_by_side(self.make_cache().layers):
            return
        teach_attention(model)
        expected = self._run_trial(example)
        mx.eval(expected)
        self._joins_sequences = True
        if not self._agrees(lambda: self._run_trial(example), expected):
            self._joins_sequences = False
            get_logger().info("sequences_stay_apart", model_type=str(getattr(model, "model_type", "")))

    def _run_trial(self, example: mx.array) -> mx.array:
        """Two sequences of different lengths, now beside each other, now one alone: caches must be the same after either."""
        one, other = self.make_cache(), self.make_cache()
        outputs = []
        for sizes in ((2, 0), (1, 3), (3, 1), (0, 1)):
            parts = [
                Part(cache, size, num_logits=size) for cache, size in zip((one, other), sizes, strict=True) if size
            ]
            outputs.append(self.forward(mx.concatenate([example[:size] for size in sizes]), parts))
            mx.eval(outputs)
        return mx.concatenate(outputs)

    def _agrees(self, run: Any, expected: mx.array) -> bool:
        """Whether run gives the expected result, on all ranks, which then go the same way."""
        return holds_everywhere(self._agrees_here(run, expected), find_group([self._get_cut().model]))

    def _agrees_here(self, run: Any, expected: mx.array) -> bool:
        """But for rounding, which quantised caches magnify to whole steps of theirs."""
        tolerance = 0.2 if self._kv_bits else 1e-4 if expected.dtype == mx.float32 else 3e-2
        try:
            result = run()
            difference = mx.max(mx.abs(result - expected))
            return result.shape == expected.shape and bool((difference <= tolerance * mx.max(mx.abs(expected))).item())
        except _TRIAL_FAULTS:
            return False


def find_logit_rows(parts: Sequence[Part]) -> list[int]:
    """The rows of a forward's input whose logits are wanted."""
    ends = accumulate(part.num_tokens for part in parts)
    return [row for end, part in zip(ends, parts, strict=True) for row in range(end - part.num_logits, end)]


def find_first_after(cut_model: CutModel) -> ModelPart | None:
    """The module that is used first after the layers and never before, usually the final norm; None where there is none to be seen."""
    parts = cut_model.anatomy.parts if cut_model.anatomy is not None else ()
    after = (part for part in parts if part.phase == Phase.AFTER)
    return next((part for part in after if isinstance(part.owner[part.key], nn.Module)), None)


def _wants_logits(parts: Sequence[Part]) -> bool:
    return any(part.num_logits for part in parts)


def find_head_dim(model: nn.Module) -> int:
    """Raises ConfigurationError where the model does not say how wide its heads are."""
    args: Any = getattr(model, "args", None)
    for source in (args, getattr(args, "text_config", None)):
        sizes = source if isinstance(source, dict) else vars(source) if source is not None else {}
        if head_dim := sizes.get("head_dim"):
            return int(head_dim)
        if sizes.get("hidden_size") and sizes.get("num_attention_heads"):
            return int(sizes["hidden_size"]) // int(sizes["num_attention_heads"])
    raise ConfigurationError(
        "KV caches cannot be quantised: the model does not say how wide its heads are; place it without --kv-bits"
    )


def _as_rows(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1])
