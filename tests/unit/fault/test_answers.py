"""How an answer is read from its stream, what became of it, and how long it paused."""

import json
from typing import Any

import pytest
from fault.answers import Answer, Choice, Verdict, find_gaps, find_pause_s, judge

RIGHT = list(range(10, 30))


def make_answer(tokens: list[int], text: str = "", *, failure: str = "", is_done: bool = True) -> Answer:
    choice = Choice(list(tokens), text or " ".join(map(str, tokens)), "length" if is_done else "", int(is_done))
    return Answer(choices={0: choice}, num_counted=len(tokens), failure=failure, is_done=is_done)


def write_event(tokens: list[int], content: str, *, index: int = 0, reason: str | None = None) -> str:
    choice: dict[str, Any] = {"index": index, "delta": {"content": content}, "finish_reason": reason}
    return "data: " + json.dumps({"choices": [choice | ({"token_ids": tokens} if tokens else {})]})


REFERENCE = make_answer(RIGHT)


def test_same_answer_is_fine() -> None:
    assert judge(make_answer(RIGHT), REFERENCE) is Verdict.FINE


@pytest.mark.parametrize("at", [1, 7, 20])
@pytest.mark.parametrize("length", [1, 4])
def test_tokens_that_came_twice_are_doubled(at: int, length: int) -> None:
    tokens = RIGHT[:at] + RIGHT[max(0, at - length) : at] + RIGHT[at:]
    assert judge(make_answer(tokens), REFERENCE) is Verdict.DOUBLED


def test_second_end_of_a_choice_is_doubled() -> None:
    answer = make_answer(RIGHT)
    answer.choices[0].num_ends = 2
    assert judge(answer, REFERENCE) is Verdict.DOUBLED


@pytest.mark.parametrize("tokens", [RIGHT[:5], RIGHT[:5] + RIGHT[8:], [], RIGHT[1:]])
def test_missing_tokens_are_lost(tokens: list[int]) -> None:
    assert judge(make_answer(tokens), REFERENCE) is Verdict.LOST


def test_failed_and_unfinished_answers_are_lost() -> None:
    assert judge(make_answer(RIGHT[:5], "10 11 12 13 14", failure="cut", is_done=False), REFERENCE) is Verdict.LOST
    assert judge(make_answer(RIGHT, failure="error event"), REFERENCE) is Verdict.LOST
    assert judge(Answer(failure="status 503"), REFERENCE) is Verdict.LOST


def test_failed_answer_that_was_wrong_before_is_worse_than_lost() -> None:
    assert judge(make_answer([10, 11, 99], failure="cut", is_done=False), REFERENCE) is Verdict.CHANGED


@pytest.mark.parametrize("tokens", [[*RIGHT[:5], 99, *RIGHT[6:]], [*RIGHT, 99]])
def test_other_tokens_are_changed(tokens: list[int]) -> None:
    assert judge(make_answer(tokens), REFERENCE) is Verdict.CHANGED


def test_other_text_reason_or_count_is_changed() -> None:
    assert judge(make_answer(RIGHT, "something else"), REFERENCE) is Verdict.CHANGED
    stopped = make_answer(RIGHT)
    stopped.choices[0].reason = "stop"
    assert judge(stopped, REFERENCE) is Verdict.CHANGED
    miscounted = make_answer(RIGHT)
    miscounted.num_counted = len(RIGHT) + 3
    assert judge(miscounted, REFERENCE) is Verdict.CHANGED


def test_what_a_dead_connection_brought_must_be_the_beginning() -> None:
    for begun, verdict in ((RIGHT[:4], Verdict.FINE), ([10, 11, 99], Verdict.CHANGED)):
        answer = make_answer(begun)
        answer.ask_again()
        answer.choices, answer.num_counted = make_answer(RIGHT).choices, len(RIGHT)
        assert judge(answer, REFERENCE) is verdict


def test_stream_is_read_choice_by_choice() -> None:
    answer = Answer(sent=1.0)
    lines = [
        write_event([], ""),
        write_event([5, 6], "ab"),
        "",
        write_event([7], "c", index=1),
        write_event([], "", reason="length"),
        write_event([], "", index=1, reason="stop"),
        'data: {"choices": [], "usage": {"completion_tokens": 3}}',
        "data: [DONE]",
    ]
    for number, line in enumerate(lines):
        answer.note_line(line, 2.0 + number)
    assert answer.choices == {0: Choice([5, 6], "ab", "length", 1), 1: Choice([7], "c", "stop", 1)}
    assert (answer.num_counted, answer.is_done, answer.failure) == (3, True, "")
    assert answer.times == [3.0, 5.0, 9.0]


def test_whole_answer_is_read_at_once() -> None:
    answer = Answer(sent=1.0)
    choice = {"index": 0, "message": {"content": "ab"}, "finish_reason": "length", "token_ids": [1, 2]}
    answer.note_whole({"choices": [choice], "usage": {"completion_tokens": 2}}, 4.0)
    assert answer.choices == {0: Choice([1, 2], "ab", "length", 1)}
    assert (answer.num_counted, answer.is_done, answer.times) == (2, True, [4.0])


def test_error_event_is_a_failure_even_when_the_stream_ends_well() -> None:
    answer = Answer()
    answer.note_line('data: {"error": {"message": "a part was lost"}}', 1.0)
    answer.note_line("data: [DONE]", 1.0)
    assert "a part was lost" in answer.failure


def test_tokens_that_come_again_after_a_retry_are_no_news() -> None:
    answer = Answer()
    for at, tokens in ((1.0, [1]), (2.0, [2])):
        answer.note_line(write_event(tokens, "x"), at)
    answer.ask_again()
    for at, tokens in ((4.0, [1]), (5.0, [2]), (6.0, [3])):
        answer.note_line(write_event(tokens, "x"), at)
    assert answer.times == [1.0, 2.0, 6.0] and find_gaps(answer) == [1.0, 4.0]
    assert answer.num_retries == 1 and answer.num_tokens == 3


def test_pause_is_the_longest_gap_less_the_usual_one() -> None:
    reference = Answer(sent=0.0, times=[0.5, 0.6, 0.7, 0.8], is_done=True)
    answer = Answer(sent=10.0, times=[10.5, 10.6, 13.6, 13.7], is_done=True)
    assert find_pause_s(answer, reference) == pytest.approx(2.9)


def test_late_first_token_is_a_pause() -> None:
    reference = Answer(sent=0.0, times=[0.5, 0.6], is_done=True)
    assert find_pause_s(Answer(sent=0.0, times=[4.5, 4.6], is_done=True), reference) == pytest.approx(4.0)


def test_failed_answer_has_no_pause() -> None:
    reference = Answer(sent=0.0, times=[0.5, 0.6], is_done=True)
    assert find_pause_s(Answer(times=[1.0], failure="cut"), reference) is None
