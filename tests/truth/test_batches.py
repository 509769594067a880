"""Model truth: sequences computed together give what each gives alone, for every family, to the last bit, on any number of stages."""

from pathlib import Path

import numpy as np
import pytest

from paceline_services.domain.steps import SequenceFork, SequenceStep, SequenceTrim, StepPlan
from support.divisions import FORK, LONG, ONE, OTHER, PLANS, alone, collect, load_stages, run_plans
from support.models import FAMILIES, make_tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_together_give_what_each_gives_alone(family: str, tmp_path: Path) -> None:
    config = make_tiny_model(family, tmp_path / family)
    whole = load_stages(tmp_path / family, config["num_hidden_layers"], 1)
    expected = {one: collect(run_plans(whole, alone(PLANS, one)), one) for one in (ONE, OTHER)}
    for num_stages in (1, 2, 3):
        stages = load_stages(tmp_path / family, config["num_hidden_layers"], num_stages)
        assert all(stage.joins_sequences == (family != "deepseek_v3") for stage in stages)
        together = run_plans(stages, PLANS)
        for one in (ONE, OTHER):
            assert np.array_equal(collect(together, one), expected[one]), f"{num_stages} stages"


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in {"gemma3_text", "gpt_oss"}])
def test_forks_and_cuts_go_on_as_if_computed_anew(family: str, tmp_path: Path) -> None:
    config = make_tiny_model(family, tmp_path / family)
    stages = load_stages(tmp_path / family, config["num_hidden_layers"], 2)
    assert stages[0].can_cut
    plans = [
        StepPlan(1, opened=(ONE,), sequences=(SequenceStep(ONE, LONG, 0),)),
        StepPlan(2, forked=(SequenceFork(FORK, ONE, 21),), sequences=(SequenceStep(FORK, (5, 6), 21, 1),)),
        StepPlan(
            3,
            trimmed=(SequenceTrim(ONE, 30), SequenceTrim(FORK, 22)),
            sequences=(SequenceStep(ONE, (9,), 30, 1), SequenceStep(FORK, (7,), 22, 1)),
        ),
    ]
    logits = run_plans(stages, plans)[-1]
    for sequence_id, tokens in ((ONE, (*LONG[:30], 9)), (FORK, (*LONG[:21], 5, 7))):
        anew = StepPlan(1, opened=(ONE,), sequences=(SequenceStep(ONE, tokens, 0, 1),))
        (expected,) = run_plans(stages, [anew])
        assert np.allclose(logits[sequence_id], expected[ONE], atol=1e-4)


def test_window_is_forked_whole(tmp_path: Path) -> None:
    config = make_tiny_model("gemma3_text", tmp_path / "m")
    stages = load_stages(tmp_path / "m", config["num_hidden_layers"], 2)
    assert not stages[0].can_cut
    plans = [
        StepPlan(1, opened=(ONE,), sequences=(SequenceStep(ONE, LONG, 0),)),
        StepPlan(2, forked=(SequenceFork(FORK, ONE, 40),), sequences=(SequenceStep(ONE, (3,), 40, 1),)),
        StepPlan(3, sequences=(SequenceStep(FORK, (3,), 40, 1),)),
    ]
    logits = run_plans(stages, plans)
    assert np.array_equal(logits[1][ONE], logits[2][FORK])


@pytest.mark.parametrize("kv_bits", [8, 4])
def test_quantised_caches_are_close_and_the_same_together(kv_bits: int, tmp_path: Path) -> None:
    config = make_tiny_model("llama", tmp_path / "m", head_dim=64)
    exact = load_stages(tmp_path / "m", config["num_hidden_layers"], 1)
    stages = load_stages(tmp_path / "m", config["num_hidden_layers"], 2, kv_bits)
    assert all(stage.joins_sequences and stage.can_cut for stage in stages)
    per_token = sum(stage.kv_bytes_per_token for stage in stages)
    assert per_token == exact[0].kv_bytes_per_token * (kv_bits / 8 + 2 * 4 / 64) / 4
    together = run_plans(stages, PLANS)
    for one in (ONE, OTHER):
        mine = collect(together, one)
        assert np.array_equal(mine, collect(run_plans(stages, alone(PLANS, one)), one))
        expected = collect(run_plans(exact, alone(PLANS, one)), one)
        assert 0 < np.abs(mine - expected).max() < {8: 0.05, 4: 0.8}[kv_bits] * np.abs(expected).max()
