"""The cluster's models as Claude lists them. Pure."""

from collections.abc import Sequence
from typing import Any

from paceline_services.domain.nodes import ClusterState
from paceline_services.errors import InvalidRequestError

Json = dict[str, Any]


def list_page(names: Sequence[str], limit: int, after_id: str | None, before_id: str | None) -> tuple[list[str], bool]:
    """At most limit names behind after_id or before before_id, and whether there are more in that direction."""
    for param, name in (("after_id", after_id), ("before_id", before_id)):
        if name is not None and name not in names:
            raise InvalidRequestError(f"{param}: there is no model {name!r}", param=param)
    if before_id is not None:
        rest = list(names[: names.index(before_id)])
        return rest[-limit:], len(rest) > limit
    rest = list(names[names.index(after_id) + 1 :] if after_id is not None else names)
    return rest[:limit], len(rest) > limit


def describe_model(name: str, state: ClusterState) -> Json:
    """max_input_tokens: the context of its instance, else the model's own; null while neither is known."""
    contexts = [one.context_length for one in state.instances if one.spec.source.model_id == name]
    cards = [model.card for model in state.models if model.source.model_id == name and model.card]
    context = max(contexts, default=0) or max((card.context_length for card in cards), default=0)
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": context or None,
        "max_tokens": context or None,
    }
