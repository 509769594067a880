"""What the tables for people show."""

from typing import Any

import pytest

from paceline_cli.views import instance_rows, node_rows

NODE: dict[str, Any] = {
    "node_id": "node-a",
    "state": "up",
    "available_memory_bytes": 1 << 30,
    "total_memory_bytes": 2 << 30,
    "num_cores": 4,
    "accelerator": "cpu",
    "chip": "Chip",
    "os_version": "System",
}
INSTANCE: dict[str, Any] = {
    "instance_id": "demo",
    "model_id": "demo-model",
    "state": "ACTIVE",
    "precision": "fast",
    "epoch": 7,
    "shards": [{"node_id": "node-a", "start_layer": 0, "end_layer": 30}],
    "message": "",
}


@pytest.mark.parametrize(("instruction_set", "shown"), [("avx512-vnni", "avx512-vnni"), ("", "-")])
def test_a_node_shows_its_kernels_in_short(instruction_set: str, shown: str) -> None:
    kernels = {"instruction_set": instruction_set, "num_threads": 2, "absent_reason": "a long reason", "blas": ""}
    (row,) = node_rows({"nodes": [NODE | {"kernels": kernels}]})
    assert row == ("node-a", "up", "1.0 GiB of 2.0 GiB", 4, "cpu", shown, "Chip", "System")


def test_an_instance_shows_its_precision() -> None:
    (row,) = instance_rows({"instances": [INSTANCE]})
    assert row == ("demo", "demo-model", "ACTIVE", "fast", 7, "node-a[0,30)", "")
