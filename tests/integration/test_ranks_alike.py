"""Ranks that do not compute alike are refused on every one of them, before anything is loaded. Real processes, a real ring."""

from pathlib import Path

import mlx.core as mx
import pytest

from paceline_kernels import KernelReport
from paceline_services.domain.runners import Precision
from paceline_services.errors import ConfigurationError
from paceline_worker.runner.alike import check_alike, describe_computing
from support.ranks import run_ranks

WITH_KERNELS = KernelReport(in_use=True, instruction_set="avx2")
WITHOUT = KernelReport(in_use=False, reason="turned off")


def compare(group: mx.distributed.Group, folder: str, *parts: str) -> None:
    """What a rank finds: each has its own facts."""
    own = parts[group.rank()]
    try:
        check_alike(group, own)
        found = "alike"
    except ConfigurationError as error:
        found = error.message
    (Path(folder) / f"found-{group.rank()}").write_text(found)


@pytest.mark.parametrize("kinds", [(WITH_KERNELS, WITH_KERNELS), (WITH_KERNELS, WITHOUT)], ids=["alike", "different"])
def test_ranks_that_compute_differently_are_refused_on_all_of_them(
    kinds: tuple[KernelReport, ...], tmp_path: Path
) -> None:
    facts = [describe_computing(kind, Precision.EXACT) for kind in kinds]
    run_ranks(2, tmp_path, "integration.test_ranks_alike", "compare", tmp_path, *facts)
    found = [(tmp_path / f"found-{rank}").read_text() for rank in range(2)]
    assert found[0] == found[1]
    if facts[0] == facts[1]:
        assert found[0] == "alike"
    else:
        assert "rank 0 with the CPU, kernels (exact), paceline-worker" in found[0]
        assert "rank 1 with the CPU, no kernels, paceline-worker" in found[0]
