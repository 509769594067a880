"""What trials found: a record each, kept as a line of JSON so that a run can be taken up again, and tables of them."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fault.answers import Answer, Verdict, find_pause_s, judge
from fault.questions import Question

ABSENT = "-"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial. pause_s: the worst of its streams, None where none was answered; recovery_s: until the instance was ACTIVE for good.

    missing: what the cluster lacked when it should have been whole again; mended: what the harness had to do for that.
    """

    part: str
    seed: int
    number: int
    target: str
    fault: str
    num_answers: int
    num_lost: int = 0
    num_changed: int = 0
    num_doubled: int = 0
    num_retries: int = 0
    pause_s: float | None = None
    recovery_s: float = 0.0
    missing: str = ""
    mended: str = ""
    notes: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        return not (self.num_lost or self.num_changed or self.num_doubled or self.missing)


@dataclass(frozen=True, slots=True)
class Judged:
    """The answers of one trial against their references."""

    verdicts: Counter[Verdict]
    pause_s: float | None
    num_retries: int
    notes: tuple[str, ...]


def judge_all(questions: Sequence[Question], answers: Sequence[Answer], references: Sequence[Answer]) -> Judged:
    triples = list(zip(questions, answers, references, strict=True))
    verdicts = [judge(answer, reference) for _, answer, reference in triples]
    streams = [(answer, right) for question, answer, right in triples if question.body["stream"]]
    pauses = [pause for answer, right in streams if (pause := find_pause_s(answer, right)) is not None]
    notes = [
        _explain(question, answer, verdict)
        for (question, answer, _), verdict in zip(triples, verdicts, strict=True)
        if verdict is not Verdict.FINE
    ]
    retries = sum(answer.num_retries for answer in answers)
    return Judged(Counter(verdicts), max(pauses, default=None), retries, tuple(notes))


def tell_line(result: TrialResult) -> str:
    """One trial as a line for a person."""
    counts = f"lost {result.num_lost} changed {result.num_changed} doubled {result.num_doubled}"
    times = f"pause {show(result.pause_s)} s, recovery {show(result.recovery_s)} s"
    rest = [f"retries {result.num_retries}"] if result.num_retries else []
    rest += [f"NOT WHOLE: {result.missing}"] if result.missing else []
    rest += [f"mended: {result.mended}"] if result.mended else []
    where = f"{result.target}, {result.fault}"
    return f"{result.number:4d}  {where:44s}  {'ok  ' if result.is_good else 'FAIL'}  {counts}  {times}  {'; '.join(rest)}".rstrip()


def make_results_table(results: Sequence[TrialResult]) -> str:
    """A row for each target and fault, and one for all."""
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for result in results:
        groups.setdefault((result.target, result.fault), []).append(result)
    rows = [[target, fault, *_make_cells(group)] for (target, fault), group in sorted(groups.items())]
    rows += [["all", "", *_make_cells(results)]] if len(groups) > 1 else []
    columns = ["target", "fault", "trials", "answers", "lost", "changed", "doubled", "not whole again"]
    return make_table([*columns, "pause: median s", "worst s", "recovery: median s"], rows)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def show(number: float | None, digits: int = 1) -> str:
    return ABSENT if number is None else f"{number:.{digits}f}"


def append_result(path: Path, result: TrialResult) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def read_results(path: Path, part: str, seed: int) -> list[TrialResult]:
    """Those of one part and seed that a file has, the last of each trial; a file that is not there has none."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [TrialResult(**{**one, "notes": tuple(one["notes"])}) for one in map(json.loads, lines)]
    last = {(one.fault, one.number): one for one in found if (one.part, one.seed) == (part, seed)}
    return list(last.values())


def write_section(path: Path, name: str, text: str) -> None:
    """Put text between the markers of a name in a document. Raises ValueError where it has none."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    document = path.read_text()
    before, found, rest = document.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{path} has no place for {name}: put {begin} and {end} where it belongs")
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def _make_cells(results: Sequence[TrialResult]) -> list[str]:
    pauses = [result.pause_s for result in results if result.pause_s is not None]
    counts = [
        len(results),
        *(sum(getattr(result, name) for result in results) for name in ("num_answers", "num_lost")),
        *(sum(getattr(result, name) for result in results) for name in ("num_changed", "num_doubled")),
        sum(bool(result.missing) for result in results),
    ]
    median = statistics.median(pauses) if pauses else None
    recovery = statistics.median(result.recovery_s for result in results)
    return [*map(str, counts), show(median), show(max(pauses, default=None)), show(recovery)]


def _explain(question: Question, answer: Answer, verdict: Verdict) -> str:
    return f"{question.name}: {verdict.value} after {answer.num_tokens} tokens" + (
        f": {answer.failure}" if answer.failure else ""
    )
