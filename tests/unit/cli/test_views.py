"""What the tables for people show."""

from typing import Any

import pytest

from paceline_cli.views import INSTANCE_COLUMNS, describe_difference, instance_rows, load_cells, node_rows

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
    "kv_bits": 0,
    "draft": "",
    "load": None,
    "epoch": 7,
    "strategy": "pipeline",
    "tensor_size": 0,
    "group_backend": "",
    "shards": [{"node_id": "node-a", "stage": 0, "rank": 0, "start_layer": 0, "end_layer": 30}],
    "message": "",
}


@pytest.mark.parametrize(("instruction_set", "shown"), [("avx512-vnni", "avx512-vnni"), ("", "-")])
def test_a_node_shows_its_kernels_in_short(instruction_set: str, shown: str) -> None:
    kernels = {"instruction_set": instruction_set, "num_threads": 2, "absent_reason": "a long reason", "blas": ""}
    (row,) = node_rows({"nodes": [NODE | {"kernels": kernels}]})
    assert row == ("node-a", "UP", "1.0 GiB of 2.0 GiB", 4, "cpu", shown, "Chip", "System")


def test_an_instance_shows_how_it_computes() -> None:
    (row,) = instance_rows({"instances": [INSTANCE]})
    assert row == (
        "demo",
        "demo-model",
        "ACTIVE",
        "pipeline",
        *("fast", "-", "-", 7, "node-a[0,30)", "-", "-", "-", "-", ""),
    )
    (row,) = instance_rows({"instances": [INSTANCE | {"kv_bits": 8, "draft": "small"}]})
    assert row[5:7] == (8, "small")
    assert len(row) == len(INSTANCE_COLUMNS)


def test_an_instance_shows_its_ranks_and_what_they_compute_together_with() -> None:
    shards = [
        {"node_id": node, "stage": stage, "rank": rank, "start_layer": 15 * stage, "end_layer": 15 * (stage + 1)}
        for node, stage, rank in (("a", 0, 0), ("b", 0, 1), ("c", 1, 0), ("d", 1, 1))
    ]
    hybrid = INSTANCE | {"strategy": "hybrid", "group_backend": "ring", "shards": shards}
    (row,) = instance_rows({"instances": [hybrid]})
    assert row[3] == "hybrid 2 (ring)"
    assert row[8] == "a+b[0,15) c+d[15,30)"


def test_an_instance_shows_how_busy_it_is() -> None:
    load = {"num_running": 3, "num_waiting": 2, "kv_running_tokens": 500, "kv_kept_tokens": 100}
    load |= {"kv_capacity_tokens": 65536, "idle_ratios": [0.124, None]}
    assert load_cells(load) == (3, 2, "600 of 65536", "12% -")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        ({"precision": "exact"}, "precision exact"),
        ({"kv_bits": 8, "draft": "small"}, "KV bits 8, draft small"),
        ({"strategy": "tensor"}, "strategy tensor"),
    ],
)
def test_an_instance_that_is_not_as_wanted_says_how(changed: dict[str, Any], told: str) -> None:
    assert describe_difference(INSTANCE | changed, INSTANCE) == told
    assert describe_difference(INSTANCE, INSTANCE | {"draft": "small"}) == "draft none"


def test_a_tensor_size_that_is_left_open_differs_from_none() -> None:
    two = INSTANCE | {"strategy": "tensor", "tensor_size": 2}
    assert describe_difference(two, two | {"tensor_size": 0}) == ""
    assert describe_difference(two, two | {"tensor_size": 4}) == "tensor size 2"
    assert describe_difference(two | {"tensor_size": 0}, two) == "tensor size as large as possible"
