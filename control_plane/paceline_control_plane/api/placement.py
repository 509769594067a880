"""PlacementService: what clients want placed, and what could be."""

from typing import Any

from paceline.placement.v1 import placement_pb2, placement_pb2_grpc
from paceline_control_plane.api.wishes import Wishes, check_model_is_known
from paceline_control_plane.controllers.capacity import all_candidates
from paceline_control_plane.placement.planner import admitted_context, preview_pipelines
from paceline_control_plane.topology.feed import ClusterFeed
from paceline_control_plane.topology.view import ClusterView
from paceline_services.codec import from_proto, to_proto
from paceline_services.domain.instances import InstanceSpec, PlacementPreview
from paceline_services.errors import InvalidRequestError, UnavailableError
from paceline_services.ids import InstanceId


class PlacementServicer(placement_pb2_grpc.PlacementServiceServicer):  # type: ignore[misc,unused-ignore]
    """Serves one namespace."""

    def __init__(self, wishes: Wishes, feed: ClusterFeed) -> None:
        self._wishes = wishes
        self._feed = feed

    async def PlaceInstance(  # noqa: N802 (gRPC names it)
        self, request: placement_pb2.PlaceInstanceRequest, context: Any
    ) -> placement_pb2.PlaceInstanceResponse:
        """Stores a wish; see Wishes.place."""
        spec, created = await self._wishes.place(_read_spec(request.spec))
        return placement_pb2.PlaceInstanceResponse(spec=to_proto(spec, placement_pb2.InstanceSpec), created=created)

    async def RemoveInstance(  # noqa: N802
        self, request: placement_pb2.RemoveInstanceRequest, context: Any
    ) -> placement_pb2.RemoveInstanceResponse:
        """Deletes a wish; see Wishes.remove."""
        await self._wishes.remove(InstanceId(request.instance_id))
        return placement_pb2.RemoveInstanceResponse()

    async def PreviewPlacements(  # noqa: N802
        self, request: placement_pb2.PreviewPlacementsRequest, context: Any
    ) -> placement_pb2.PreviewPlacementsResponse:
        """Plans for every number of stages over the nodes that are up."""
        previews = preview(self._feed.current, _read_spec(request.spec))
        return placement_pb2.PreviewPlacementsResponse(
            previews=[to_proto(one, placement_pb2.PlacementPreview) for one in previews]
        )


def preview(view: ClusterView, wish: InstanceSpec) -> tuple[PlacementPreview, ...]:
    """Possible and impossible placements of a wish.

    Raises NotFoundError MODEL_NOT_FOUND, or UnavailableError while no node knows the model's sizes.
    """
    check_model_is_known(view, wish)
    card = view.card(wish.source.model_id)
    if card is None:
        raise UnavailableError(
            f"the sizes of {wish.source.model_id} are not known before a node has fetched it: place it, or wait for that",
            reason="MODEL_NOT_FETCHED",
        )
    return preview_pipelines(card, all_candidates(view), admitted_context(wish, card))


def _read_spec(message: placement_pb2.InstanceSpec) -> InstanceSpec:
    if not message.source.model_id:
        raise InvalidRequestError("spec.source.model_id is required")
    return from_proto(message, InstanceSpec)
