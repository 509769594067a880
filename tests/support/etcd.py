"""Real etcd for tests: one or several members as child processes on free ports, with ways to kill, hang and restart each.

Everything here is synchronous, so that fixtures of any scope can use it; asynchronous tests call what waits through
asyncio.to_thread.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from paceline.etcd.v1 import etcd_pb2
from paceline_cli.up.etcd import find_etcd, find_warning, read_version
from paceline_control_plane.store.etcd import EtcdSettings
from paceline_control_plane.store.etcd.client import EtcdClient
from paceline_control_plane.store.etcd.methods import Method
from paceline_control_plane.store.etcd.ranges import prefix_range
from paceline_services.ids import Revision
from support.certificates import TlsFiles

START_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.02


@dataclass(frozen=True, slots=True)
class _Ports:
    client: int
    peer: int
    metrics: int


def keeps_writes() -> bool:
    """Whether the etcd that tests run keeps what it acknowledged when it is killed under write load."""
    return not find_warning(read_version(find_etcd()))


class EtcdCluster:
    """A running etcd cluster below folder. Members are named by their index."""

    def __init__(
        self, folder: Path, num_members: int = 1, tls: TlsFiles | None = None, flags: Sequence[str] = ()
    ) -> None:
        self._folder = folder
        self._tls = tls
        self._flags = tuple(flags)
        self._ports = tuple(_Ports(*ports) for ports in _free_ports(num_members, 3))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def endpoints(self) -> tuple[str, ...]:
        """URLs for clients, by member."""
        scheme = "https" if self._tls else "http"
        return tuple(f"{scheme}://127.0.0.1:{ports.client}" for ports in self._ports)

    def settings(self, username: str = "", password: str = "") -> EtcdSettings:
        """What a client needs, with the client's certificate where the cluster speaks TLS."""
        tls = self._tls
        return EtcdSettings(
            self.endpoints,
            ca_file=tls.ca_file if tls else None,
            cert_file=tls.client_cert_file if tls else None,
            key_file=tls.client_key_file if tls else None,
            username=username,
            password=password,
        )

    def start(self) -> None:
        """Start every member and wait until all answer."""
        for member in range(len(self._ports)):
            self._spawn(member)
        self.wait_healthy()

    def kill(self, member: int) -> None:
        """kill -9: the member is gone, its folder stays."""
        self._processes[member].kill()
        self._processes.pop(member).wait()

    def restart(self, member: int) -> None:
        """Start a killed member again on its folder and wait until it answers."""
        self._spawn(member)
        self.wait_healthy([member])

    def stop_signal(self, member: int) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self._processes[member].send_signal(signal.SIGSTOP)

    def resume(self, member: int) -> None:
        """SIGCONT."""
        self._processes[member].send_signal(signal.SIGCONT)

    def wipe(self, member: int) -> None:
        """Delete a killed member's folder, as if the machine had been set up anew."""
        shutil.rmtree(self._folder / f"member{member}")

    def wait_healthy(self, members: Sequence[int] | None = None) -> None:
        """Wait until members (all by default) have a leader and answer reads. Raises RuntimeError with the log's end."""
        deadline = time.monotonic() + START_TIMEOUT_S
        for member in range(len(self._ports)) if members is None else members:
            while not _is_healthy(self._ports[member].metrics):
                if self._processes[member].poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"etcd member {member} is not healthy:\n{self._log_tail(member)}")
                time.sleep(POLL_INTERVAL_S)

    def stop(self) -> None:
        """End every member, also those that hang."""
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def _spawn(self, member: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._log_file(member).open("ab") as log:
            self._processes[member] = subprocess.Popen(
                [find_etcd(), *self._arguments(member)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ.get("PATH", ""), "ETCD_UNSUPPORTED_ARCH": "arm64"},
            )

    def _arguments(self, member: int) -> list[str]:
        ports = self._ports[member]
        peers = ",".join(f"m{i}=http://127.0.0.1:{other.peer}" for i, other in enumerate(self._ports))
        named = {
            "name": f"m{member}",
            "data-dir": str(self._folder / f"member{member}"),
            "listen-client-urls": self.endpoints[member],
            "advertise-client-urls": self.endpoints[member],
            "listen-peer-urls": f"http://127.0.0.1:{ports.peer}",
            "initial-advertise-peer-urls": f"http://127.0.0.1:{ports.peer}",
            "initial-cluster": peers,
            "listen-metrics-urls": f"http://127.0.0.1:{ports.metrics}",
            "log-level": "warn",
        }
        # Without fsync: what is tested is the loss of processes, not of power.
        return [
            *(f"--{name}={value}" for name, value in named.items()),
            "--unsafe-no-fsync",
            *self._tls_flags(),
            *self._flags,
        ]

    def _tls_flags(self) -> list[str]:
        if not self._tls:
            return []
        return [
            "--client-cert-auth",
            f"--trusted-ca-file={self._tls.ca_file}",
            f"--cert-file={self._tls.server_cert_file}",
            f"--key-file={self._tls.server_key_file}",
        ]

    def _log_file(self, member: int) -> Path:
        return self._folder / f"member{member}.log"

    def _log_tail(self, member: int) -> str:
        return "\n".join(self._log_file(member).read_text(errors="replace").splitlines()[-15:])


@contextmanager
def running_etcd(
    folder: Path, num_members: int = 1, *, tls: TlsFiles | None = None, flags: Sequence[str] = ()
) -> Iterator[EtcdCluster]:
    """A healthy cluster for as long as the block runs; nothing of it is left afterwards but files below folder."""
    cluster = EtcdCluster(folder, num_members, tls, flags)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_ports(num_members: int, num_each: int) -> list[list[int]]:
    """Ports that are free now, all different."""
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(num_members * num_each)]
    numbers = [taken.getsockname()[1] for taken in with_ports]
    for taken in with_ports:
        taken.close()
    return [numbers[start : start + num_each] for start in range(0, len(numbers), num_each)]


