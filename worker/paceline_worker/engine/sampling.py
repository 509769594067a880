"""From logits to a token: a pure function of (logits, parameters, tokens so far, seed, choice, index).

Nothing here has state or draws from a generator, so a resumed generation goes on exactly as it would have. Order of work:
logit_bias, penalties, what a grammar allows, temperature, top_k, top_p, min_p, draw. Plain numpy: the vector is one row of the
vocabulary, and the same on every device.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline_services.domain.generation import Sampling

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def derive_shard_seed(base_seed: int, shard_id: int, step: int) -> int:
    """Deterministic 64-bit seed for one shard at one step: a splitmix64 finalizer over a linear walk.

    Source: the "derivational chaining" of the project's founding documents.
    """
    z = (base_seed + _GOLDEN * shard_id + step) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def draw_uniform(seed: int, choice_index: int, token_index: int) -> float:
    """A number in [0, 1) for one token of one choice.

    The request's seed is mixed once before it is walked: otherwise seed 1 at token 0 would draw what seed 0 draws at token 1.
    """
    mixed = derive_shard_seed(seed, 0, 0)
    return (derive_shard_seed(mixed, choice_index, token_index) >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Draw:
    """Where in its request a token is drawn, and among which tokens; allowed None: among all."""

    seed: int
    choice_index: int
    token_index: int
    allowed: Indices | None = None


def sample(logits: Logits, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int], draw: Draw) -> int:
    """The next token for logits [vocab]."""
    adjusted = apply_penalties(logits, sampling, prompt, generated)
    if draw.allowed is not None:
        return int(draw.allowed[_choose(adjusted[draw.allowed], sampling, draw)])
    return _choose(adjusted, sampling, draw)


def _choose(adjusted: Logits, sampling: Sampling, draw: Draw) -> int:
    """The place of the drawn one among logits that penalties have adjusted."""
    if sampling.temperature <= 0:
        return int(adjusted.argmax())
    candidates, weights = keep_candidates(adjusted.astype(np.float64) / sampling.temperature, sampling)
    reached = np.cumsum(weights)
    point = draw_uniform(draw.seed, draw.choice_index, draw.token_index) * reached[-1]
    return int(candidates[min(int(np.searchsorted(reached, point, side="right")), len(candidates) - 1)])


def apply_penalties(logits: Logits, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]) -> Logits:
    """Logits [vocab] after logit_bias, repetition (prompt and answer), presence and frequency penalties (answer only)."""
    penalty = sampling.repetition_penalty
    repeats = penalty is not None and penalty != 1
    if not (sampling.logit_bias or repeats or sampling.presence_penalty or sampling.frequency_penalty):
        return logits
    changed = logits.copy()
    if sampling.logit_bias:
        changed[_ids(sampling.logit_bias)] += np.fromiter(sampling.logit_bias.values(), np.float32)
    if repeats and penalty is not None:
        seen = _ids({*prompt, *generated})
        changed[seen] = np.where(changed[seen] > 0, changed[seen] / penalty, changed[seen] * penalty)
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(generated)
        occurrences = np.fromiter(counts.values(), np.float32)
        changed[_ids(counts)] -= sampling.presence_penalty + sampling.frequency_penalty * occurrences
    return changed


def keep_candidates(scaled: Floats, sampling: Sampling) -> tuple[Indices, Floats]:
    """Token ids that may be drawn and their weights (not normalized), from logits [vocab] already divided by the temperature."""
    weights = np.exp(scaled - scaled.max())
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    if not sampling.top_k and top_p >= 1 and not sampling.min_p:
        return np.arange(len(weights)), weights
    order = _most_likely_first(weights, sampling.top_k)
    ordered = weights[order]
    if top_p < 1:
        before = np.cumsum(ordered) - ordered
        num_kept = int((before < top_p * ordered.sum()).sum())
        order, ordered = order[:num_kept], ordered[:num_kept]
    if sampling.min_p > 0:
        order = order[ordered >= sampling.min_p * ordered[0]]
    return order, weights[order]


def log_softmax(logits: Logits) -> Floats:
    """Natural log probabilities [vocab] of the model's own distribution."""
    shifted = logits.astype(np.float64) - float(logits.max())
    result: Floats = shifted - np.log(np.exp(shifted).sum())
    return result


def _most_likely_first(weights: Floats, top_k: int) -> Indices:
    """Ids by falling weight, ties by id; only top_k of them when that is set."""
    order: Indices = np.argsort(-weights, kind="stable")
    return order[:top_k] if top_k else order


def _ids(tokens: Iterable[int]) -> Indices:
    return np.fromiter(tokens, np.int64)
