"""What a node computes with: how many processors, how many threads, and whether Paceline's CPU kernels may be used.

The agent tells the cluster, the runner uses it; both read the same settings, so that what is told is what is used.
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from paceline_services.settings import ServiceSettings

MAX_THREADS = 1024
_CGROUP = Path("/sys/fs/cgroup")


class ProcessorSettings(ServiceSettings):
    """Settings that agent and runner share."""

    num_threads: int = Field(
        0, ge=0, le=MAX_THREADS, description="Threads that compute; 0 = the processors the process may use."
    )
    kernels: Literal["auto", "off"] = Field(
        "auto", description="auto computes with Paceline's CPU kernels where they are there; off with stock MLX."
    )

    def count_threads(self) -> int:
        """Threads that compute here: as set, else one for each processor that this process may use."""
        return self.num_threads or count_cores()


def count_cores() -> int:
    """Processors that this process may use: affinity and cgroup quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    version_1 = " ".join(_read_text(_CGROUP / f"cpu/cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    quota = parse_cpu_quota(_read_text(_CGROUP / "cpu.max") or version_1)
    return max(1, min(cores, quota or cores))


def parse_cpu_quota(text: str) -> int | None:
    """Whole processors that "quota period" allows (cgroup v2's cpu.max; v1's two files joined); None for no limit."""
    match text.split():
        case [quota, period] if quota.isdigit() and int(period) > 0:
            return max(1, int(quota) // int(period))
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
