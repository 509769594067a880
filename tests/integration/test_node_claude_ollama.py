"""The official JavaScript clients of Claude and Ollama, and Vercel's AI SDK, between a real gateway and a scripted head."""

import asyncio
import json
from pathlib import Path

import pytest

from support.gateway_rig import run_rig
from support.head import MODEL, NUM_PROMPT_TOKENS
from support.node_clients import install_packages
from support.scripts_claude import call_weather_until_told

SCRIPTS = Path(__file__).parents[1] / "support" / "node_claude_ollama"


@pytest.mark.timeout(600)
async def test_javascript_clients_understand_every_answer(tmp_path: Path) -> None:
    folder = await asyncio.to_thread(install_packages, SCRIPTS)
    async with run_rig(tmp_path) as rig:
        rig.head.answer = call_weather_until_told
        process = await asyncio.create_subprocess_exec(
            *("node", "ask.mjs", rig.gateway.url, MODEL),
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
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
