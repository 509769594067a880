"""The backends of a gateway: their settings, keys, health, and the connections to them."""

import os
import secrets
from collections.abc import Mapping

import httpx
from prometheus_client import CollectorRegistry, Counter
from pydantic import SecretStr
from starlette.types import Send

from paceline_api_gateway.federation.choice import BackendState, ClusterModels, choose_backend, list_models
from paceline_api_gateway.federation.forward import HOPS_HEADER, Forwarder, Passage
from paceline_api_gateway.federation.health import HealthWatch
from paceline_api_gateway.federation.settings import BackendSettings
from paceline_services.errors import ConfigurationError

HEALTH_TIMEOUT_S = 3.0
_IDLE_CONNECTION_S = 2.0
"""Shorter than servers keep idle connections, so that none is used that the other side just closes."""


class Federation:
    """The servers that answer beside the cluster; none, mostly."""

    def __init__(
        self,
        backends: tuple[BackendSettings, ...] = (),
        *,
        registry: CollectorRegistry | None = None,
        health_interval_s: float = 10.0,
        max_connections: int | None = None,
    ) -> None:
        """Reads the keys from the environment. Raises ConfigurationError where one is missing."""
        self.backends = backends
        self.gateway_id = secrets.token_hex(6)
        self._keys = {one.name: _read_key(one) for one in backends}
        limits = httpx.Limits(max_connections=max_connections, keepalive_expiry=_IDLE_CONNECTION_S)
        self._client = httpx.AsyncClient(limits=limits, trust_env=False, follow_redirects=False)
        requests = Counter(
            "paceline_api_gateway_backend_requests",
            "Requests passed to a backend, by its status; none: it did not answer.",
            ("backend", "status"),
            registry=registry,
        )
        self._forwarder = Forwarder(self._client, requests)
        headers = {one: self._write_credentials(one) | {HOPS_HEADER: self.gateway_id} for one in backends}
        self._health = HealthWatch(self._client, headers, health_interval_s)

    def start(self) -> None:
        """Look after the backends from now on."""
        self._health.start(HEALTH_TIMEOUT_S)

    async def close(self) -> None:
        await self._health.close()
        await self._client.aclose()

    def state(self, backend: BackendSettings) -> BackendState:
        return self._health.state(backend.name)

    def choose(self, model_id: str, cluster: ClusterModels) -> BackendSettings | None:
        """The backend that answers for a model; None: the cluster does."""
        return choose_backend(model_id, cluster, [(one, self.state(one)) for one in self.backends])

    def list_models(self, cluster: ClusterModels) -> Mapping[str, str]:
        """Model ids that a backend answers for, with its name."""
        names = [name for one in self.backends for name in list_models(one, self.state(one))]
        chosen = {name: self.choose(name, cluster) for name in dict.fromkeys(names)}
        return {name: backend.name for name, backend in chosen.items() if backend is not None}

    async def forward(self, passage: Passage, backend: BackendSettings, send: Send) -> None:
        """Have a backend answer. Raises as Forwarder.forward does."""
        await self._forwarder.forward(passage, backend, self._write_credentials(backend), send)

    def _write_credentials(self, backend: BackendSettings) -> dict[str, str]:
        key = self._keys[backend.name]
        if key is None:
            return {}
        text = key.get_secret_value()
        return {"authorization": f"Bearer {text}", "x-api-key": text}


def _read_key(backend: BackendSettings) -> SecretStr | None:
    if not backend.api_key_env:
        return None
    if not (text := os.environ.get(backend.api_key_env, "").strip()):
        raise ConfigurationError(
            f"the backend {backend.name!r} wants its API key from the environment variable {backend.api_key_env}: it is not set"
        )
    return SecretStr(text)
