"""Who answers a request: the cluster, or which backend. Pure.

The order: a model that the cluster serves under exactly this id; then backends that name the id, or list it where they claim all that they
list; then backends with a pattern that fits; then backends whose size class it is in. Among equals, one that answers, then the first in the
settings. What nobody claims is the cluster's to answer, or to refuse.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from fnmatch import fnmatchcase

from paceline_api_gateway.federation.settings import BackendSettings
from paceline_api_gateway.routing.choice import is_hopeless
from paceline_services.domain.models import ModelCard
from paceline_services.domain.nodes import ClusterState

_PATTERN = re.compile(r"[*?\[]")
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
_BILLIONS = {"b": 1.0, "m": 1e-3}


class Health(StrEnum):
    """What the last look at a backend found."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    """It answers, but not as it should."""
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class BackendState:
    """What is known of a backend. models: ids that it listed when it was last healthy."""

    health: Health = Health.UNREACHABLE
    message: str = "it was not looked at yet"
    models: tuple[str, ...] = ()


class _Claim(IntEnum):
    """How closely a backend claims a model; the lowest is closest."""

    ID = 0
    PATTERN = 1
    SIZE = 2


@dataclass(frozen=True, slots=True)
class ClusterModels:
    """The cluster's models, as far as the choice needs them. parameters_b: sizes of those whose card tells it."""

    served: Collection[str] = ()
    parameters_b: Mapping[str, float] | None = None

    @classmethod
    def of(cls, state: ClusterState, *, place_on_demand: bool) -> "ClusterModels":
        """Served is what has an instance that may run, or gets one when it is asked for."""
        instances: dict[str, list[bool]] = {}
        for one in state.instances:
            instances.setdefault(one.spec.source.model_id, []).append(is_hopeless(one))
        known = {model.source.model_id for model in state.models} | set(instances)
        served = {name for name in known if (place_on_demand if name not in instances else not all(instances[name]))}
        cards = {model.source.model_id: model.card for model in state.models if model.card and model.card.layer_values}
        return cls(served, {name: _count_parameters_b(card) for name, card in cards.items()})


def choose_backend(
    model_id: str, cluster: ClusterModels, backends: Sequence[tuple[BackendSettings, BackendState]]
) -> BackendSettings | None:
    """The backend that answers for a model; None: the cluster does."""
    if model_id in cluster.served:
        return None
    size_b = read_parameters_b(model_id) or (cluster.parameters_b or {}).get(model_id)
    ranked = [
        ((claim, state.health is Health.UNREACHABLE, place), backend)
        for place, (backend, state) in enumerate(backends)
        if (claim := _find_claim(model_id, size_b, backend, state)) is not None
    ]
    return min(ranked, key=lambda one: one[0])[1] if ranked else None


def list_models(backend: BackendSettings, state: BackendState) -> list[str]:
    """Model ids under which clients reach a backend: those in its settings, and those that it lists and claims."""
    named = [model for model in backend.models if not _PATTERN.search(model)]
    listed = [
        model for model in state.models if _find_claim(model, read_parameters_b(model), backend, state) is not None
    ]
    return list(dict.fromkeys([*named, *listed]))


def read_parameters_b(model_id: str) -> float | None:
    """Parameters in 10^9, as the id tells them (llama-3.1-70b, smollm2-135m, mixtral-8x7b); None where it does not."""
    sizes = [int(count or 1) * float(size) * _BILLIONS[unit] for count, size, unit in _SIZE.findall(model_id.lower())]
    return max(sizes, default=None)


def _find_claim(model_id: str, size_b: float | None, backend: BackendSettings, state: BackendState) -> _Claim | None:
    if model_id in backend.models:
        return _Claim.ID
    if not backend.models and not _has_sizes(backend):
        return _Claim.ID if model_id in state.models else None
    if any(fnmatchcase(model_id, pattern) for pattern in backend.models if _PATTERN.search(pattern)):
        return _Claim.PATTERN
    if not _has_sizes(backend) or size_b is None:
        return None
    is_in = (backend.min_parameters_b or 0.0) <= size_b <= (backend.max_parameters_b or float("inf"))
    return _Claim.SIZE if is_in else None


def _has_sizes(backend: BackendSettings) -> bool:
    return backend.min_parameters_b is not None or backend.max_parameters_b is not None


def _count_parameters_b(card: ModelCard) -> float:
    return (sum(card.layer_values) + card.head_values) / 1e9
