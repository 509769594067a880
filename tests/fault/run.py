"""Trials by the hundred: strikes processes, parts hosts, takes etcd away, cuts the power, and says what became of every answer.

A line for each trial goes to standard error, tables to standard output and, with --markdown, into a document between its markers.
Results are kept in a file below --home: a run with the same seed goes on where the last one stopped. The exit code is 1 when an answer
was lost, changed or doubled, or a cluster did not become whole again.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fault.faults import CUTS_S, Rank, Target, draw_blows, draw_cuts
from fault.partitions import make_cut_case, running_hosts
from fault.power import cut_while_serving, run_download_cuts, run_import_cuts
from fault.questions import NUM_SETS
from fault.results import TrialResult, append_result, make_results_table, read_results, tell_line, write_section
from fault.store import run_store_trials
from fault.trial import find_failures, make_arena, make_whole, run_trial
from fault.wounds import make_case
from support.demo import demo_folder
from support.fleet import Fleet, Size, Wish, running_fleet
from support.network import find_obstacle

PARTS = ("processes", "ranks", "partitions", "store", "power")
NUM_RANKS = 2


@dataclass(frozen=True, slots=True)
class Run:
    """What was asked for, where results are kept, and a folder for the files of this run's processes."""

    seed: int
    num_trials: int
    results_path: Path
    folder: Path
    deadline: float
    targets: tuple[Target, ...]

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.deadline

    def done(self, part: str) -> set[int]:
        return {result.number for result in read_results(self.results_path, part, self.seed)}


def run_processes(run: Run) -> Iterator[TrialResult]:
    done = run.done("processes")
    blows = draw_blows(run.seed, run.num_trials, NUM_SETS)
    left = [blow for blow in blows if blow.target in run.targets and blow.timing.number not in done]
    if not left:
        return
    with _make_fleet(run) as fleet:
        arena = make_arena(fleet, _make_wish())
        for blow in left:
            if run.is_over:
                return
            yield run_trial(arena, make_case(fleet, run.seed, blow))


def run_ranks(run: Run) -> Iterator[TrialResult]:
    """One stage of two ranks: whichever is struck, both start anew."""
    done = run.done("ranks")
    blows = draw_blows(run.seed, run.num_trials, NUM_SETS, Rank)
    left = [blow for blow in blows if blow.timing.number not in done]
    if not left:
        return
    wish = replace(_make_wish(), strategy="tensor", tensor_size=NUM_RANKS)
    size = Size(agents=NUM_RANKS, stages=1, ranks=NUM_RANKS)
    with running_fleet(run.folder, wish, size=size) as fleet:
        arena = make_arena(fleet, wish)
        for blow in left:
            if run.is_over:
                return
            yield run_trial(arena, make_case(fleet, run.seed, blow))


def run_partitions(run: Run) -> Iterator[TrialResult]:
    if obstacle := find_obstacle():
        say(f"partitions: not run: {obstacle}")
        return
    done = run.done("partitions")
    left = [cut for cut in draw_cuts(run.seed, run.num_trials, NUM_SETS, CUTS_S) if cut.timing.number not in done]
    if not left:
        return
    with running_hosts(run.folder, _make_wish()) as (fleet, network):
        arena = make_arena(fleet, _make_wish())
        for cut in left:
            if run.is_over:
                return
            yield run_trial(arena, make_cut_case(fleet, network, run.seed, cut))


def run_store(run: Run) -> Iterator[TrialResult]:
    with _make_fleet(run) as fleet:
        yield from run_store_trials(make_arena(fleet, _make_wish(), 1), run.seed, run.folder)


def run_power(run: Run) -> Iterator[TrialResult]:
    """num_trials of each kind."""
    with _make_fleet(run) as fleet:
        arena = make_arena(fleet, _make_wish(), 1)
        for number in range(run.num_trials):
            yield cut_while_serving(arena, run.seed, number)
            make_whole(arena)
    for cuts in (run_import_cuts, run_download_cuts):
        for result in cuts(run.folder, arena.references, run.seed, run.num_trials):
            yield result
            if run.is_over:
                return


RUNNERS: dict[str, Callable[[Run], Iterator[TrialResult]]] = {
    "processes": run_processes,
    "ranks": run_ranks,
    "partitions": run_partitions,
    "store": run_store,
    "power": run_power,
}


def run_part(part: str, run: Run) -> list[TrialResult]:
    """Run what is left of a part; returns everything that the seed's runs found."""
    for result in RUNNERS[part](run):
        append_result(run.results_path, result)
        say(f"{part} {tell_line(result)}")
        for note in result.notes:
            say(f"      {note}")
    return read_results(run.results_path, part, run.seed)


def describe(results: list[TrialResult]) -> str:
    """A part's section."""
    failures = find_failures(results)
    verdict = f"{len(failures)} of {len(results)} trials failed" if failures else f"All {len(results)} trials went well"
    return f"Seed {results[0].seed}. {verdict}.\n\n{make_results_table(results)}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _make_wish() -> Wish:
    return Wish(str(demo_folder()))


def _make_fleet(run: Run) -> AbstractContextManager[Fleet]:
    return running_fleet(run.folder, _make_wish())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=["processes"])
    parser.add_argument("--trials", type=int, default=200, help="of each part but store")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no trial after so many")
    parser.add_argument(
        "--target", nargs="+", choices=[one.name.lower() for one in Target], help="processes: only these"
    )
    parser.add_argument("--home", type=Path, default=Path("/tmp/paceline-chaos"), help="for results, logs and data")
    parser.add_argument("--json", type=Path, help="write every result there")
    parser.add_argument("--markdown", type=Path, help="document whose sections of these parts are written anew")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    targets = tuple(Target[name.upper()] for name in arguments.target or ()) or tuple(Target)
    deadline = time.monotonic() + 60 * arguments.minutes
    folder = arguments.home / time.strftime("%Y%m%d-%H%M%S")
    run = Run(arguments.seed, arguments.trials, arguments.home / "results.jsonl", folder, deadline, targets)
    found: dict[str, list[TrialResult]] = {}
    for part in arguments.part:
        if not (results := run_part(part, run)):
            say(f"{part}: no trial was run")
        else:
            found[part] = results
            print(f"## {part}\n\n{describe(results)}\n", flush=True)
            if arguments.markdown:
                write_section(arguments.markdown, part, describe(results))
    everything = [result for results in found.values() for result in results]
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in everything], indent=1))
    return 1 if find_failures(everything) else 0


if __name__ == "__main__":
    sys.exit(main())
