"""A real gateway process in front of a scripted head, ready for clients of any protocol."""

import asyncio
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
