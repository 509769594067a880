"""The example of docs/openai.md runs as it stands."""

import asyncio
import sys
from pathlib import Path

from support.head import MODEL
from support.scripts_openai import answer_any, run_rig

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "openai_tools.py"


async def test_example_prints_a_place_and_the_weather(tmp_path: Path) -> None:
    async with run_rig(tmp_path, answer_any) as rig:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(EXAMPLE), f"{rig.gateway.url}/v1", MODEL),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, errors.decode()
    assert output.decode().splitlines() == ["city='Oslo' country='Oslo'", "It says: 4 degrees"]
