"""Records of trials, and the tables made of them."""

from dataclasses import replace
from pathlib import Path

import pytest
from fault.answers import Answer, Verdict
from fault.questions import Question
from fault.results import (
    TrialResult,
    append_result,
    judge_all,
    make_results_table,
    read_results,
    tell_line,
    write_section,
)

GOOD = TrialResult("processes", 1, 0, "head", "kill -9", num_answers=8, pause_s=1.5, recovery_s=2.0)


def test_table_has_a_row_for_each_case_and_one_for_all() -> None:
    results = [
        GOOD,
        replace(GOOD, number=1, pause_s=3.5),
        replace(GOOD, number=2, target="agent", num_lost=8, pause_s=None),
    ]
    rows = make_results_table(results).splitlines()[2:]
    assert rows[0] == "| agent | kill -9 | 1 | 8 | 8 | 0 | 0 | 0 | - | - | 2.0 |"
    assert rows[1] == "| head | kill -9 | 2 | 16 | 0 | 0 | 0 | 0 | 2.5 | 3.5 | 2.0 |"
    assert rows[2].startswith("| all |  | 3 | 24 | 8 |")


def test_line_says_what_failed() -> None:
    assert "ok" in tell_line(GOOD) and "FAIL" not in tell_line(GOOD)
    assert "FAIL" in tell_line(replace(GOOD, num_doubled=1))
    assert "NOT WHOLE: 2 of 3 nodes are up" in tell_line(replace(GOOD, missing="2 of 3 nodes are up"))


def test_results_are_kept_by_part_and_seed_and_the_last_of_a_trial_counts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    kept = [GOOD, replace(GOOD, number=1, notes=("a", "b")), replace(GOOD, seed=2), replace(GOOD, num_lost=3)]
    for result in kept:
        append_result(path, result)
    assert read_results(path, "processes", 1) == [kept[3], kept[1]]
    assert read_results(tmp_path / "none", "processes", 1) == []


def test_section_is_written_between_its_markers(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Page\n<!-- begin soak -->\nold\n<!-- end soak -->\nrest\n")
    write_section(path, "soak", "new\n")
    assert path.read_text() == "# Page\n<!-- begin soak -->\nnew\n<!-- end soak -->\nrest\n"
    with pytest.raises(ValueError, match="no place for store"):
        write_section(path, "store", "x")


def test_whole_answer_counts_among_answers_and_not_among_pauses() -> None:
    reference = Answer(sent=0.0, times=[0.5, 0.6], is_done=True)
    late = Answer(sent=0.0, times=[9.0, 9.1], is_done=True)
    questions = [Question("one", {"stream": True}), Question("two", {"stream": False})]
    judged = judge_all(questions, [reference, late], [reference, reference])
    assert judged.verdicts[Verdict.FINE] == 2 and judged.pause_s == 0.0
