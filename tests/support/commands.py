"""The `paceline` command as a process."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL


async def run_cli(url: str, *words: str) -> tuple[str, str]:
    """What the `paceline` command prints on standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "paceline_cli", *words, "--url", url),
        stdin=DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200"},
    )
    async with asyncio.timeout(30):
        printed, told = await process.communicate()
    assert process.returncode == 0, told.decode()
    return printed.decode(), told.decode()
