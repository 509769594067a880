"""How busy this node's runners are, for Prometheus: GET /metrics on the agent's own port, off unless one is set.

Nothing is counted here: runners report their load to the agent, and each scrape shows what they last said. The server has its own
thread; it only reads reports, which are never changed in place.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from paceline_services.domain.runners import RunnerLoad, RunnerReport
from paceline_services.errors import ConfigurationError

_LABELS = ("instance_id", "stage", "rank")
_Labels = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class MeasuredRunner:
    """What a runner last reported, and whether it is its instance's head: only heads know of sequences."""

    report: RunnerReport
    is_head: bool


class LoadCollector(Collector):
    """Makes metrics of the reports of now."""

    def __init__(self, read: Callable[[], Iterable[MeasuredRunner]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Every metric, also those that no runner has a value for yet."""
        loads = list(_latest_loads(self._read()))
        heads = [(labels, load) for labels, load, is_head in loads if is_head]
        idle = GaugeMetricFamily(
            "paceline_worker_stage_idle_ratio", "Part of the time without work although there was some.", labels=_LABELS
        )
        for labels, load, _ in loads:
            idle.add_metric(labels, load.idle_ratio)
        yield idle
        yield from _gauges(heads)
        yield from _counters(heads)


@contextmanager
def serve_metrics(host: str, port: int, read: Callable[[], Iterable[MeasuredRunner]]) -> Iterator[None]:
    """Answer scrapes while the block runs; port 0 serves nothing. Raises ConfigurationError when the port is taken."""
    if not port:
        yield
        return
    registry = CollectorRegistry()
    registry.register(LoadCollector(read))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics cannot be served on {host}:{port} ({error.strerror}): choose another --metrics-port, or 0 for none"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _latest_loads(runners: Iterable[MeasuredRunner]) -> Iterator[tuple[_Labels, RunnerLoad, bool]]:
    """Labels, load and headship of each shard, of its latest epoch: an older one may still be ending."""
    latest: dict[_Labels, MeasuredRunner] = {}
    for runner in sorted(runners, key=_order):
        latest[runner.report.instance_id, str(runner.report.stage), str(runner.report.rank)] = runner
    for labels, runner in latest.items():
        if runner.report.load is not None:
            yield labels, runner.report.load, runner.is_head


def _order(runner: MeasuredRunner) -> tuple[str, int, int, int]:
    report = runner.report
    return report.instance_id, report.stage, report.rank, report.epoch


def _gauges(heads: list[tuple[_Labels, RunnerLoad]]) -> Iterator[Metric]:
    running = GaugeMetricFamily("paceline_worker_sequences_running", "Sequences that are computed now.", labels=_LABELS)
    waiting = GaugeMetricFamily("paceline_worker_sequences_waiting", "Sequences that wait.", labels=_LABELS)
    tokens = GaugeMetricFamily(
        "paceline_worker_kv_tokens",
        "Tokens of KV cache: of running sequences, kept for prompts to come, and how many fit.",
        labels=(*_LABELS, "kind"),
    )
    for labels, load in heads:
        running.add_metric(labels, load.num_running)
        waiting.add_metric(labels, load.num_waiting)
        tokens.add_metric((*labels, "running"), load.kv_running_tokens)
        tokens.add_metric((*labels, "kept"), load.kv_kept_tokens)
        tokens.add_metric((*labels, "capacity"), load.kv_capacity_tokens)
    yield from (running, waiting, tokens)


def _counters(heads: list[tuple[_Labels, RunnerLoad]]) -> Iterator[Metric]:
    counted: tuple[tuple[str, str, Callable[[RunnerLoad], int]], ...] = (
        ("cached_tokens", "Prompt tokens whose KV cache was found.", lambda load: load.num_cached_tokens),
        ("drafted_tokens", "Tokens guessed by speculation.", lambda load: load.num_drafted_tokens),
        ("accepted_tokens", "Guessed tokens that were right.", lambda load: load.num_accepted_tokens),
        ("answer_tokens", "Tokens that answers got.", lambda load: load.num_answer_tokens),
        ("refused", "Requests refused because the queue was full.", lambda load: load.num_refused),
    )
    for name, meaning, read in counted:
        counter = CounterMetricFamily(f"paceline_worker_{name}", meaning, labels=_LABELS)
        for labels, load in heads:
            counter.add_metric(labels, read(load))
        yield counter
