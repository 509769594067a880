"""What is said of many requests at once: marks and tables from the figures of the cases. Pure."""

from dataclasses import asdict, dataclass, field
from typing import Any

from bench.crowd import NUM_STREAMS, Crowd
from bench.editing import ALL_TASKS, Task, editing_name
from bench.figures import Figures
from bench.load_cases import FEW, MANY, PROMPT_TOKENS, QUIET_S, LoadEffort, found_name, gap_name, rate_name, turn_name
from bench.tables import Mark, make_bounds, make_table, show

ONE, TWO, GUESSING = "1 stage", "2 stages", "2 stages, guessing"


@dataclass(slots=True)
class Outcome:
    """All that was measured of one model."""

    title: str
    effort: LoadEffort
    figures: Figures = field(default_factory=Figures)
    tasks: list[Task] = field(default_factory=list)
    crowd: Crowd | None = None
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        tasks = [{"title": task.title, "repeated": task.repeated, "acceptance": task.acceptance} for task in self.tasks]
        crowd = asdict(self.crowd) if self.crowd else None
        return {"figures": self.figures.to_json(), "tasks": tasks, "crowd": crowd, "failures": self.failures}


def describe_outcome(outcome: Outcome) -> list[str]:
    """The model's part of the section, as paragraphs."""
    figures, effort = outcome.figures, outcome.effort
    return [
        f"### {outcome.title}",
        f"{effort.rounds} round{'s' if effort.rounds > 1 else ''}; long prompts have {effort.long_tokens} tokens, {MANY} streams are asked "
        f"for {effort.num_tokens} each.",
        *([f"Failed: {'; '.join(outcome.failures)}."] if outcome.failures else []),
        make_bounds([*make_stage_marks(figures), make_guessing_mark(outcome), *make_crowd_marks(outcome.crowd)]),
        f"{MANY} streams (prompts of {PROMPT_TOKENS} tokens, all started together) and one alone; tokens per second from the last "
        "stream's first token to the first one's end:",
        make_rate_table(figures),
        f"A fresh long prompt, {QUIET_S} s after {FEW} streams all began to decode; gaps between two tokens of a stream from then to the "
        "prompt's first tokens. Quiet: before the prompt came. Ratios are medians over the rounds, with the largest round in brackets:",
        make_gap_table(figures),
        "A fresh long prompt alone, and the next turn of that chat: the prompt, 16 tokens answered, 32 new ones:",
        make_turn_table(figures),
        *describe_editing(outcome),
        *(describe_crowd(outcome.crowd) if outcome.crowd else []),
    ]


def make_stage_marks(figures: Figures) -> list[Mark]:
    many, few = rate_name(TWO, MANY), rate_name(ONE, 1)
    first, second = turn_name("first", TWO), turn_name("second", TWO)
    gap = figures.median(gap_name("worst / median", TWO))
    return [
        Mark(f"tokens/s of {MANY} streams, 2 stages / 1", 1.8, figures.ratio(many, rate_name(ONE, MANY))),
        Mark(f"tokens/s of {MANY} streams on 2 stages / of 1 on 1 stage", 3.0, figures.ratio(many, few)),
        Mark("worst gap beside a long prompt / median gap, 2 stages", 3.0, gap, is_most=True),
        Mark("first token of a long prompt, 2 stages / 1", 0.65, figures.ratio(first, turn_name("first", ONE)), True),
        Mark(
            "first token of the chat's second turn / of the first, 2 stages", 0.15, figures.ratio(second, first), True
        ),
    ]


def make_guessing_mark(outcome: Outcome) -> Mark:
    names = [editing_name(ALL_TASKS, cluster) for cluster in (GUESSING, TWO)]
    failure = "answers differ" if any(task.num_different for task in outcome.tasks) else ""
    return Mark(
        "tokens/s with guesses / without, repeating answers", 1.5, outcome.figures.ratio(*names), failure=failure
    )


def make_crowd_marks(crowd: Crowd | None) -> list[Mark]:
    if crowd is None:
        return []
    streams, burst, kv = crowd.streams, crowd.burst, crowd.kv_tokens
    failure = "" if burst.num_refused else "nothing was refused"
    return [
        Mark(f"answers of {NUM_STREAMS} streams that are complete", 1.0, streams.num_complete / streams.num_asked),
        Mark(f"answers of {NUM_STREAMS} streams that are as alone", 1.0, streams.num_same / streams.num_asked),
        Mark("KV tokens of running sequences afterwards", 0.0, None if kv is None else float(kv), is_most=True),
        Mark("memory of a runner afterwards / early", 1.05, crowd.growth, is_most=True),
        Mark(
            "burst: answered as alone, or refused properly", 1.0, 1 - burst.num_odd / burst.num_asked, failure=failure
        ),
    ]


