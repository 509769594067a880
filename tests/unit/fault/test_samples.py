"""Whether what a soak measured is flat."""

import random

import pytest
from fault.samples import Slowness, find_slowness, find_trend, make_soak_table
from fault.soak import read_metrics


def test_noise_and_growth_before_the_middle_are_flat() -> None:
    rng = random.Random(1)
    values = [50.0 + step for step in range(30)] + [80.0 + rng.uniform(-2, 2) for _ in range(60)]
    assert find_trend(values, floor=0.0).is_flat


def test_steady_growth_is_not() -> None:
    assert not find_trend([100.0 + 2 * step for step in range(90)], floor=4.0).is_flat


def test_growth_below_the_floor_is_flat() -> None:
    assert find_trend([12.0] * 60 + [14.0] * 30, floor=3.0).is_flat


def test_too_few_samples_tell_no_trend() -> None:
    with pytest.raises(ValueError, match="too few"):
        find_trend([1.0] * 5, floor=0.0)


def test_slowness_compares_the_first_part_with_the_last() -> None:
    gaps = [(at / 10, 0.010 if at < 5000 else 0.012) for at in range(10_000)]
    slowness = find_slowness(gaps, 0.0, 1000.0, 100.0)
    assert (slowness.first_s, slowness.last_s) == pytest.approx((0.010, 0.012))
    assert not slowness.is_kept and Slowness(0.010, 0.0109).is_kept
    with pytest.raises(ValueError, match="too few"):
        find_slowness(gaps[:50], 0.0, 1000.0, 100.0)


def test_table_says_what_is_not_flat() -> None:
    trends = {("agent-1", "threads"): find_trend([4.0] * 9, 2.0), ("agent-1", "rss MiB"): find_trend([*range(99)], 0.0)}
    lines = make_soak_table(trends, Slowness(0.01, 0.01)).splitlines()[2:]
    assert [line.rsplit("|", 2)[1].strip() for line in lines] == ["NO", "yes", "yes"]


def test_metrics_page_is_read_without_labels() -> None:
    page = '# HELP a b\na 1.5e+06\nb{x="y"} 3\nc 2\n'
    assert read_metrics(page) == {"a": 1.5e6, "c": 2.0}
