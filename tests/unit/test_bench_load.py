"""What the load part of `make bench` computes from the times and answers that it saw."""

import json

import pytest
from bench.crowd import Answer, Crowd, Tally
from bench.editing import Task
from bench.figures import Figures
from bench.load_cases import MANY, LoadEffort, gap_name, rate_name, turn_name
from bench.load_tables import (
    ONE,
    TWO,
    Outcome,
    describe_outcome,
    make_crowd_marks,
    make_guessing_mark,
    make_stage_marks,
)
from bench.streams import (
    Stream,
    count_rate,
    draw_prompt,
    find_gaps,
    make_request,
    share_predictable,
    share_repeated,
)
from bench.tables import Mark, make_bounds

REFUSAL = {"message": "96 are waiting", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}


def make_stream(times: list[float], counts: list[int] | None = None, sent: float = 0.0) -> Stream:
    return Stream(sent, times, counts or [1] * len(times))


def make_answer(tokens: list[int], reason: str = "stop") -> Answer:
    answer = Answer(status=200)
    answer.note_line("data: " + json.dumps({"choices": [{"delta": {"role": "assistant"}, "finish_reason": None}]}))
    for token in tokens:
        answer.note_line("data: " + json.dumps({"choices": [{"token_ids": [token], "finish_reason": None}]}))
    answer.note_line("data: " + json.dumps({"choices": [{"delta": {}, "finish_reason": reason}]}))
    answer.note_line("")
    answer.note_line("data: [DONE]")
    return answer


# -- times --


def test_rate_counts_what_came_while_all_streams_were_answered() -> None:
    early, late = make_stream([0.0, 1.0, 2.0, 3.0]), make_stream([1.5, 2.5, 3.5, 4.5])
    assert count_rate([early, late]) == pytest.approx(3 / 1.5)


def test_rate_of_one_stream_leaves_its_first_event_out_and_counts_tokens_not_events() -> None:
    assert count_rate([make_stream([1.0, 2.0, 3.0], [4, 1, 3])]) == pytest.approx(4 / 2)


def test_streams_that_were_not_answered_at_the_same_time_have_no_rate() -> None:
    assert count_rate([make_stream([0.0, 1.0]), make_stream([1.0, 2.0])]) is None


def test_gaps_are_of_the_time_in_which_all_streams_had_begun() -> None:
    first = make_stream([0.0, 5.0, 6.0, 7.0, 10.0])
    second = make_stream([5.0, 6.0, 7.0, 9.0])
    gaps = find_gaps([first, second], event=7.5)
    assert (gaps.worst_s, gaps.median_s, gaps.quiet_median_s) == (3.0, 1.0, 1.0)
    assert gaps.ratio == 3.0


def test_worst_gap_is_told_over_the_quiet_ones_too() -> None:
    gaps = find_gaps([make_stream([0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 14.0])], event=2.0)
    assert (gaps.ratio, gaps.quiet_ratio) == (3.0, 6.0)


def test_events_without_tokens_are_no_gaps() -> None:
    stream = make_stream([1.0])
    stream.note(2.0, [])
    stream.note(3.0, [7, 8])
    assert (stream.times, stream.counts, stream.token_ids) == ([1.0, 3.0], [1, 2], [7, 8])
    assert stream.decode_s == 2.0


# -- prompts and answers --


def test_drawn_prompts_share_no_prefix_and_are_the_same_again() -> None:
    one, other = (draw_prompt(name, 2000, 32000) for name in ("one", "other"))
    assert one == draw_prompt("one", 2000, 32000)
    assert (len(one), one[0], one[1] != other[1]) == (2000, 1, True)
    assert len(set(one)) == len(one)
    request = make_request("demo", one, 5)
    assert request.limits.ignore_eos and request.limits.max_tokens == 5


def test_a_loop_is_predictable_and_new_tokens_are_not() -> None:
    assert share_predictable([9, 1, 2, 3], [4, 1, 2, 3, 4, 1, 2, 3]) == pytest.approx(4 / 8)
    assert share_predictable([1, 2, 3], [4, 5, 6]) == 0.0


def test_repeated_share_is_of_the_answer() -> None:
    assert share_repeated("a b c d e f", "a b c x") == pytest.approx(3 / 4)
    assert share_repeated("a b", "") == 0.0


# -- figures and marks --


def test_ratios_are_taken_within_rounds() -> None:
    figures = Figures()
    for number, (mine, theirs) in enumerate([(4.0, 1.0), (4.0, 2.0), (30.0, 10.0)]):
        figures.add("mine", number, mine)
        figures.add("theirs", number, theirs)
    figures.add("mine", 3, None)
    assert figures.ratio("mine", "theirs") == 3.0
    assert (figures.median("mine"), figures.worst("mine"), figures.median("none")) == (4.0, 30.0, None)
    assert figures.ratio("mine", "none") is None
    assert figures.to_json()["theirs"] == [1.0, 2.0, 10.0]


