"""Sampling's promises: a pure function, right distributions, penalties as documented."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_services.domain.generation import Sampling
from paceline_worker.engine.sampling import (
    Draw,
    apply_penalties,
    derive_shard_seed,
    draw_uniform,
    keep_candidates,
    log_softmax,
    sample,
)

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 0.5], np.float32)


def test_seed_derivation_is_the_documented_one() -> None:
    # Computed once with the founding document's own function.
    assert derive_shard_seed(0, 0, 0) == 0
    assert derive_shard_seed(0, 1, 0) == 0xE220A8397B1DCDAF
    assert derive_shard_seed(42, 3, 7) == _reference(42, 3, 7)


def _reference(base_seed: int, shard_id: int, step: int) -> int:
    golden = 0x9E3779B97F4A7C15
    z = (base_seed + golden * shard_id + step) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


@given(st.integers(0, 2**64 - 1), st.integers(0, 15), st.integers(0, 10_000))
def test_draws_lie_in_the_unit_interval(seed: int, choice: int, index: int) -> None:
    assert 0.0 <= draw_uniform(seed, choice, index) < 1.0


def test_neighbouring_seeds_do_not_share_their_draws() -> None:
    assert {draw_uniform(1, 0, i) for i in range(100)}.isdisjoint({draw_uniform(0, 0, i) for i in range(200)})


def test_zero_temperature_takes_the_most_likely_token() -> None:
    assert sample(LOGITS, Sampling(), (), (), Draw(1, 0, 0)) == 1


def test_draws_follow_the_distribution() -> None:
    sampling = Sampling(temperature=0.7)
    counts = np.bincount([sample(LOGITS, sampling, (), (), Draw(9, 0, i)) for i in range(8000)], minlength=5)
    expected = np.exp(LOGITS / 0.7) / np.exp(LOGITS / 0.7).sum()
    assert np.abs(counts / 8000 - expected).max() < 0.02


def test_same_place_draws_the_same_token_whatever_came_between() -> None:
    sampling = Sampling(temperature=1.0)
    first = [sample(LOGITS, sampling, (), (), Draw(5, 1, i)) for i in range(50)]
    assert first == [sample(LOGITS, sampling, (), (), Draw(5, 1, i)) for i in range(50)]
    assert first != [sample(LOGITS, sampling, (), (), Draw(5, 2, i)) for i in range(50)]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1.0, top_k=2), {1, 2}),
        (Sampling(temperature=1.0, top_p=0.6), {1}),
        (Sampling(temperature=1.0, top_p=0.7), {1, 2}),
        (Sampling(temperature=1.0, min_p=0.3), {1, 2}),
        (Sampling(temperature=1.0, top_k=4, top_p=0.99, min_p=0.01), {0, 1, 2, 4}),
        (Sampling(temperature=1.0, top_p=1e-9), {1}),
        (Sampling(temperature=1.0), {0, 1, 2, 3, 4}),
    ],
)
def test_filters_keep_the_documented_tokens(sampling: Sampling, kept: set[int]) -> None:
    candidates, weights = keep_candidates(LOGITS.astype(np.float64), sampling)
    assert set(candidates.tolist()) == kept
    assert len(weights) == len(candidates)


def test_repetition_penalty_touches_prompt_and_answer() -> None:
    changed = apply_penalties(LOGITS, Sampling(repetition_penalty=2.0), (1, 3), (2,))
    assert changed.tolist() == [1.0, 1.5, 1.0, -2.0, 0.5]
    assert LOGITS.tolist() == [1.0, 3.0, 2.0, -1.0, 0.5]


def test_presence_and_frequency_penalties_touch_the_answer_only() -> None:
    changed = apply_penalties(LOGITS, Sampling(presence_penalty=0.5, frequency_penalty=0.25), (0,), (1, 1, 4))
    assert changed.tolist() == [1.0, 2.0, 2.0, -1.0, -0.25]


def test_logit_bias_can_force_and_forbid() -> None:
    assert sample(LOGITS, Sampling(logit_bias={3: 100.0}), (), (), Draw(1, 0, 0)) == 3
    assert sample(LOGITS, Sampling(logit_bias={1: -100.0}), (), (), Draw(1, 0, 0)) == 2


def test_log_probabilities_sum_to_one() -> None:
    assert np.exp(log_softmax(LOGITS)).sum() == pytest.approx(1.0)