def _is_healthy(metrics_port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


_COMPACT = Method("/etcdserverpb.KV/Compact", etcd_pb2.CompactionRequest, etcd_pb2.CompactionResponse)
_STATUS = Method("/etcdserverpb.Maintenance/Status", etcd_pb2.StatusRequest, etcd_pb2.StatusResponse)
_USER_ADD = Method("/etcdserverpb.Auth/UserAdd", etcd_pb2.AuthUserAddRequest, etcd_pb2.AuthUserAddResponse)
_USER_GRANT = Method(
    "/etcdserverpb.Auth/UserGrantRole", etcd_pb2.AuthUserGrantRoleRequest, etcd_pb2.AuthUserGrantRoleResponse
)
_ROLE_ADD = Method("/etcdserverpb.Auth/RoleAdd", etcd_pb2.AuthRoleAddRequest, etcd_pb2.AuthRoleAddResponse)
_ROLE_GRANT = Method(
    "/etcdserverpb.Auth/RoleGrantPermission",
    etcd_pb2.AuthRoleGrantPermissionRequest,
    etcd_pb2.AuthRoleGrantPermissionResponse,
)
_AUTH_ENABLE = Method("/etcdserverpb.Auth/AuthEnable", etcd_pb2.AuthEnableRequest, etcd_pb2.AuthEnableResponse)


@asynccontextmanager
async def etcd_client(settings: EtcdSettings) -> AsyncIterator[EtcdClient]:
    """A client of its own, for what the Store does not do."""
    client = EtcdClient(settings)
    try:
        yield client
    finally:
        await client.close()


async def compact(settings: EtcdSettings, revision: Revision) -> None:
    """Forget history up to and including revision."""
    async with etcd_client(settings) as client:
        await client.call(_COMPACT, etcd_pb2.CompactionRequest(revision=revision, physical=True))


async def find_leader(settings: EtcdSettings) -> int:
    """Index of the member that leads; asks each member itself."""
    ids: list[int] = []
    leader = 0
    for endpoint in settings.endpoints:
        async with etcd_client(replace(settings, endpoints=(endpoint,))) as client:
            status = await client.call(_STATUS, etcd_pb2.StatusRequest())
        ids.append(status.header.member_id)
        leader = status.leader
    return ids.index(leader)


async def enable_auth(settings: EtcdSettings, username: str, password: str, prefix: str) -> None:
    """Turn authentication on, with one user who may read and write keys below prefix, and root with the same password."""
    key, range_end = prefix_range(prefix)
    permission = etcd_pb2.Permission(type=etcd_pb2.PERMISSION_TYPE_READWRITE, key=key, range_end=range_end)
    async with etcd_client(settings) as client:
        for user, role in (("root", "root"), (username, f"{username}-role")):
            await client.call(_ROLE_ADD, etcd_pb2.AuthRoleAddRequest(name=role))
            await client.call(_USER_ADD, etcd_pb2.AuthUserAddRequest(name=user, password=password))
            await client.call(_USER_GRANT, etcd_pb2.AuthUserGrantRoleRequest(user=user, role=role))
        grant = etcd_pb2.AuthRoleGrantPermissionRequest(name=f"{username}-role", permission=permission)
        await client.call(_ROLE_GRANT, grant)
        await client.call(_AUTH_ENABLE, etcd_pb2.AuthEnableRequest())
