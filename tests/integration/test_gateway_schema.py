"""A real gateway against its own OpenAPI document: requests made of it, good and bad, find no defect and no answer that it hides."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from support.head import ScriptedControlPlane, ScriptedHead, make_instance, run_gateway

LIMIT_S = 280.0
"""The run itself takes half a minute; a busy machine needs as long again to begin it."""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance"
# Each bounds the run: few requests for each route, of each phase that needs no sequence of calls, within a time.
EFFORT = (
    "--phases",
    "examples,coverage,fuzzing",
    "--max-examples",
    "10",
    "--max-time",
    "30",
    "--generation-deterministic",
)
# A pull waits for a model to come, which takes as long as it takes; the others are always answered with 501, which is no defect.
LEFT_OUT = ("--exclude-path-regex", r"/(pull|copy|create|push|embed|embeddings|blobs/.*)$")
QUIET = ("--no-color", "--warnings", "off", "--request-timeout", "20")


@pytest.mark.timeout(LIMIT_S + 15)
async def test_document_and_gateway_agree(tmp_path: Path) -> None:
    async with ScriptedHead().serve() as head, ScriptedControlPlane().serve() as control_plane:
        await control_plane.show(make_instance("demo-1", head.address))
        # Models that do not exist here are not waited for.
        settings = {"PLACE_ON_DEMAND": "false", "PLACEMENT_WAIT_S": "1", "RECOVERY_WAIT_S": "0"}
        async with run_gateway(control_plane.address, tmp_path, settings) as gateway:
            command = (
                sys.executable,
                "-m",
                "schemathesis.cli",
                "run",
                f"{gateway.url}/openapi.json",
                "--checks",
                CHECKS,
            )
            result = await asyncio.to_thread(run_bounded, [*command, *EFFORT, *LEFT_OUT, *QUIET], tmp_path)
            assert result.returncode == 0, result.stdout
            assert "Traceback" not in gateway.read_log()


def run_bounded(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A finished process; one that takes too long is killed and fails the test."""
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=LIMIT_S)
