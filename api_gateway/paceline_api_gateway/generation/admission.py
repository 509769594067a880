"""How many requests a gateway holds open, in all and for one client, and what a refusal says of coming back.

What is beyond is refused before it costs a head anything.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from paceline_services.errors import OverloadedError, PacelineError


class OpenRequests:
    """Those that are under way, by client."""

    def __init__(self, max_total: int, max_per_client: int) -> None:
        self._max_total = max_total
        self._max_per_client = max_per_client
        self._by_client: Counter[str] = Counter()

    @contextmanager
    def admit(self, client_id: str) -> Iterator[None]:
        """Count a request for the block. Raises OverloadedError when there are too many."""
        self._check(client_id)
        self._by_client[client_id] += 1
        try:
            yield
        finally:
            self._by_client[client_id] -= 1
            if not self._by_client[client_id]:
                del self._by_client[client_id]

    def _check(self, client_id: str) -> None:
        if self._by_client[client_id] >= self._max_per_client:
            raise OverloadedError(
                f"{self._max_per_client} requests of this client are open: wait until one is answered",
                reason="CLIENT_TOO_BUSY",
            )
        if self._by_client.total() >= self._max_total:
            raise OverloadedError(
                f"{self._max_total} requests are open at this gateway: try again later", reason="GATEWAY_FULL"
            )


def read_retry_after(error: PacelineError) -> float | None:
    """Seconds after which whoever raised the error thinks another try is worth it; None when it does not say."""
    try:
        seconds = float(error.facts.get("retry_after_s", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def choose_soonest(refusals: Sequence[OverloadedError]) -> OverloadedError:
    """Of several heads' refusals, the one that asks to come back first."""
    return min(refusals, key=lambda error: read_retry_after(error) or 0.0)