def make_rate_table(figures: Figures) -> str:
    rows = []
    for name in (ONE, TWO, GUESSING):
        one, many = rate_name(name, 1), rate_name(name, MANY)
        if figures.median(one) is None:
            continue
        ratios = [(many, one), (many, rate_name(ONE, MANY)), (many, rate_name(ONE, 1))]
        rows.append([name, *(show(figures.median(key)) for key in (one, many)), *_show_ratios(figures, ratios)])
    return make_table(
        ["cluster", "1 stream", f"{MANY} streams", f"{MANY} / 1", f"x {MANY} on 1 stage", "x 1 on 1 stage"], rows
    )


def make_gap_table(figures: Figures) -> str:
    rows = []
    for name in (ONE, TWO):
        if figures.median(gap_name("worst ms", name)) is None:
            continue
        times = [show(figures.median(gap_name(kind, name)), 1) for kind in ("quiet ms", "median ms", "worst ms")]
        ratios = [_show_range(figures, gap_name(kind, name)) for kind in ("worst / median", "worst / quiet")]
        first = show(figures.median(gap_name("first token s", name)), 2)
        rows.append([name, *times, *ratios, first, show(figures.worst(gap_name("ended early", name)), 0)])
    columns = ["quiet gap ms", "median gap ms", "worst gap ms", "worst / median", "worst / quiet"]
    return make_table(["cluster", *columns, "the prompt's first token s", "streams that ended before"], rows)


def make_turn_table(figures: Figures) -> str:
    rows = []
    for name in (ONE, TWO):
        first, second = turn_name("first", name), turn_name("second", name)
        times = [show(figures.median(key), 3) for key in (first, second)]
        ratios = _show_ratios(figures, [(second, first), (first, turn_name("first", ONE))])
        rows.append([name, *times, *ratios, show(figures.median(found_name(name)), 0)])
    columns = ["first turn s", "second turn s", "second / first", "first, x 1 stage", "tokens found in the cache"]
    return make_table(["cluster", *columns], rows)


def describe_editing(outcome: Outcome) -> list[str]:
    if not outcome.tasks:
        return ["Guessing was not measured: no prompt's greedy continuation repeats itself."]
    return [
        "Guessing ahead where answers repeat. Of texts, the share of the answer's words that stand in the text in the same order; of "
        "prompts without meaning, the share of tokens that follow the three before them as they did the last time:",
        make_editing_table(outcome),
    ]


def make_editing_table(outcome: Outcome) -> str:
    rows = []
    for task in outcome.tasks:
        names = [editing_name(task.title, cluster) for cluster in (GUESSING, TWO)]
        rates = [show(outcome.figures.median(name)) for name in reversed(names)]
        guesses = [str(task.num_drafted), "-" if task.acceptance is None else f"{task.acceptance:.0%}"]
        told = [task.title, task.outcome, str(len(task.answer)), f"{task.repeated:.0%}"]
        same = "NO" if task.num_different else "yes"
        rows.append([*told, *rates, show(outcome.figures.ratio(*names), 2), *guesses, same])
    columns = [
        "task",
        "what was told",
        "tokens",
        "repeated",
        "tokens/s",
        "with guesses",
        "ratio",
        "guessed",
        "accepted",
        "same tokens",
    ]
    return make_table(columns, rows)


def describe_crowd(crowd: Crowd) -> list[str]:
    streams, burst = crowd.streams, crowd.burst
    memory = " + ".join(
        f"{early:.0f} -> {late:.0f}" for early, late in zip(crowd.resident_early, crowd.resident_late, strict=True)
    )
    kv = "not told" if crowd.kv_tokens is None else str(crowd.kv_tokens)
    return [
        f"{NUM_STREAMS} streams at once through the gateway, each asking a dozen different requests in turn: {streams.num_asked} answers "
        f"with {streams.num_tokens} tokens, {streams.num_complete} complete, {streams.num_same} as the same request was answered alone. "
        f"Memory of the runners, early and afterwards: {memory} MiB. KV tokens of running sequences afterwards: {kv}. A burst of "
        f"{burst.num_asked} requests at once, with {crowd.queue_size} places to run and to wait: {burst.num_same} answered as alone, "
        f"{burst.num_refused} refused with 429, Retry-After and OpenAI's error, {burst.num_odd} anything else; {crowd.burst_s:.0f} s.",
        *(
            [f"Others: {'; '.join([*streams.oddities, *burst.oddities][:5])}."]
            if streams.oddities or burst.oddities
            else []
        ),
    ]


def _show_ratios(figures: Figures, pairs: list[tuple[str, str]]) -> list[str]:
    return [show(figures.ratio(*pair), 2) for pair in pairs]


def _show_range(figures: Figures, name: str) -> str:
    return f"{show(figures.median(name), 2)} ({show(figures.worst(name), 2)})"
