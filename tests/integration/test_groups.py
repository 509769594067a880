"""Real groups of real processes, over MLX's ring."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

TESTS = Path(__file__).parents[1]
JOIN_LIMIT_S = 60.0


@asynccontextmanager
async def start_members(size: int, folder: Path) -> AsyncIterator[list[Process]]:
    """Processes that have told their addresses to each other; killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    members = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "support.group_member", str(rank), str(size), str(folder)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=environment,
        )
        for rank in range(size)
    ]
    try:
        addresses = [await read_line(member) for member in members]
        await tell(members, addresses)
        yield members
    finally:
        for member in members:
            if member.returncode is None:
                member.kill()
            await member.communicate()


async def read_line(member: Process) -> str:
    assert member.stdout is not None
    async with asyncio.timeout(JOIN_LIMIT_S):
        return (await member.stdout.readline()).decode().strip()


async def tell(members: Sequence[Process], value: object) -> None:
    for member in members:
        assert member.stdin is not None
        member.stdin.write(json.dumps(value).encode() + b"\n")
        await member.stdin.drain()


async def test_members_of_a_ring_compute_together(tmp_path: Path) -> None:
    async with start_members(2, tmp_path) as members:
        assert [await read_line(member) for member in members] == ["0 of 2", "1 of 2"]
        for rank, member in enumerate(members):
            await tell([member], [1.0 + rank, 10.0])
        assert [await read_line(member) for member in members] == ["[3.0, 20.0]"] * 2
        assert not list(tmp_path.iterdir())


async def test_killed_member_is_an_error_on_the_other_one(tmp_path: Path) -> None:
    async with start_members(2, tmp_path) as members:
        assert [await read_line(member) for member in members] == ["0 of 2", "1 of 2"]
        members[1].kill()
        await members[1].wait()
        await tell(members[:1], [1.0])
        async with asyncio.timeout(JOIN_LIMIT_S):
            _, errors = await members[0].communicate()
        assert b"connection to a peer was lost" in errors
