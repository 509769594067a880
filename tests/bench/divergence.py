"""How far one model's next-token distributions are from another's, summed up over chunks of text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


@dataclass(slots=True)
class Divergence:
    """Sums over the tokens seen; the properties are means."""

    num_tokens: int = 0
    _surprise: float = 0.0
    _kl: float = 0.0
    largest_kl: float = 0.0
    _same_top: int = 0

    def add(self, base: Logits, mine: Logits, followers: npt.NDArray[np.int64]) -> None:
        """Take in logits [tokens, vocab] of both and the token that really follows each; computed in float64."""
        if not len(followers):
            return
        base_log, log = _log_softmax(base), _log_softmax(mine)
        kl = (np.exp(base_log) * (base_log - log)).sum(axis=-1)
        self.num_tokens += len(followers)
        self._surprise -= float(log[np.arange(len(followers)), followers].sum())
        self._kl += float(kl.sum())
        self.largest_kl = max(self.largest_kl, float(kl.max()))
        self._same_top += int((base.argmax(axis=-1) == mine.argmax(axis=-1)).sum())

    @property
    def perplexity(self) -> float:
        return float(np.exp(self._surprise / self.num_tokens))

    @property
    def mean_kl(self) -> float:
        return self._kl / self.num_tokens

    @property
    def top1_agreement(self) -> float:
        return self._same_top / self.num_tokens

    def to_json(self) -> dict[str, Any]:
        names = ("num_tokens", "perplexity", "mean_kl", "largest_kl", "top1_agreement")
        return {name: getattr(self, name) for name in names}


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
