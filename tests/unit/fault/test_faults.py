"""What a seed draws."""

from collections import Counter

import pytest
from fault.faults import EARLIEST, LATEST, PAUSES_S, Fault, Target, choose, draw_blows, draw_cuts


def test_same_seed_draws_the_same_and_another_seed_other_blows() -> None:
    assert draw_blows(1, 50, 3) == draw_blows(1, 50, 3) != draw_blows(2, 50, 3)
    assert draw_cuts(1, 50, 3) == draw_cuts(1, 50, 3) != draw_cuts(2, 50, 3)


def test_longer_run_begins_with_the_shorter_one() -> None:
    assert draw_blows(1, 200, 3)[:20] == draw_blows(1, 20, 3)


def test_every_target_and_fault_comes_about_as_often() -> None:
    drawn = Counter((blow.target, blow.fault) for blow in draw_blows(1, 200, 3))
    assert len(drawn) == len(Target) * len(Fault)
    assert max(drawn.values()) - min(drawn.values()) <= 1


def test_moments_and_pauses_are_within_their_bounds() -> None:
    blows = draw_blows(3, 100, 3)
    assert all(EARLIEST <= blow.timing.moment <= LATEST and blow.timing.question_set < 3 for blow in blows)
    assert all(PAUSES_S[0] <= blow.pause_s <= PAUSES_S[1] for blow in blows)


@pytest.mark.parametrize(("pick", "chosen"), [(0.0, "a"), (0.4, "b"), (0.999, "c")])
def test_pick_chooses_evenly(pick: float, chosen: str) -> None:
    assert choose(["a", "b", "c"], pick) == chosen
