"""Growing pauses between tries, with jitter."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pause number n is first_s * factor**n, at most limit_s, scattered by +-50 % so that peers do not march in step."""

    first_s: float = 0.2
    factor: float = 2.0
    limit_s: float = 5.0

    def pause_s(self, failures: int, *, scatter: float | None = None) -> float:
        """Seconds to wait after the given number of failures in a row (at least 1). scatter in [0, 1) fixes the jitter."""
        grown = min(self.limit_s, self.first_s * self.factor ** max(0, failures - 1))
        return grown * (0.5 + (random.random() if scatter is None else scatter))
