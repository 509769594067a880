"""Wishes to empty nodes. Any replica stores them; the leader sees to them."""

from paceline_control_plane.keys import Keys
from paceline_control_plane.records import encode_drain
from paceline_control_plane.store.interface import Delete, Put, Store
from paceline_control_plane.topology.feed import ClusterFeed
from paceline_services.domain.nodes import DrainRequest
from paceline_services.errors import NotFoundError
from paceline_services.ids import parse_node_id
from paceline_services.logs import get_logger


class Drains:
    """Stores and deletes the wishes of one namespace."""

    def __init__(self, store: Store, keys: Keys, feed: ClusterFeed) -> None:
        self._store = store
        self._keys = keys
        self._feed = feed

    async def request(self, wish: DrainRequest) -> None:
        """Have a node emptied, or end that. The last wish counts. Raises NotFoundError NODE_NOT_FOUND for an unknown node."""
        view, key = self._feed.current, self._keys.drain(parse_node_id(wish.node_id))
        if wish.node_id not in view.nodes and wish.node_id not in view.drains:
            names = ", ".join(sorted(view.nodes)) or "none"
            raise NotFoundError(f"there is no node {wish.node_id!r}; there are: {names}", reason="NODE_NOT_FOUND")
        await self._store.transact([], [Delete(key) if wish.is_undone else Put(key, encode_drain(wish))])
        get_logger().info("drain_requested", node_id=wish.node_id, is_undone=wish.is_undone)
