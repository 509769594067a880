"""The tools of trials, on something smaller than a cluster: processes that are kept running, hosts that are parted."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.agents import is_running
from support.cluster import wait_until
from support.hosts import Host
from support.keeper import Keeper, held
from support.network import Network, find_obstacle, open_network
from support.programs import Program

SLEEPER = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")
SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("up", flush=True)
while True:
    server.accept()[0].sendall(b"x")
"""
CUT_S = 1.0
PATIENCE_S = 30.0


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(Program("sleeper", Host("here"), SLEEPER), tmp_path / "sleeper.log")
    keeper.start()
    yield keeper
    keeper.end()


def wait_for_pid(keeper: Keeper, *, other_than: int | None = None) -> int:
    wait_until(lambda: keeper.pid not in {None, other_than}, "the process runs")
    assert keeper.pid is not None
    return keeper.pid


def test_killed_process_is_started_again_until_the_end(keeper: Keeper) -> None:
    first = wait_for_pid(keeper)
    keeper.kill()
    second = wait_for_pid(keeper, other_than=first)
    keeper.end()
    assert keeper.num_ends == 2 and not is_running(first) and not is_running(second)


def test_held_process_is_not_started_again_until_released(keeper: Keeper) -> None:
    first = wait_for_pid(keeper)
    with held(keeper):
        assert keeper.pid is None and not is_running(first)
    assert wait_for_pid(keeper) != first


@contextmanager
def listening(network: Network) -> Iterator[str]:
    host = network.hosts["one"]
    command = [*host.prefix(), sys.executable, "-c", SERVER, host.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield host.address
        process.kill()


def reach(address: str, patience_s: float = PATIENCE_S) -> float | None:
    """Seconds until a byte came from there; None when none came in time."""
    begin = time.monotonic()
    try:
        with socket.create_connection((address, 7000), timeout=patience_s) as connection:
            return time.monotonic() - begin if connection.recv(1) else None
    except TimeoutError:
        return None


def test_hosts_are_parted_delayed_and_healed() -> None:
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    with open_network(("one", "two")) as network, listening(network) as address:
        assert reach(address) is not None
        for sender, receiver in (("one", "outside"), ("outside", "one")):
            network.cut(sender, receiver, is_both=False)
            assert reach(address, CUT_S) is None
            network.heal()
            assert reach(address) is not None
        network.cut("one", "two")
        assert reach(address) is not None, "others are not parted"
        network.delay("one", "outside", 0.1)
        delayed = reach(address)
        assert delayed is not None and delayed >= 0.2
