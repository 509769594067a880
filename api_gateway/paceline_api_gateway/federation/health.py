"""Looks at every backend again and again, in the background: no request waits for it."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import orjson

from paceline_api_gateway.federation.choice import BackendState, Health
from paceline_api_gateway.federation.settings import BackendSettings
from paceline_services.logs import get_logger


class HealthWatch:
    """Knows the state of each backend, by its name."""

    def __init__(
        self, client: httpx.AsyncClient, backends: Mapping[BackendSettings, Mapping[str, str]], interval_s: float
    ) -> None:
        """backends: with the headers that each is sent."""
        self._client = client
        self._backends = backends
        self._interval_s = interval_s
        self._states = {backend.name: BackendState() for backend in backends}
        self._tasks: list[asyncio.Task[None]] = []

    def state(self, name: str) -> BackendState:
        return self._states[name]

    def start(self, timeout_s: float) -> None:
        """Look now, and from then on. timeout_s: for one look."""
        for backend, headers in self._backends.items():
            self._tasks.append(asyncio.create_task(self._watch(backend, headers, timeout_s)))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _watch(self, backend: BackendSettings, headers: Mapping[str, str], timeout_s: float) -> None:
        is_first = True
        while True:
            before = self._states[backend.name]
            state = await self._look(backend, headers, timeout_s)
            if not state.models:
                state = replace(state, models=before.models)
            self._states[backend.name] = state
            if is_first or before.health is not state.health:
                get_logger().info(
                    "backend_seen", backend=backend.name, health=state.health.value, message=state.message
                )
            is_first = False
            await asyncio.sleep(self._interval_s)

    async def _look(self, backend: BackendSettings, headers: Mapping[str, str], timeout_s: float) -> BackendState:
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._client.get(f"{backend.url}/v1/models", headers=headers, timeout=timeout_s)
        except TimeoutError:
            return BackendState(Health.UNREACHABLE, f"no answer within {timeout_s:g} s")
        except httpx.HTTPError as error:
            return BackendState(Health.UNREACHABLE, f"{type(error).__name__}: {error}"[:200])
        return read_state(response.status_code, response.content)


def read_state(status: int, body: bytes) -> BackendState:
    """What an answer to GET /v1/models says of a backend. Pure."""
    if status != httpx.codes.OK:
        return BackendState(Health.UNHEALTHY, f"GET /v1/models answered {status}")
    try:
        models = _read_models(orjson.loads(body))
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return BackendState(Health.UNHEALTHY, "GET /v1/models did not answer a list of models")
    return BackendState(Health.HEALTHY, "", models)


def _read_models(body: Any) -> tuple[str, ...]:
    data: Sequence[Any] = body["data"] or ()  # Ollama says null for none
    return tuple(str(model["id"]) for model in data)
