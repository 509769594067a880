"""How busy instances are: this gateway's requests, counted exactly, and what heads report of everybody's, every few seconds. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from paceline_services.domain.instances import Instance, first_ranks
from paceline_services.domain.nodes import ClusterState
from paceline_services.domain.runners import RunnerLoad
from paceline_services.ids import InstanceId


@dataclass(frozen=True, slots=True)
class SeenLoad:
    """A head's report, and how many of its sequences were not ours when it came."""

    report: RunnerLoad
    num_others: int


def follow_loads(
    seen: Mapping[InstanceId, SeenLoad], state: ClusterState, in_flight: Mapping[InstanceId, int]
) -> dict[InstanceId, SeenLoad]:
    """What is seen after a new state, which came while so many of our sequences were in flight.

    A report that did not change is an old one, whatever else the state has news of: it says nothing of what is in flight now.
    """
    loads: dict[InstanceId, SeenLoad] = {}
    for instance in state.instances:
        name, report = instance.spec.instance_id, _read_report(instance)
        if report is None:
            continue
        before = seen.get(name)
        if before is not None and before.report == report:
            loads[name] = before
        else:
            num_others = report.num_running + report.num_waiting - in_flight.get(name, 0)
            loads[name] = SeenLoad(report, max(0, num_others))
    return loads


def add_loads(seen: Mapping[InstanceId, SeenLoad], in_flight: Mapping[InstanceId, int]) -> dict[InstanceId, int]:
    """Sequences on every instance that has any: ours now, and others' as last reported."""
    others = {name: load.num_others for name, load in seen.items()}
    return {name: in_flight.get(name, 0) + others.get(name, 0) for name in others.keys() | in_flight.keys()}


def _read_report(instance: Instance) -> RunnerLoad | None:
    """The report of the head: rank 0 of the last stage."""
    head = next(reversed(first_ranks(instance.shards)), None)
    return head.runner.load if head is not None and head.runner is not None else None
