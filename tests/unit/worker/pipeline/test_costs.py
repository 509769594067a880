"""What is concluded from measured times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.pipeline.costs import (
    DRAFT_SIZES,
    FIRST_CHUNK_TOKENS,
    MAX_CHUNK_S,
    MAX_STRETCH,
    MIN_CHUNK_TOKENS,
    Odds,
    StepCosts,
    expect_tokens,
)


def measured(*points: tuple[int, float]) -> StepCosts:
    costs = StepCosts()
    for num_tokens, seconds in points:
        costs.observe(num_tokens, seconds)
    return costs


def test_nothing_is_known_before_it_was_measured() -> None:
    assert StepCosts().predict(1) is None
    assert StepCosts().choose_chunk(0, 512) == FIRST_CHUNK_TOKENS
    assert StepCosts().choose_chunk(0, 10) == 10


def test_times_are_read_between_measured_sizes() -> None:
    costs = measured((1, 0.010), (8, 0.024), (64, 0.1))
    assert costs.predict(1) == pytest.approx(0.010)
    assert costs.predict(4) == pytest.approx(0.016)
    assert costs.predict(128) == pytest.approx(0.2)


def test_one_slow_step_changes_little() -> None:
    costs = measured((4, 0.020))
    costs.observe(4, 5.0)
    assert costs.predict(4) == pytest.approx(0.024)


def test_pure_prefill_takes_what_its_time_allows() -> None:
    costs = measured((1, 0.010), (64, 0.1))
    assert costs.choose_chunk(0, 10_000) == pytest.approx(64 * MAX_CHUNK_S / 0.1, abs=1)
    assert costs.choose_chunk(0, 100) == 100


def test_prompt_goes_on_however_slow_the_machine() -> None:
    assert measured((1, 10.0), (16, 160.0)).choose_chunk(1, 512) == MIN_CHUNK_TOKENS


@given(st.lists(st.tuples(st.integers(1, 512), st.floats(1e-4, 1.0)), min_size=1, max_size=30), st.integers(1, 64))
def test_chunk_beside_decoding_stays_within_the_stretch(points: list[tuple[int, float]], num_decoding: int) -> None:
    costs = measured(*points)
    chunk = costs.choose_chunk(num_decoding, 512)
    alone, together = costs.predict(num_decoding), costs.predict(num_decoding + chunk)
    assert alone and together
    assert chunk == MIN_CHUNK_TOKENS or together <= MAX_STRETCH * alone * 1.0001


def test_guessing_pays_where_steps_cost_the_same_and_guesses_are_right() -> None:
    flat = measured((1, 0.02), (32, 0.021))
    assert flat.choose_draft(0, Odds(0.95), 16, 0.0) == 16
    assert flat.choose_draft(0, Odds(0.05), 16, 0.0) <= 1


def test_guessing_is_off_where_every_token_costs_a_step() -> None:
    steep = measured((1, 0.01), (2, 0.02), (4, 0.04), (8, 0.08), (16, 0.16))
    assert steep.choose_draft(0, Odds(0.9), 16, 0.0) == 0
    assert steep.choose_draft(0, Odds(0.9), 16, 0.02) > 0, "a link's time is paid once for all of them"


@given(st.integers(0, 20), st.floats(0, 1), st.integers(0, 32))
def test_never_more_guesses_than_there_are(num_others: int, acceptance: float, most: int) -> None:
    costs = measured((1, 0.01), (32, 0.05))
    assert costs.choose_draft(num_others, Odds(acceptance), most, 0.001) in {
        size for size in DRAFT_SIZES if size <= most
    }


def test_expected_tokens() -> None:
    assert expect_tokens(0, 0.7) == pytest.approx(1.0)
    assert expect_tokens(3, 1.0) == 4
    assert expect_tokens(2, 0.5) == pytest.approx(1.75)
