"""A replica of the control plane over a real etcd, and a client of it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from paceline_services.clients import ControlPlaneClient
from support.etcd import EtcdCluster, running_etcd
from support.replicas import ReplicaProcess, running_replica


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdCluster]:
    with running_etcd(tmp_path / "etcd") as cluster:
        yield cluster


@pytest.fixture
async def replica(etcd: EtcdCluster, tmp_path: Path) -> AsyncIterator[ReplicaProcess]:
    async with running_replica(tmp_path, etcd.endpoints, "one") as process:
        yield process


@pytest.fixture
async def client(replica: ReplicaProcess) -> AsyncIterator[ControlPlaneClient]:
    client = ControlPlaneClient([replica.address])
    yield client
    await client.close()
