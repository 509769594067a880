"""What a real runner computes with: kernels where they are there, stock MLX where they are not or are turned off."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from paceline.stage.v1 import stage_pb2
from paceline_services.codec import from_proto, to_proto
from paceline_services.domain.runners import Precision, RunnerReport, RunnerState, ShardAssignment
from paceline_services.ids import Epoch, InstanceId, ModelId
from support.models import make_tiny_model

TIMEOUT_S = 60.0


async def load_shard(home: Path, precision: Precision, **environment: str) -> list[dict[str, Any]]:
    """The log of a runner that gets a whole tiny model READY and is then left by its agent."""
    config = make_tiny_model("llama", home / "model")
    shard = ShardAssignment(
        *(InstanceId("tiny"), Epoch(1), ModelId("tiny"), 0, 1, 0, int(config["num_hidden_layers"]), 64),
        model_path=str(home / "model"),
        precision=precision,
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "paceline_worker.runner"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PACELINE_HOME": str(home), "PACELINE_LOG_FORMAT": "json", **environment},
    )
    assert process.stdin and process.stdout
    command = stage_pb2.RunnerCommand(start=to_proto(shard, stage_pb2.ShardAssignment))
    process.stdin.write(json_format.MessageToJson(command, indent=None).encode() + b"\n")
    async with asyncio.timeout(TIMEOUT_S):
        while line := await process.stdout.readline():
            report = from_proto(json_format.Parse(line, stage_pb2.RunnerReport()), RunnerReport)
            if report.state is RunnerState.READY:
                break
        process.stdin.close()
        _, log = await process.communicate()
    assert process.returncode == 0, log.decode()
    return [json.loads(one) for one in log.decode().splitlines() if one.startswith("{")]


def kernel_lines(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in log if line["event"].startswith("kernels_")]


@pytest.mark.parametrize("precision", Precision)
async def test_runner_says_once_what_it_computes_with(precision: Precision, tmp_path: Path) -> None:
    (line,) = kernel_lines(await load_shard(tmp_path, precision, PACELINE_KERNELS="auto", PACELINE_NUM_THREADS="1"))
    assert line["wanted"] == precision
    if line["event"] == "kernels_in_use":
        assert (line["precision"], line["num_threads"]) == (precision, 1)
        assert line["instruction_set"]
    else:
        assert line["precision"] == "exact"
        assert line["reason"]


async def test_kernels_that_are_turned_off_leave_a_fast_shard_exact(tmp_path: Path) -> None:
    (line,) = kernel_lines(await load_shard(tmp_path, Precision.FAST, PACELINE_KERNELS="off"))
    told = {"event": "kernels_absent", "precision": "exact", "wanted": "fast"}
    assert told.items() <= line.items()
    assert line["reason"] == "turned off by the setting kernels"
