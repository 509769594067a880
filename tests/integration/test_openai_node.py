"""npm's clients against a real gateway: OpenAI's own, and the AI SDK with both of its providers."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from support.head import MODEL
from support.node_clients import install_packages
from support.scripts_openai import answer_any, run_rig

SCRIPTS = Path(__file__).parents[1] / "support" / "node_openai"


async def ask(url: str, folder: Path) -> Any:
    process = await asyncio.create_subprocess_exec(
        *("node", "ask.mjs", f"{url}/v1", MODEL),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


@pytest.mark.timeout(600)
async def test_clients_of_npm_work_as_they_are(tmp_path: Path) -> None:
    folder = await asyncio.to_thread(install_packages, SCRIPTS)
    async with run_rig(tmp_path, answer_any) as rig:
        told = await ask(rig.gateway.url, folder)
    assert told["openai"] == {
        "text": "Hello there",
        "call": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
        "content": None,
        "answer": "It says: Oslo: 4 degrees",
        "completions": [" b0.", " c0."],
        "error": {"name": "NotFoundError", "status": 404, "code": "model_not_found", "hasId": True},
    }
    for client in ("ai", "compatible"):
        completion = told[client].pop("completion")
        assert completion.endswith("0."), client
        assert told[client] == {
            "text": "Hello there",
            "warnings": [],
            "tokens": 9,
            "answer": "It says: Oslo: 4 degrees",
            "numSteps": 2,
            "streamed": "It says: Oslo: 4 degrees",
            "numErrors": 0,
            "numTexts": 1,
            "object": {"city": "Oslo", "size": 1.5},
            "streamedObject": {"city": "Oslo", "size": 1.5},
            "reason": "stop",
        }, client
