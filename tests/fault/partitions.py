"""Parts two hosts of a test network, one way or both, for a while."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fault.faults import Cut, Edge, Way, choose
from fault.trial import Case, Wound
from support.fleet import Fleet, Size, Wish, running_fleet, wait_for
from support.network import Network, make_sites, open_network

PLACED_TIMEOUT_S = 20.0
WORKERS = ("first", "second", "third")


@contextmanager
def running_hosts(folder: Path, wish: Wish, workers: Sequence[str] = WORKERS) -> Iterator[tuple[Fleet, Network]]:
    """A whole cluster, each agent on a host of its own. Needs what support.network.find_obstacle asks for.

    Of everything else there is one: the loss of one of several is another trial's.
    """
    size = Size(members=1, control_planes=1, agents=len(workers), gateways=1, stages=len(workers))
    with (
        open_network(("brain", "front", *workers)) as network,
        running_fleet(folder, wish, sites=make_sites(network.hosts), size=size) as fleet,
    ):
        yield fleet, network


def make_cut_case(fleet: Fleet, network: Network, seed: int, cut: Cut) -> Case:
    def strike() -> Wound:
        return part_hosts(network, find_ends(fleet, cut.edge, cut.timing.pick), cut.way, cut.duration_s)

    fault = f"{cut.way.value}, {cut.duration_s:g} s"
    return Case("partitions", seed, cut.timing, cut.edge.value, fault, strike)


def find_ends(fleet: Fleet, edge: Edge, pick: float) -> tuple[str, str]:
    """Names of the two hosts, as the instance lies now."""
    shards = wait_for(lambda: fleet.instance()["shards"], "the instance lies somewhere", PLACED_TIMEOUT_S)
    workers = [fleet.keepers[shard["node_id"]].program.host.name for shard in shards]
    if edge is Edge.WORKERS:
        stage = choose(range(len(workers)), pick)
        return workers[stage], workers[(stage + 1) % len(workers)]
    return (choose(workers, pick), "brain") if edge is Edge.BRAIN else ("front", workers[-1])


def part_hosts(network: Network, ends: tuple[str, str], way: Way, duration_s: float) -> Wound:
    """Cut, and heal after duration_s."""
    first, second = reversed(ends) if way is Way.BACK else ends
    network.cut(first, second, is_both=way is Way.BOTH)
    healing = threading.Timer(duration_s, network.heal)
    healing.start()

    def wait_for_healing() -> str:
        healing.join()
        return ""

    return Wound(wait_for_healing)
