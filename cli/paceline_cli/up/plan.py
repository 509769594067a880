"""Which processes make a cluster, and their command lines. Pure."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline_cli.settings import UpSettings

RESERVE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child process. ready_word: how the line on its standard output begins that says it serves; empty when it prints none."""

    name: str
    command: tuple[str, ...]
    ready_word: str = "listening"


@dataclass(frozen=True, slots=True)
class EtcdPorts:
    client: int
    peer: int


def etcd_child(binary: str, data: Path, ports: EtcdPorts) -> ChildSpec:
    client, peer = f"http://127.0.0.1:{ports.client}", f"http://127.0.0.1:{ports.peer}"
    command = (
        *(binary, "--name", "paceline", "--data-dir", str(data)),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"paceline={peer}"),
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"),
        *("--log-level", "warn", "--logger", "zap"),
    )
    return ChildSpec("etcd", command, ready_word="")


def control_plane_child(index: int, settings: UpSettings, etcd: str, port: int) -> ChildSpec:
    name = f"control-plane-{index + 1}"
    words = ("--listen", f"127.0.0.1:{port}", "--etcd", etcd, "--replica-id", name)
    return ChildSpec(name, (*_module("paceline_control_plane"), *words, *_shared(settings)))


def worker_child(index: int, settings: UpSettings, control_planes: Sequence[str], memory_bytes: int) -> ChildSpec:
    name = f"worker-{index + 1}"
    metrics_port = settings.metrics_port + index if settings.metrics_port else 0
    words = (
        *("--node-id", name, "--join", ",".join(control_planes)),
        *("--memory-limit-bytes", str(memory_bytes), "--metrics-port", str(metrics_port)),
    )
    return ChildSpec(name, (*_module("paceline_worker.agent"), *words, *_shared(settings)), ready_word="joined")


def gateway_child(settings: UpSettings, address: str, control_planes: Sequence[str]) -> ChildSpec:
    words = ("--listen", address, "--control-plane", ",".join(control_planes))
    return ChildSpec("gateway", (*_module("paceline_api_gateway"), *words, *_shared(settings)))


def share_memory(available_bytes: int, workers: int, wanted_bytes: int | None) -> int:
    """Memory in bytes for each of the workers on this machine: as wanted, else an equal part of what is available less a reserve."""
    if wanted_bytes is not None:
        return wanted_bytes
    return max(1 << 28, (available_bytes - RESERVE_BYTES) // max(1, workers))


def make_url(address: str) -> str:
    """The URL at which this machine reaches a listener, also one on every address."""
    host, _, port = address.rpartition(":")
    return f"http://{'127.0.0.1' if host in {'0.0.0.0', '::', '[::]'} else host}:{port}"


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)


def _shared(settings: UpSettings) -> tuple[str, ...]:
    return ("--home", str(settings.home), "--namespace", settings.namespace)
