"""Who waits for a turn: a bounded queue that is fair to clients. Pure.

Clients take turns, so that one that sends a hundred requests at once holds up nobody's first. When the queue is full, the client that
waits with the most requests gives up its latest one to a client that waits with fewer ("longest queue drop"); only who has the most
itself is refused. Who had its turn already and is put back waits before all others and never gives up its place.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from paceline_services.errors import OverloadedError

T = TypeVar("T")


@dataclass(slots=True)
class FairQueue(Generic[T]):
    """Items of clients in the order in which they will have their turn."""

    capacity: int
    _clients: OrderedDict[str, list[T]] = field(default_factory=OrderedDict)
    _returned: list[T] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._returned) + sum(len(items) for items in self._clients.values())

    def __iter__(self) -> Iterator[T]:
        """Those put back, then in turns: every client's first, every client's second ..."""
        yield from list(self._returned)
        for turn in range(max((len(items) for items in self._clients.values()), default=0)):
            for items in list(self._clients.values()):
                if turn < len(items):
                    yield items[turn]

    def make_room(self, client: str, num_items: int, num_free: int = 0) -> list[T]:
        """The items that must leave so that a client may add some; num_free may start at once and need no place.

        Raises OverloadedError when the client itself is the one that waits with the most.
        """
        excess = len(self) + num_items - num_free - self.capacity
        if excess <= 0:
            return []
        sizes = {name: len(items) for name, items in self._clients.items()}
        own = sizes.pop(client, 0) + num_items
        dropped: list[T] = []
        for _ in range(excess):
            largest = max(sizes, key=lambda name: sizes[name], default=client)
            if sizes.get(largest, 0) <= own:
                raise OverloadedError(f"{len(self)} requests are waiting: try again later", reason="QUEUE_FULL")
            sizes[largest] -= 1
            dropped.append(self._clients[largest][sizes[largest]])
        return dropped

    def append(self, client: str, item: T) -> None:
        self._clients.setdefault(client, []).append(item)

    def put_back(self, item: T) -> None:
        """Put an item back that had its turn: it is the next one, whoever else waits."""
        self._returned.insert(0, item)

    def take(self, client: str, item: T) -> None:
        """The item has its turn: the client's next one comes after everybody else's."""
        self.remove(client, item)
        if client in self._clients:
            self._clients.move_to_end(client)

    def remove(self, client: str, item: T) -> None:
        """The item waits no longer. Unknown: nothing."""
        if item in self._returned:
            self._returned.remove(item)
            return
        items = self._clients.get(client, [])
        if item in items:
            items.remove(item)
        if not items:
            self._clients.pop(client, None)
