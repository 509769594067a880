"""Guesses come from what was said before, and what they are worth is measured even while they are not used."""

from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.pipeline.costs import Odds, StepCosts
from paceline_worker.pipeline.drafting import MATCHED_TOKENS, Drafter, PromptLookup, Situation


def make_situation(seconds_of_32: float) -> Situation:
    costs = StepCosts()
    costs.observe(1, 0.02)
    costs.observe(32, seconds_of_32)
    return Situation(costs, num_others=0, overhead_s=0.0)


FLAT, STEEP = make_situation(0.02), make_situation(0.64)


def lookup_of(tokens: list[int]) -> PromptLookup:
    lookup = PromptLookup()
    lookup.extend(tokens)
    return lookup


def test_what_followed_before_is_the_guess() -> None:
    assert lookup_of([1, 2, 3, 4, 5, 6, 9, 1, 2, 3]).guess(4) == [4, 5, 6, 9]
    assert lookup_of([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3]).guess(1) == [8], "the latest place counts"
    assert lookup_of([1, 2, 3]).guess(4) == []
    assert lookup_of([]).guess(4) == []


def test_place_with_the_same_words_before_it_is_taken() -> None:
    lines = [5, 1, 2, 3, 50, 6, 1, 2, 3, 60]
    assert lookup_of([*lines, 5, 1, 2, 3]).guess(1) == [50]
    assert lookup_of([*lines, 6, 1, 2, 3]).guess(1) == [60]


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 8))
def test_guess_is_a_piece_that_follows_the_same_tokens(tokens: list[int], most: int) -> None:
    guess = lookup_of(tokens).guess(most)
    places = [
        place
        for place in range(MATCHED_TOKENS, len(tokens))
        if tokens[place - MATCHED_TOKENS : place] == tokens[-MATCHED_TOKENS:]
    ]
    assert guess in [tokens[place : place + most] for place in places] or (guess == [] and not places)


def test_right_guesses_raise_what_is_offered_and_wrong_ones_end_it() -> None:
    drafter = Drafter([*range(1, 60), 1, 2, 3], 100)
    assert drafter.offer(FLAT)
    for token in range(4, 12):
        drafter.learn([token])
        offered = drafter.offer(FLAT)
        assert offered == list(range(token + 1, token + 1 + len(offered)))
    assert drafter.lookup_odds.acceptance > 0.7


def test_acceptance_is_learnt_while_guessing_does_not_pay() -> None:
    drafter = Drafter([*range(1, 30), 1, 2, 3], 30, lookup_odds=Odds(0.1))
    for token in range(4, 28):
        assert drafter.offer(STEEP) == []
        drafter.learn([token])
    assert drafter.lookup_odds.acceptance > 0.8
    assert drafter.num_drafted == drafter.num_accepted == 0


def test_counts_are_of_what_was_offered() -> None:
    drafter = Drafter([*range(1, 20), 1, 2, 3], 5, lookup_odds=Odds(1.0))
    offered = drafter.offer(FLAT)
    assert len(offered) == 4
    drafter.learn([*offered[:2], 77])
    assert (drafter.num_drafted, drafter.num_accepted) == (4, 2)


def test_nothing_is_offered_at_the_end_of_an_answer() -> None:
    assert Drafter([*range(1, 20), 1, 2, 3], 1).offer(FLAT) == []


def test_draft_model_is_asked_where_nothing_occurred_before() -> None:
    drafter = Drafter([1, 2, 3, 4], 9)
    assert drafter.count_wanted(FLAT) > 0
    assert Drafter([1, 2, 3, 4, 1, 2, 3], 9).count_wanted(FLAT) == 0
    assert drafter.count_wanted(STEEP) == 0
    drafter.take_from_model([5, 6], guess_s=0.001)
    assert drafter.offer(FLAT) == [5, 6]
    drafter.learn([5, 9])
    assert (drafter.num_drafted, drafter.num_accepted) == (2, 1)
    assert drafter.tokens == [1, 2, 3, 4, 5, 9]


def test_draft_model_that_was_wrong_is_tried_again_after_a_while() -> None:
    drafter = Drafter([1], 1000, model_odds=Odds(0.0))
    assert drafter.count_wanted(FLAT) == 0
    for token in range(10, 300):
        drafter.offer(FLAT)
        drafter.learn([token])
    assert drafter.count_wanted(FLAT) > 0


def test_guesses_that_take_long_to_make_are_not_wanted() -> None:
    assert Drafter([1], 1000, model_odds=Odds(0.9, guess_s=0.1)).count_wanted(FLAT) == 0
