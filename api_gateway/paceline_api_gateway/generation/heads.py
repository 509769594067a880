"""Connections to heads and to the stages that lead to them, one for each address, kept while an instance or a request needs it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from paceline_api_gateway.routing.paths import Path, PathMemory
from paceline_services.clients import GenerationClient
from paceline_services.domain.generation import GenerateRequest, GenerationEvent
from paceline_services.domain.instances import Instance
from paceline_services.errors import PacelineError, UnavailableError

_GONE = UnavailableError.default_reason
"""Of what gRPC says itself, when nobody is at an address or the connection is lost."""
SAYS_NOTHING_OF_THE_REQUEST = frozenset({_GONE, "INSTANCE_BROKEN", "DRAINING", "MODEL_NOT_FOUND"})


@dataclass(slots=True)
class _Connection:
    client: GenerationClient
    num_users: int = 0


@dataclass(frozen=True, slots=True)
class HeadClient:
    """Calls over one path; see GenerationClient."""

    path: Path
    client: GenerationClient

    def generate(self, request: GenerateRequest, timeout_s: float) -> AsyncGenerator[GenerationEvent, None]:
        return self.client.generate(request, timeout_s, self.path.addressee)

    async def count_tokens(self, request: GenerateRequest, timeout_s: float) -> int:
        return await self.client.count_tokens(request, timeout_s, self.path.addressee)


class HeadConnections:
    """Opened on first use, closed when the address is gone from the cluster and its last request has ended."""

    def __init__(self) -> None:
        self._connections: dict[str, _Connection] = {}
        self._paths = PathMemory()

    def choose_path(self, instance: Instance) -> Path:
        """The way to take to an ACTIVE instance's head now."""
        return self._paths.choose(instance, _now())

    def note_reached(self, path: Path) -> None:
        """The head answered on this path."""
        self._paths.note_reached(path)

    def note_error(self, instance: Instance, path: Path, error: PacelineError) -> bool:
        """A request failed on this path: whether the head may be reached on another one."""
        if error.reason == _GONE:
            self._paths.note_failed(path, _now())
            return self._paths.has_way(instance, _now())
        if path.is_relayed and error.reason in SAYS_NOTHING_OF_THE_REQUEST:
            self._paths.note_refused(instance, _now())
        else:
            self._paths.note_reached(path)
        return False

    @asynccontextmanager
    async def use(self, path: Path, addresses: Collection[str]) -> AsyncIterator[HeadClient]:
        """The connection to a path's address, for the block. addresses: every one that may be asked now."""
        await self._close_unneeded(addresses)
        if path.address not in self._connections:
            self._connections[path.address] = _Connection(GenerationClient(path.address))
        connection = self._connections[path.address]
        connection.num_users += 1
        try:
            yield HeadClient(path, connection.client)
        finally:
            connection.num_users -= 1

    async def close(self) -> None:
        """Close all; requests that still run are cancelled."""
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            await connection.client.close()

    async def _close_unneeded(self, addresses: Collection[str]) -> None:
        unneeded = [name for name, one in self._connections.items() if not one.num_users and name not in addresses]
        for connection in [self._connections.pop(name) for name in unneeded]:
            await connection.client.close()


def _now() -> float:
    return asyncio.get_running_loop().time()
