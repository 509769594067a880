"""What a scrape shows: the last load of each stage, sequences and tokens of heads only."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from paceline_services.domain.runners import RunnerLoad, RunnerReport, RunnerState
from paceline_services.errors import ConfigurationError
from paceline_services.ids import Epoch, InstanceId
from paceline_worker.agent.metrics import LoadCollector, MeasuredRunner, serve_metrics
from paceline_worker.agent.supervisor import is_same_but_for_load

LOAD = RunnerLoad(
    idle_ratio=0.25,
    num_running=3,
    num_waiting=2,
    kv_running_tokens=500,
    kv_kept_tokens=100,
    kv_capacity_tokens=65536,
    num_cached_tokens=7,
    num_drafted_tokens=8,
    num_accepted_tokens=6,
    num_answer_tokens=90,
    num_refused=1,
)
REPORT = RunnerReport(InstanceId("demo"), Epoch(7), 1, 18, 30, RunnerState.READY, load=LOAD)
HEAD = MeasuredRunner(REPORT, is_head=True)
FIRST = MeasuredRunner(replace(REPORT, stage=0, load=RunnerLoad(idle_ratio=0.5)), is_head=False)


def scrape(runners: Iterable[MeasuredRunner]) -> list[str]:
    """The samples, in order."""
    registry = CollectorRegistry()
    registry.register(LoadCollector(lambda: runners))
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_every_stage_shows_how_idle_it_was_and_the_head_its_sequences() -> None:
    assert scrape([HEAD, FIRST]) == [
        'paceline_worker_stage_idle_ratio{instance_id="demo",rank="0",stage="0"} 0.5',
        'paceline_worker_stage_idle_ratio{instance_id="demo",rank="0",stage="1"} 0.25',
        'paceline_worker_sequences_running{instance_id="demo",rank="0",stage="1"} 3.0',
        'paceline_worker_sequences_waiting{instance_id="demo",rank="0",stage="1"} 2.0',
        'paceline_worker_kv_tokens{instance_id="demo",kind="running",rank="0",stage="1"} 500.0',
        'paceline_worker_kv_tokens{instance_id="demo",kind="kept",rank="0",stage="1"} 100.0',
        'paceline_worker_kv_tokens{instance_id="demo",kind="capacity",rank="0",stage="1"} 65536.0',
        'paceline_worker_cached_tokens_total{instance_id="demo",rank="0",stage="1"} 7.0',
        'paceline_worker_drafted_tokens_total{instance_id="demo",rank="0",stage="1"} 8.0',
        'paceline_worker_accepted_tokens_total{instance_id="demo",rank="0",stage="1"} 6.0',
        'paceline_worker_answer_tokens_total{instance_id="demo",rank="0",stage="1"} 90.0',
        'paceline_worker_refused_total{instance_id="demo",rank="0",stage="1"} 1.0',
    ]


def test_every_rank_of_a_stage_shows_how_idle_it_was() -> None:
    other = MeasuredRunner(replace(REPORT, rank=1, load=RunnerLoad(idle_ratio=0.125)), is_head=False)
    assert [line for line in scrape([HEAD, other]) if "idle" in line] == [
        'paceline_worker_stage_idle_ratio{instance_id="demo",rank="0",stage="1"} 0.25',
        'paceline_worker_stage_idle_ratio{instance_id="demo",rank="1",stage="1"} 0.125',
    ]


def test_a_runner_that_said_nothing_or_is_of_an_older_epoch_shows_nothing() -> None:
    silent = MeasuredRunner(replace(REPORT, load=None), is_head=True)
    assert scrape([silent]) == []
    older = MeasuredRunner(replace(REPORT, epoch=Epoch(5), load=RunnerLoad(idle_ratio=0.75)), is_head=True)
    assert scrape([HEAD, older]) == scrape([older, HEAD]) == scrape([HEAD])


def test_without_a_port_nothing_is_served_and_a_taken_one_is_named() -> None:
    with serve_metrics("127.0.0.1", 0, lambda: ()):
        pass
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1:9100"), serve_metrics("192.0.2.1", 9100, lambda: ()):
        pass


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({"load": RunnerLoad(idle_ratio=0.9)}, True),
        ({"resident_bytes": 5}, True),
        ({"load": None}, True),
        ({"state": RunnerState.BROKEN}, False),
        ({"address": "127.0.0.1:1"}, False),
    ],
)
def test_load_alone_waits_for_the_next_heartbeat(changed: dict[str, object], is_same: bool) -> None:
    assert is_same_but_for_load(REPORT, replace(REPORT, **changed)) is is_same  # type: ignore[arg-type]
