"""The machine of a run: what is said about it, how fast one thread reads its memory, and a foreign process that keeps a core busy."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.system import allowed_cores, child_environment, pick_cores

_NAMED_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
)
_SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"


def read_cpu(key: str) -> str:
    """The first processor's entry in /proc/cpuinfo, empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), "")


def cpu_flags() -> frozenset[str]:
    return frozenset(read_cpu("flags").split())


def describe_machine() -> str:
    """CPU, instruction sets, cores and versions, in a line of Markdown."""
    flags = cpu_flags()
    name = read_cpu("model name") or platform.processor() or platform.machine()
    sets = " ".join(flag for flag in _NAMED_FLAGS if flag in flags)
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("mlx", "mlx-lm"))
    return (
        f"{name} ({platform.system()} {platform.machine()}{f'; {sets}' if sets else ''}), "
        f"{len(allowed_cores())} cores of {os.cpu_count()} usable, {versions}."
    )


def measure_bandwidth() -> float:
    """GB/s at which one pinned thread reads memory; see bandwidth_process.py."""
    command = [sys.executable, "-m", "bench.bandwidth_process", str(pick_cores(1)[0])]
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True, env=child_environment())
    return float(done.stdout)


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that has nothing to do with ours keeps the last core busy meanwhile."""
    command = [sys.executable, "-c", _SPIN, str(pick_cores(1)[0])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()
