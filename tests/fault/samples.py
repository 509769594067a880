"""What a soak measures, and whether it stays flat. Pure.

A series is flat when the mean of its last third is not above that of its middle third by more than 3 %, what the middle third scatters,
and a floor below which nobody counts (an allocator's page, a connection). The first third is warm-up.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fault.results import ABSENT, make_table, show

MAY_GROW = 0.03
MAY_SLOW = 0.10
FLOORS = {"rss MiB": 4.0, "file descriptors": 3.0, "threads": 2.0, "etcd MiB": 1.0, "etcd keys": 5.0}
LEAST_SAMPLES = 6


@dataclass(frozen=True, slots=True)
class Trend:
    """One series: means of its thirds, and whether the last is within bounds."""

    first: float
    middle: float
    last: float
    bound: float

    @property
    def is_flat(self) -> bool:
        return self.last <= self.bound


def find_trend(values: Sequence[float], floor: float) -> Trend:
    """Raises ValueError for fewer than LEAST_SAMPLES."""
    if len(values) < LEAST_SAMPLES:
        raise ValueError(f"{len(values)} samples are too few to tell a trend")
    third = len(values) // 3
    first, middle, last = values[:third], values[third : 2 * third], values[2 * third :]
    mean = statistics.fmean(middle)
    return Trend(
        statistics.fmean(first),
        mean,
        statistics.fmean(last),
        mean * (1 + MAY_GROW) + statistics.pstdev(middle) + floor,
    )


@dataclass(frozen=True, slots=True)
class Slowness:
    """99th percentile of seconds per token in the first and in the last part of a soak."""

    first_s: float
    last_s: float

    @property
    def is_kept(self) -> bool:
        return self.last_s <= self.first_s * (1 + MAY_SLOW)


def find_slowness(gaps: Sequence[tuple[float, float]], begin: float, end: float, part_s: float) -> Slowness:
    """gaps: (when, seconds since the token before). Raises ValueError where a part has too few."""
    first = [gap for at, gap in gaps if begin <= at < begin + part_s]
    last = [gap for at, gap in gaps if end - part_s <= at <= end]
    if min(len(first), len(last)) < 100:
        raise ValueError(f"{len(first)} and {len(last)} tokens are too few for a 99th percentile")
    return Slowness(find_p99(first), find_p99(last))


def find_p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def make_soak_table(trends: Mapping[tuple[str, str], Trend], slowness: Slowness) -> str:
    """A row for each process and quantity, and one for the time per token."""
    rows = [
        [who, what, show(trend.first), show(trend.middle), show(trend.last), show(trend.bound), _tell(trend.is_flat)]
        for (who, what), trend in sorted(trends.items())
    ]
    p99 = [show(1e3 * slowness.first_s), ABSENT, show(1e3 * slowness.last_s)]
    bound = show(1e3 * slowness.first_s * (1 + MAY_SLOW))
    rows.append(["answers", "p99 ms per token", *p99, bound, _tell(slowness.is_kept)])
    return make_table(["of", "what", "first third", "middle third", "last third", "at most", "flat"], rows)


def _tell(is_good: bool) -> str:
    return "yes" if is_good else "NO"
