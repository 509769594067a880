"""ClusterService: agents join here, everyone else reads the cluster's state. Reads are answered from this replica's view."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from paceline.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from paceline_control_plane.registry.registry import Registry
from paceline_control_plane.topology.feed import ClusterFeed
from paceline_control_plane.topology.observe import observe_cluster
from paceline_control_plane.topology.view import ClusterView
from paceline_services.codec import from_proto, to_proto
from paceline_services.domain.nodes import NodeReport


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):  # type: ignore[misc,unused-ignore]
    """Serves one namespace."""

    def __init__(self, registry: Registry, feed: ClusterFeed) -> None:
        self._registry = registry
        self._feed = feed
        self._encoded: tuple[ClusterView, cluster_pb2.ClusterState] | None = None

    async def Join(  # noqa: N802 (gRPC names it)
        self, request_iterator: AsyncIterator[cluster_pb2.JoinRequest], context: Any
    ) -> AsyncIterator[cluster_pb2.JoinResponse]:
        """An agent's membership; see Registry.join."""
        reports = (from_proto(request, NodeReport) async for request in request_iterator)
        async with aclosing(self._registry.join(reports)) as all_orders:
            async for orders in all_orders:
                yield to_proto(orders, cluster_pb2.JoinResponse)

    async def GetClusterState(  # noqa: N802
        self, request: cluster_pb2.GetClusterStateRequest, context: Any
    ) -> cluster_pb2.GetClusterStateResponse:
        """The state as this replica last saw it, also while the store is away."""
        return cluster_pb2.GetClusterStateResponse(state=self._encode(self._feed.current))

    async def WatchClusterState(  # noqa: N802
        self, request: cluster_pb2.WatchClusterStateRequest, context: Any
    ) -> AsyncIterator[cluster_pb2.WatchClusterStateResponse]:
        """The state at once and after every change; a slow reader gets the latest only."""
        async with aclosing(self._feed.views()) as views:
            async for view in views:
                yield cluster_pb2.WatchClusterStateResponse(state=self._encode(view))

    def _encode(self, view: ClusterView) -> cluster_pb2.ClusterState:
        """The state as a message, made once per view however many watch: 10 ms for 100 nodes."""
        if self._encoded is None or self._encoded[0] is not view:
            self._encoded = view, to_proto(observe_cluster(view), cluster_pb2.ClusterState)
        return self._encoded[1]
