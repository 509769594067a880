"""A real gateway process in front of a scripted head, ready for clients of any protocol; and transcripts of what it sends."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from support.head import (
    MODEL,
    START_TIMEOUT_S,
    GatewayProcess,
    ScriptedControlPlane,
    ScriptedHead,
    make_instance,
    run_gateway,
)

PAUSE_S = 0.02
RECORDING = "PACELINE_RECORD_GOLDEN"
"""Set in the environment, transcripts are written rather than compared."""
GOLDEN = Path(__file__).parent.parent / "golden"
_CHANGING = (
    (re.compile(r"msg_[0-9a-f]{24}"), "msg_ID"),
    (re.compile(r"req-[0-9a-f]{16}"), "req-ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"), "TIME"),
    (re.compile(r'"((?:total|load|prompt_eval|eval)_duration)":\d+'), r'"\1":NS'),
)


@dataclass(frozen=True, slots=True)
class Rig:
    head: ScriptedHead
    control_plane: ScriptedControlPlane
    gateway: GatewayProcess
    http: httpx.AsyncClient


@asynccontextmanager
async def run_rig(home: Path, settings: dict[str, str] | None = None) -> AsyncIterator[Rig]:
    """A gateway with the scripted head's model, and another known one without instance."""
    head, control_plane = ScriptedHead(), ScriptedControlPlane()
    async with head.serve(), control_plane.serve():
        await control_plane.show(make_instance("demo-1", head.address), models=("org/name", MODEL))
        async with (
            run_gateway(control_plane.address, home, settings) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
        ):
            await _wait_until_fed(http)
            yield Rig(head, control_plane, gateway, http)


async def _wait_until_fed(http: httpx.AsyncClient) -> None:
    """Return once the gateway has heard of the cluster, which it tells by no event."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while (await http.get("/models")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(PAUSE_S)


def check_golden(name: str, body: str) -> None:
    """The body is the recorded one, byte for byte, but for ids and times."""
    for pattern, word in _CHANGING:
        body = pattern.sub(word, body)
    path = GOLDEN / name
    if os.environ.get(RECORDING):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
    assert body == path.read_text(), f"{name} changed; record it anew with {RECORDING}=1 where that is meant"
