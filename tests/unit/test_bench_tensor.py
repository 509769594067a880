"""What the tensor part of `make bench` computes from the figures of one rank and of two."""

import pytest
from bench.figures import Figures
from bench.pinned import Layout, sort_shards
from bench.streams import Stream
from bench.tensor import (
    DECODE,
    ONE,
    PREFILL,
    QUICK,
    SLOWER,
    TOGETHER,
    TWO,
    Outcome,
    describe_outcome,
    find_limit,
    make_tensor_marks,
    note_both,
)


def make_outcome() -> Outcome:
    outcome = Outcome("a model", QUICK, loaded_bytes={ONE.name: [100 << 20], TWO.name: [52 << 20, 49 << 20]})
    for what in (DECODE, PREFILL):
        for number, (one, two, slower) in enumerate([(10.0, 18.0, 9.0), (12.0, 20.0, 11.0)]):
            outcome.figures.add(f"{what}, {ONE.name}", number, one)
            outcome.figures.add(f"{what}, {TWO.name}", number, two)
            outcome.figures.add(f"{what}, {SLOWER}", number, slower)
    return outcome


def test_ratios_are_taken_within_rounds_and_bytes_of_the_largest_rank() -> None:
    decode, prefill, share = make_tensor_marks(make_outcome())
    assert decode.measured == prefill.measured == pytest.approx((1.8 + 20 / 12) / 2)
    assert share.measured == pytest.approx(0.52)
    assert (decode.verdict, prefill.verdict, share.verdict) == ("yes", "NO", "yes")


def test_limit_is_twice_what_the_slower_of_two_busy_cores_gives() -> None:
    assert find_limit(make_outcome().figures, DECODE) == pytest.approx(9 / 10 + 11 / 12)


def test_slower_core_is_found_token_by_token() -> None:
    figures = Figures()
    one = Stream(5.0, [7.0, 7.1, 7.4, 7.5], [1] * 4)
    other = Stream(5.0, [8.0, 8.3, 8.4, 8.6], [1] * 4)
    note_both(figures, 0, [one, other], QUICK)
    assert figures.median(f"{DECODE}, {TOGETHER}") == pytest.approx(10.0)
    assert figures.median(f"{DECODE}, {SLOWER}") == pytest.approx(1 / 0.3)
    assert figures.median(f"{PREFILL}, {SLOWER}") == pytest.approx(QUICK.prompt_tokens / 3.0)


def test_section_names_what_each_rank_holds() -> None:
    text = "\n".join(describe_outcome(make_outcome()))
    assert "52 + 49 MiB" in text and "100 MiB" in text


def test_head_is_rank_0_of_the_last_stage() -> None:
    shards = [{"stage": stage, "rank": rank} for stage in (1, 0) for rank in (1, 0)]
    layout = Layout("2 x 2", 2, {}, num_ranks=2)
    assert sort_shards(shards)[-layout.num_ranks] == {"stage": 1, "rank": 0}
    assert layout.arguments == ["--strategy", "hybrid", "--tensor-size", "2"]
