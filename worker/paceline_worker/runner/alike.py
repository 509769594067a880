"""Whether the members of a group compute alike. Those that do not would add up parts that do not belong together, without an error.

With the CPU kernels the first rank's part holds the residual, for one; without them every rank adds it. Types and the order of collectives
differ by device and by version.
"""

from importlib.metadata import version

import mlx.core as mx
import numpy as np

from paceline_kernels import KernelReport
from paceline_services.domain.runners import Precision
from paceline_services.errors import ConfigurationError

FACT_BYTES = 512


def describe_computing(report: KernelReport, wanted: Precision) -> str:
    """What must be the same on every member."""
    device = "the CPU" if mx.default_device() == mx.cpu else "a GPU"
    kernels = f"kernels ({wanted})" if report.in_use else "no kernels"
    versions = ", ".join(f"{name} {version(name)}" for name in ("paceline-worker", "mlx", "mlx-lm"))
    return f"{device}, {kernels}, {versions}"


def check_alike(group: mx.distributed.Group, facts: str) -> None:
    """Compare what the members say of themselves. Called by all of them, on their compute threads; raises ConfigurationError on all."""
    own = np.frombuffer(facts.encode()[:FACT_BYTES].ljust(FACT_BYTES, b"\0"), np.uint8)
    rows = np.array(mx.distributed.all_gather(mx.array(own)[None], group=group))
    told = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]
    if len(set(told)) > 1:
        differing = "; ".join(f"rank {rank} with {text}" for rank, text in enumerate(told))
        raise ConfigurationError(
            f"the ranks of a stage must compute alike, and these do not: {differing}. Place it on nodes of one kind and version, or turn "
            "the kernels off on all of them (PACELINE_KERNELS=off)"
        )
