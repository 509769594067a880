"""POST /api/pull: places a model that the cluster does not know, and tells how far its nodes are with it."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from paceline_api_gateway.protocols.ollama.models import PullProgress, make_digest, watch_pull
from paceline_api_gateway.protocols.ollama.names import LATEST, split_tag
from paceline_api_gateway.protocols.ollama.translate_events import write_line
from paceline_api_gateway.routing.choice import list_models
from paceline_api_gateway.routing.table import RouteTable
from paceline_services.clients import ControlPlaneClient
from paceline_services.domain.instances import InstanceSpec
from paceline_services.domain.models import ModelSource
from paceline_services.errors import NotFoundError, UnavailableError
from paceline_services.ids import InstanceId, ModelId

Json = dict[str, Any]

PAUSE_S = 1.0
"""Time in seconds after which progress is told again, also where nothing changed."""


async def begin_pull(name: str, model_id: ModelId, table: RouteTable, client: ControlPlaneClient) -> None:
    """Want the model, where it is not known and its name is a hub's. Raises NotFoundError for a name that is nobody's."""
    if model_id in list_models(await table.read_state()):
        return
    hub_id, tag = split_tag(name)
    if "/" not in hub_id or tag != LATEST:
        raise NotFoundError(
            f"pull model manifest: {name!r} is no model here and no hub's: name a repository as owner/name",
            reason="MODEL_NOT_FOUND",
        )
    await client.place_instance(InstanceSpec(InstanceId(""), ModelSource(model_id, hub_id)))


async def follow_pull(model_id: ModelId, table: RouteTable) -> AsyncIterator[PullProgress]:
    """How far it is, until it is done. Raises UnavailableError when it cannot come."""
    while True:
        progress = watch_pull(model_id, table.state)
        if progress.failure:
            raise UnavailableError(f"{model_id} cannot be had: {progress.failure}", reason="MODEL_UNAVAILABLE")
        yield progress
        if progress.is_done:
            return
        await table.wait_for_change(PAUSE_S)


async def wait_pulled(model_id: ModelId, table: RouteTable) -> Json:
    """The last line of a pull, once it is done."""
    async for _ in follow_pull(model_id, table):
        pass
    return {"status": "success"}


async def write_pull(model_id: ModelId, table: RouteTable) -> AsyncGenerator[str, None]:
    """The lines of a pull, as Ollama tells it; an error is the last."""
    yield write_line({"status": "pulling manifest"})
    try:
        async for progress in follow_pull(model_id, table):
            if progress.total_bytes:
                yield write_line(_describe(model_id, progress))
    except UnavailableError as error:
        yield write_line({"error": error.message})
        return
    for status in ("verifying sha256 digest", "writing manifest", "success"):
        yield write_line({"status": status})


def _describe(model_id: ModelId, progress: PullProgress) -> Json:
    digest = make_digest(model_id)
    return {
        "status": f"pulling {digest[:12]}",
        "digest": f"sha256:{digest}",
        "total": progress.total_bytes,
        "completed": progress.completed_bytes,
    }
