"""A soak: full load for a long time, and what every process holds meanwhile. Runs by name only (`make soak MINUTES=30`).

The exit code is 1 when an answer was not the reference, a series grew, or the time per token did.
"""

import argparse
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from fault.answers import Verdict
from fault.load import Load
from fault.results import write_section
from fault.samples import FLOORS, Slowness, Trend, find_slowness, find_trend, make_soak_table
from fault.trial import make_arena
from support.demo import demo_folder
from support.fleet import Fleet, Wish, running_fleet

SAMPLE_S = 5.0
MIB = 1 << 20
Series = dict[tuple[str, str], list[float]]


class Sampler:
    """A context: measures every process of a cluster, every SAMPLE_S seconds."""

    def __init__(self, fleet: Fleet) -> None:
        self.series: Series = defaultdict(list)
        self._fleet = fleet
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            for name, keeper in self._fleet.keepers.items():
                if keeper.pid:
                    self._note_process(name, keeper.pid)
            with suppress(httpx.HTTPError, AssertionError):
                for shard in self._fleet.instance()["shards"]:
                    self._note_process(f"runner of stage {shard['stage']}", shard["pid"])
            for member in self._fleet.members:
                with suppress(httpx.HTTPError):
                    self._note_member(member.name, member.client.url)

    def _note_process(self, name: str, pid: int) -> None:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            self.series[name, "rss MiB"].append(process.memory_info().rss / MIB)
            self.series[name, "file descriptors"].append(process.num_fds())
            self.series[name, "threads"].append(process.num_threads())

    def _note_member(self, name: str, url: str) -> None:
        text = httpx.get(url + "/metrics", timeout=5, trust_env=False).text
        figures = read_metrics(text)
        self.series[name, "etcd MiB"].append(figures["etcd_mvcc_db_total_size_in_bytes"] / MIB)
        self.series[name, "etcd keys"].append(figures["etcd_debugging_mvcc_keys_total"])


def read_metrics(text: str) -> dict[str, float]:
    """Values of a Prometheus page that have no labels, by name."""
    pairs = [line.split() for line in text.splitlines() if line and line[0] != "#" and "{" not in line]
    return {pair[0]: float(pair[1]) for pair in pairs if len(pair) == 2}


def find_trends(series: Series) -> dict[tuple[str, str], Trend]:
    """Of every series that was measured throughout."""
    most = max(map(len, series.values()))
    return {key: find_trend(values, FLOORS[key[1]]) for key, values in series.items() if len(values) >= 0.8 * most}


def collect_gaps(load: Load) -> list[tuple[float, float]]:
    """(when, seconds since the token before) of every token but the first ones."""
    return [
        (later, later - earlier)
        for _, answers in load.rounds
        for answer in answers
        for earlier, later in zip(answer.times, answer.times[1:], strict=False)
    ]


def run_soak(folder: Path, minutes: float) -> tuple[str, bool]:
    """A section of Markdown, and whether everything was as it should be."""
    wish = Wish(str(demo_folder()))
    with running_fleet(folder, wish) as fleet:
        arena = make_arena(fleet, wish)
        ends = {name: keeper.num_ends for name, keeper in fleet.keepers.items()}
        begin = time.monotonic()
        with Load(arena) as load, Sampler(fleet) as sampler:
            time.sleep(60 * minutes)
        end = time.monotonic()
        died = [name for name, keeper in fleet.keepers.items() if keeper.num_ends != ends[name]]
    slowness = find_slowness(collect_gaps(load), begin, end, min(300.0, 60 * minutes / 6))
    return describe(minutes, load, find_trends(sampler.series), slowness, died)


def describe(
    minutes: float, load: Load, trends: dict[tuple[str, str], Trend], slowness: Slowness, died: Sequence[str]
) -> tuple[str, bool]:
    judged = load.judge()
    num_answers = sum(one.verdicts.total() for one in judged)
    num_wrong = num_answers - sum(one.verdicts[Verdict.FINE] for one in judged)
    num_tokens = sum(answer.num_tokens for _, answers in load.rounds for answer in answers)
    text = (
        f"{minutes:g} minutes, always {len(load.rounds[0][1])} clients: {num_answers} answers with {num_tokens} tokens, "
        f"{num_wrong} of them not as undisturbed; processes that ended by themselves: {', '.join(died) or 'none'}.\n\n"
        f"{make_soak_table(trends, slowness)}"
    )
    return text, not num_wrong and not died and slowness.is_kept and all(trend.is_flat for trend in trends.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--home", type=Path, default=Path("/tmp/paceline-soak"))
    parser.add_argument("--markdown", type=Path, help="document whose section soak is written anew")
    arguments = parser.parse_args()
    text, is_good = run_soak(arguments.home / time.strftime("%Y%m%d-%H%M%S"), arguments.minutes)
    print(text, flush=True)
    if arguments.markdown:
        write_section(arguments.markdown, "soak", text)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
