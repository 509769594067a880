"""Plans a pipeline: chooses nodes for a number of stages, divides the layers by their free memory, or says what is missing.

Which nodes may take part and what memory is free on each is the caller's knowledge. Nodes are taken by free memory, stages follow
node ids; the same question always has the same answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from paceline_control_plane.placement.splitting import Costs, missing_bytes_per_stage, split_layers
from paceline_services.domain.instances import InstanceSpec, PlacementPreview, ShardPlacement
from paceline_services.domain.models import ModelCard
from paceline_services.ids import NodeId

RUNNER_BYTES = 150 * 2**20
"""A runner without weights: Python, MLX, gRPC and the tokenizer take 110 to 140 MiB resident on Linux x86-64."""
DEFAULT_CONTEXT_LENGTH = 8192
"""Tokens admitted where nobody asked for another number."""
_MAX_NAMED_NODES = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may take part, and the bytes that are free there for the instance."""

    node_id: NodeId
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each stage goes, in order."""

    shards: tuple[ShardPlacement, ...]
    context_length: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no placement and what would help, for people."""

    message: str


def admitted_context(spec: InstanceSpec, card: ModelCard) -> int:
    """Longest sequence in tokens: what is wanted, else DEFAULT_CONTEXT_LENGTH, and never more than the model was made for."""
    wanted = spec.context_length or DEFAULT_CONTEXT_LENGTH
    return min(wanted, card.context_length or wanted)


def plan_pipeline(
    card: ModelCard, nodes: Sequence[Candidate], num_stages: int, context_length: int
) -> Placement | Refusal:
    """A pipeline of num_stages over the nodes with the most free memory; 0: of as many stages as can be.

    Each stage holds at least one layer and room for the KV cache of one sequence of context_length tokens.
    """
    if num_stages == 0:
        return plan_at_most(card, nodes, len(nodes), context_length)
    if fault := _find_fault(card, nodes, num_stages):
        return Refusal(fault)
    found = _find_placement(card, nodes, num_stages, context_length)
    return found or Refusal(_describe_lack(card, _choose(nodes, num_stages), context_length))


def plan_at_most(
    card: ModelCard, nodes: Sequence[Candidate], num_stages: int, context_length: int
) -> Placement | Refusal:
    """The pipeline with the most stages, up to num_stages, that fits; the refusal is that of the most stages."""
    most = max(1, min(num_stages, len(nodes), len(card.layer_bytes)))
    if not nodes:
        return plan_pipeline(card, nodes, most, context_length)
    found = (_find_placement(card, nodes, count, context_length) for count in range(most, 0, -1))
    return next(filter(None, found), None) or plan_pipeline(card, nodes, most, context_length)


def preview_pipelines(card: ModelCard, nodes: Sequence[Candidate], context_length: int) -> tuple[PlacementPreview, ...]:
    """The plan for every number of stages from 1 to the number of nodes."""
    plans = ((count, plan_pipeline(card, nodes, count, context_length)) for count in range(1, len(nodes) + 1))
    return tuple(
        PlacementPreview(count, shards=plan.shards)
        if isinstance(plan, Placement)
        else PlacementPreview(count, refusal=plan.message)
        for count, plan in plans
    )


def describe_need(card: ModelCard) -> str:
    """The least memory that an instance takes, for people."""
    return f"{card.model_id} needs at least {format_bytes(_make_costs(card, 0).total(1))}"


def format_bytes(size_bytes: int) -> str:
    """Bytes for people, with one decimal: "4.1 GiB"."""
    size, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


def _find_fault(card: ModelCard, nodes: Sequence[Candidate], num_stages: int) -> str:
    """Why no amount of memory would help; empty when memory decides."""
    if not nodes:
        return f"no node can take part: {describe_need(card)}"
    if num_stages > len(nodes):
        names = ", ".join(node.node_id for node in nodes)
        return (
            f"{num_stages} stages need as many nodes, but only {len(nodes)} can take part ({names}): "
            f"add a node or ask for fewer stages"
        )
    if num_stages > len(card.layer_bytes):
        return f"{num_stages} stages are too many for {card.model_id}, which has {len(card.layer_bytes)} layers: ask for fewer"
    return ""


def _find_placement(
    card: ModelCard, nodes: Sequence[Candidate], num_stages: int, context_length: int
) -> Placement | None:
    costs, chosen = _make_costs(card, context_length), _choose(nodes, num_stages)
    ends = split_layers(costs, [node.free_bytes for node in chosen])
    return Placement(tuple(_place(costs, chosen, ends)), context_length) if ends else None


def _make_costs(card: ModelCard, context_length: int) -> Costs:
    kv_bytes = card.kv_bytes_per_token_per_layer * context_length
    return Costs(
        layers=tuple(weight_bytes + kv_bytes for weight_bytes in card.layer_bytes),
        first=card.embedding_bytes,
        last=card.head_bytes,
        runner=RUNNER_BYTES,
    )


def _choose(nodes: Sequence[Candidate], num_stages: int) -> list[Candidate]:
    """The nodes with the most free memory, in the order of their ids."""
    by_room = sorted(nodes, key=lambda node: (-node.free_bytes, node.node_id))
    return sorted(by_room[:num_stages], key=lambda node: node.node_id)


def _place(costs: Costs, chosen: Sequence[Candidate], ends: Sequence[int]) -> Iterator[ShardPlacement]:
    for stage, (start, end) in enumerate(pairwise((0, *ends))):
        planned_bytes = costs.planned(stage, len(chosen), start, end)
        yield ShardPlacement(chosen[stage].node_id, stage, start, end, planned_bytes=planned_bytes)


def _describe_lack(card: ModelCard, chosen: Sequence[Candidate], context_length: int) -> str:
    costs = _make_costs(card, context_length)
    needed, offered = costs.total(len(chosen)), sum(max(0, node.free_bytes) for node in chosen)
    offers = ", ".join(f"{node.node_id}: {format_bytes(max(0, node.free_bytes))}" for node in chosen[:_MAX_NAMED_NODES])
    if len(chosen) > _MAX_NAMED_NODES:
        offers += f" and {len(chosen) - _MAX_NAMED_NODES} more"
    if needed > offered:
        lack = f"{format_bytes(needed - offered)} short"
    else:
        each = format_bytes(missing_bytes_per_stage(costs, [max(0, node.free_bytes) for node in chosen]))
        lack = f"enough in sum, but whole layers do not fit: {each} short on each node"
    return (
        f"{card.model_id} needs {format_bytes(needed)} with {context_length} tokens of context, "
        f"nodes offer {offers}: {lack}. Free memory, add a node or ask for a shorter context"
    )
