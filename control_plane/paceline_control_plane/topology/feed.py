"""Keeps a replica's view current and lets tasks wait for the next one.

One follower of the store per replica feeds everyone: servicers, sessions of nodes, controllers. While the store is away the last
view stays: reads are answered from it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from paceline_control_plane.keys import Keys
from paceline_control_plane.store.follow import follow
from paceline_control_plane.store.interface import Store
from paceline_control_plane.topology.view import ClusterView, make_view
from paceline_services.errors import UnavailableError
from paceline_services.ids import Revision


class ClusterFeed:
    """The latest view of one namespace. run() must be running."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        self._view: ClusterView | None = None
        self._next = asyncio.Event()

    async def run(self) -> None:
        """Follow the store until it is closed. Raises StoreUnavailableError when it cannot be read at the very start."""
        async with aclosing(follow(self._store, self._keys.prefix)) as mirrors:
            async for mirror in mirrors:
                self._view = make_view(self._keys, mirror, self._view or ClusterView())
                self._next.set()
                self._next = asyncio.Event()

    @property
    def current(self) -> ClusterView:
        """The latest view. Raises UnavailableError before the first one."""
        if self._view is None:
            raise UnavailableError("the control plane has not read the store yet: try again")
        return self._view

    async def changed(self, since: ClusterView | None) -> ClusterView:
        """The latest view, as soon as it is another one than since."""
        while self._view is None or self._view is since:
            await self._next.wait()
        return self._view

    async def until(self, is_wanted: Callable[[ClusterView], bool]) -> ClusterView:
        """The latest view, as soon as one is wanted. Unlike reached, this also holds for a store whose revisions went back."""
        view = await self.changed(None)
        while not is_wanted(view):
            view = await self.changed(view)
        return view

    async def reached(self, revision: Revision) -> ClusterView:
        """The latest view, as soon as it knows the change made at revision (of a key in the namespace)."""
        view = await self.changed(None)
        while view.revision < revision:
            view = await self.changed(view)
        return view

    async def views(self) -> AsyncGenerator[ClusterView, None]:
        """The view now and after every change, for ever; one who is slow gets the latest only."""
        view: ClusterView | None = None
        while True:
            view = await self.changed(view)
            yield view
