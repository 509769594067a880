"""Connections to heads, one for each address, kept while an instance or a request needs it."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from paceline_services.clients import GenerationClient


@dataclass(slots=True)
class _Connection:
    client: GenerationClient
    num_users: int = 0


class HeadConnections:
    """Opened on first use, closed when the head is gone from the cluster and its last request has ended."""

    def __init__(self) -> None:
        self._connections: dict[str, _Connection] = {}

    @asynccontextmanager
    async def use(self, address: str, heads: Collection[str]) -> AsyncIterator[GenerationClient]:
        """The connection to an address, for the block. heads: the addresses of every head there is now."""
        await self._close_unneeded(heads)
        if address not in self._connections:
            self._connections[address] = _Connection(GenerationClient(address))
        connection = self._connections[address]
        connection.num_users += 1
        try:
            yield connection.client
        finally:
            connection.num_users -= 1

    async def close(self) -> None:
        """Close all; requests that still run are cancelled."""
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            await connection.client.close()

    async def _close_unneeded(self, heads: Collection[str]) -> None:
        unneeded = [name for name, one in self._connections.items() if not one.num_users and name not in heads]
        for connection in [self._connections.pop(name) for name in unneeded]:
            await connection.client.close()