def test_a_mark_may_be_an_upper_bound() -> None:
    assert Mark("gap", 3.0, 2.9, is_most=True).verdict == "yes"
    assert Mark("gap", 3.0, 3.1, is_most=True).verdict == "NO"
    assert Mark("gap", 3.0, None, is_most=True).verdict == "not measured"
    table = make_bounds([Mark("gap", 3.0, 2.9, is_most=True), Mark("speed", 1.8, 1.9)])
    assert "| gap | at most 3 | 2.90 | yes |" in table
    assert "| speed | at least 1.8 | 1.90 | yes |" in table


def test_stage_marks_compare_what_they_say() -> None:
    figures = Figures()
    for name, value in {
        rate_name(ONE, 1): 10.0,
        rate_name(ONE, MANY): 20.0,
        rate_name(TWO, MANY): 38.0,
        gap_name("worst / median", TWO): 2.0,
        turn_name("first", ONE): 10.0,
        turn_name("first", TWO): 6.0,
        turn_name("second", TWO): 0.6,
    }.items():
        figures.add(name, 0, value)
    marks = make_stage_marks(figures)
    assert [mark.measured for mark in marks] == pytest.approx([1.9, 3.8, 2.0, 0.6, 0.1])
    assert [mark.verdict for mark in marks] == ["yes"] * 5


def test_different_answers_are_no_whatever_the_speed() -> None:
    outcome = Outcome("model", LoadEffort(1), tasks=[Task("edit", make_request("demo", [1], 1))])
    for tokens in ([1, 2], [1, 2], [1, 3]):
        stream = make_stream([1.0, 2.0])
        stream.token_ids = tokens
        outcome.tasks[0].note(stream)
    assert outcome.tasks[0].num_different == 1
    assert make_guessing_mark(outcome).verdict == "NO: answers differ"


def test_what_was_not_measured_is_told_as_such() -> None:
    text = "\n".join(describe_outcome(Outcome("model", LoadEffort(1), failures=["streams: broken"])))
    assert text.count("not measured") == 7
    assert "Failed: streams: broken." in text


# -- the crowd --


def test_an_answer_is_complete_with_tokens_a_reason_and_the_end() -> None:
    answer = make_answer([5, 6])
    assert answer.is_complete and answer.token_ids == [5, 6]
    answer.is_done = False
    assert not answer.is_complete
    failed = make_answer([5, 6])
    failed.note_line('data: {"error": {"message": "gone"}}')
    assert not failed.is_complete


@pytest.mark.parametrize(
    ("retry_after", "error", "is_proper"),
    [
        ("3", REFUSAL, True),
        ("", REFUSAL, False),
        ("0", REFUSAL, False),
        ("3", {**REFUSAL, "type": "server_error"}, False),
        ("3", None, False),
    ],
)
def test_a_refusal_says_when_to_come_back_in_openais_words(
    retry_after: str, error: dict[str, object] | None, is_proper: bool
) -> None:
    assert Answer(429, retry_after, error=error).is_refusal == is_proper
    assert not Answer(503, retry_after, error=error).is_refusal


def test_tally_tells_answers_apart() -> None:
    tally, alone = Tally(), make_answer([1, 2, 3])
    tally.add("same", make_answer([1, 2, 3]), alone)
    tally.add("other", make_answer([1, 9, 3]), alone)
    tally.add("refused", Answer(429, "1", error=REFUSAL), alone)
    tally.add("broken", Answer(500), alone)
    assert (tally.num_asked, tally.num_complete, tally.num_same, tally.num_refused, tally.num_odd) == (4, 2, 1, 1, 2)
    assert tally.oddities[0] == "other: 3 tokens, 3 alone, other ones from token 1"


def test_crowd_marks_ask_for_all_answers_and_flat_memory() -> None:
    crowd = Crowd(resident_early=[100.0, 200.0], resident_late=[101.0, 220.0], kv_tokens=None)
    alone = make_answer([1])
    crowd.streams.add("one", make_answer([1]), alone)
    crowd.burst.add("one", make_answer([1]), alone)
    verdicts = [mark.verdict for mark in make_crowd_marks(crowd)]
    assert verdicts == ["yes", "yes", "not measured", "NO", "NO: nothing was refused"]
    crowd.kv_tokens = 256
    crowd.burst.add("two", Answer(429, "1", error=REFUSAL), alone)
    assert [mark.verdict for mark in make_crowd_marks(crowd)][2:] == ["NO", "NO", "yes"]
