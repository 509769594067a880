"""npm's clients against the Responses API of a real gateway: OpenAI's own, and the AI SDK, which uses it by default."""

import asyncio
import json
from pathlib import Path

import pytest

from support.head import MODEL, ScriptedControlPlane, ScriptedHead, make_instance, run_gateway
from support.node_clients import install_packages
from support.scripts_responses import answer_any

SCRIPTS = Path(__file__).parents[1] / "support" / "node_responses"


@pytest.mark.timeout(600)
async def test_clients_of_npm_work_as_they_are(tmp_path: Path) -> None:
    folder = await asyncio.to_thread(install_packages, SCRIPTS)
    head, control_plane = ScriptedHead(answer_any), ScriptedControlPlane()
    async with head.serve(), control_plane.serve():
        await control_plane.show(make_instance("demo-1", head.address))
        async with run_gateway(control_plane.address, tmp_path) as gateway:
            process = await asyncio.create_subprocess_exec(
                *("node", "ask.mjs", f"{gateway.url}/v1", MODEL),
                cwd=folder,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            output, errors = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode == 0, errors.decode()
    told = json.loads(output)
    assert told["openai"] == {
        "text": "Hello user",
        "streamed": "Hello user",
        "thoughts": 2,
        "items": ["message"],
        "error": {"name": "NotFoundError", "status": 404},
    }
    for name in ("stored", "unstored"):
        assert told[name] == {
            "answer": "Hello tool",
            "numSteps": 2,
            "warnings": [],
            "streamed": "Hello tool",
            "thought": "Let me think.",
            "errors": [],
            "isBreakNoticed": True,
            "object": {"km": 3, "town": "Ivrea"},
        }, name
