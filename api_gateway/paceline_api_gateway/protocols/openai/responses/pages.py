"""Pages of a list of items. Pure."""

from collections.abc import Sequence
from typing import Literal

from paceline_api_gateway.protocols.openai.responses.schema import Json
from paceline_services.errors import InvalidRequestError

Order = Literal["asc", "desc"]
MAX_LIMIT = 100


def list_page(items: Sequence[Json], order: Order, after: str | None, limit: int) -> Json:
    """At most limit items after the one with an id. Raises InvalidRequestError where there is no such one."""
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        ordered = ordered[_find(ordered, after) + 1 :]
    page = ordered[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(ordered) > limit,
    }


def _find(items: Sequence[Json], item_id: str) -> int:
    for index, item in enumerate(items):
        if item["id"] == item_id:
            return index
    raise InvalidRequestError(f"after: there is no item with id {item_id[:80]!r} in this response", param="after")
