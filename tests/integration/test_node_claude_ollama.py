"""The official JavaScript clients of Claude and Ollama, and Vercel's AI SDK, between a real gateway and a scripted head."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.gateway_rig import run_rig
from support.head import MODEL, NUM_PROMPT_TOKENS
from support.scripts_claude import call_weather_until_told

SCRIPT = Path(__file__).parent.parent / "support" / "node" / "claude_ollama_clients.mjs"
PACKAGES = ("@anthropic-ai/sdk@1", "@ai-sdk/anthropic@3", "ai@6", "ollama@0.6", "zod@4")
INSTALL_TIMEOUT_S = 120


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages; the test is skipped where they cannot be had."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not on this machine")
    folder = Path(os.environ.get("PACELINE_TEST_NODE_FOLDER") or tmp_path_factory.mktemp("node"))
    if not (folder / "node_modules").is_dir():
        command = ["npm", "install", "--prefer-offline", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("npm did not install the clients in time")
        if done.returncode:
            pytest.skip(f"npm cannot install the clients: {done.stderr.strip().splitlines()[-1:]}")
    return folder


async def test_javascript_clients_understand_every_answer(node_folder: Path, tmp_path: Path) -> None:
    script = node_folder / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    async with run_rig(tmp_path) as rig:
        rig.head.answer = call_weather_until_told
        process = await asyncio.create_subprocess_exec(
            "node", str(script), rig.gateway.url, MODEL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, errors.decode()
    seen = json.loads(output.splitlines()[-1])
    assert seen.pop("claude_error") == ["NotFoundError", True]
    assert seen.pop("ollama_error").startswith("model 'nope' not found")
    assert seen == {
        "claude_call": [{"city": "Oslo"}],
        "claude_stop": "end_turn",
        "claude_text": "It is rainy",
        "claude_count": NUM_PROMPT_TOKENS,
        "claude_models": [MODEL, "org/name"],
        "vercel_text": "It is sunny",
        "vercel_reason": "stop",
        "vercel_stream": "It is sunny",
        "vercel_usage": True,
        "ollama_call": [{"city": "Oslo"}],
        "ollama_text": "It is windy",
        "ollama_models": ["demo:latest", "org/name:latest"],
        "ollama_running": 1,
        "ollama_shown": True,
        "ollama_pulled": "success",
    }
