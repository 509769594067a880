"""Plans a pipeline: chooses nodes for a number of stages, divides the layers by their free memory, or says what is missing.

Which nodes may take part and what memory is free on each is the caller's knowledge. Nodes that hold no other instance of the model come
first, then those that held layers of this one, then those with more free memory; stages follow node ids, or what was before (see
arranging). The same question always has the same answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from paceline_control_plane.placement.arranging import Leaning, arrange, count_kept
from paceline_control_plane.placement.kv_cache import choose_num_tokens, kv_bytes_per_token
from paceline_control_plane.placement.splitting import Costs, missing_bytes_per_stage, split_layers
from paceline_services.domain.instances import InstanceSpec, PlacementPreview, ShardPlacement
from paceline_services.domain.models import ModelCard
from paceline_services.ids import NodeId

RUNNER_BYTES = 150 * 2**20
"""A runner without weights: Python, MLX, gRPC and the tokenizer take 110 to 140 MiB resident on Linux x86-64."""
DEFAULT_CONTEXT_LENGTH = 8192
"""Tokens admitted where nobody asked for another number."""
NO_LEANING = Leaning()
_MAX_NAMED_NODES = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may take part, the bytes that are free there for the instance, and the model's other instances that it runs."""

    node_id: NodeId
    free_bytes: int
    num_siblings: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What an instance takes, on whatever nodes.

    kv_bytes: of one token's KV cache in one layer. draft_bytes: what the head needs for a draft model.
    """

    card: ModelCard
    context_length: int
    kv_bytes: int
    draft_bytes: int = 0


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


def make_demand(spec: InstanceSpec, card: ModelCard, draft: ModelCard | None, compute_bytes: int) -> Demand:
    """What an instance of the model takes as the spec wants it. compute_bytes: of an unquantised value of a KV cache.

    A draft model costs its whole weights and the KV cache of one sequence, all on the head.
    """
    context_length = admitted_context(spec, card)
    kv_bytes = kv_bytes_per_token(card.kv_bytes_per_token_per_layer, spec.kv_bits, compute_bytes)
    draft_bytes = 0
    if draft:
        draft_bytes = draft.total_bytes + draft.kv_bytes_per_token_per_layer * draft.num_layers * context_length
    return Demand(card, context_length, kv_bytes, draft_bytes)


def plan_pipeline(
    demand: Demand, nodes: Sequence[Candidate], num_stages: int, leaning: Leaning = NO_LEANING
) -> Placement | Refusal:
    """A pipeline of num_stages over the nodes with the fewest instances of the model and the most free memory; 0: of as many as can be.

    Each stage holds at least one layer and room for the KV cache of one sequence of the admitted context; see kv_cache for what is set
    aside beyond that. Where the nodes without an instance of the model do not do, memory alone decides. Nodes that leaning keeps apart
    are no neighbours: where there is no other way, ask again without.
    """
    if num_stages == 0:
        return plan_at_most(demand, nodes, len(nodes), leaning)
    if fault := _find_fault(demand.card, nodes, num_stages):
        return Refusal(fault)
    found = _find_placement(demand, nodes, num_stages, leaning)
    return found or Refusal(_describe_lack(demand, _in_order(_choose_roomy(nodes, num_stages))))


def plan_at_most(
    demand: Demand, nodes: Sequence[Candidate], num_stages: int, leaning: Leaning = NO_LEANING
) -> Placement | Refusal:
    """The pipeline with the most stages, up to num_stages, that fits; the refusal is that of the most stages."""
    most = max(1, min(num_stages, len(nodes), len(demand.card.layer_bytes)))
    if not nodes:
        return plan_pipeline(demand, nodes, most)
    found = (_find_placement(demand, nodes, count, leaning) for count in range(most, 0, -1))
    return next(filter(None, found), None) or plan_pipeline(demand, nodes, most, leaning)


def preview_pipelines(demand: Demand, nodes: Sequence[Candidate]) -> tuple[PlacementPreview, ...]:
    """The plan for every number of stages from 1 to the number of nodes."""
    plans = ((count, plan_pipeline(demand, nodes, count)) for count in range(1, len(nodes) + 1))
    return tuple(
        PlacementPreview(count, shards=plan.shards)
        if isinstance(plan, Placement)
        else PlacementPreview(count, refusal=plan.message)
        for count, plan in plans
    )


def describe_need(card: ModelCard) -> str:
    """The least memory that an instance takes, for people."""
    return f"{card.model_id} needs at least {format_bytes(_make_costs(Demand(card, 0, 0)).total(1))}"


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


def _find_placement(demand: Demand, nodes: Sequence[Candidate], num_stages: int, leaning: Leaning) -> Placement | None:
    pools = [pool for pool in _pools(nodes, leaning) if len(pool) >= num_stages]
    ways = (_choose_apart, _choose_held, _choose_roomy)
    choices = (tuple(_in_order(choose(pool, num_stages, leaning))) for choose in ways for pool in pools)
    found = (_arrange_stages(demand, chosen, leaning) for chosen in dict.fromkeys(choices))
    return next(filter(None, found), None)


def _pools(nodes: Sequence[Candidate], leaning: Leaning) -> Iterator[Sequence[Candidate]]:
    """All nodes, then all but one of those that must be kept apart; the old head's node is left out last."""
    yield nodes
    apart = {node_id for pair in leaning.avoided for node_id in pair}
    for left_out in sorted(apart, key=lambda node_id: (node_id == leaning.head, node_id)):
        yield [node for node in nodes if node.node_id != left_out]


def _arrange_stages(demand: Demand, chosen: Sequence[Candidate], leaning: Leaning) -> Placement | None:
    """The placement on all of the chosen nodes that moves the fewest layers."""
    costs, by_id = _make_costs(demand), {node.node_id: node for node in chosen}
    best: Placement | None = None
    most = -1
    for order in arrange(tuple(by_id), leaning):
        stages = [by_id[node_id] for node_id in order]
        ends = split_layers(costs, [node.free_bytes for node in stages])
        if ends and (kept := count_kept(leaning, order, ends)) > most:
            most = kept
            best = Placement(tuple(_place(demand, costs, stages, ends)), demand.context_length)
    return best


def _make_costs(demand: Demand) -> Costs:
    card = demand.card
    kv_bytes = demand.kv_bytes * demand.context_length
    return Costs(
        layers=tuple(weight_bytes + kv_bytes for weight_bytes in card.layer_bytes),
        first=card.embedding_bytes,
        last=card.head_bytes + demand.draft_bytes,
        runner=RUNNER_BYTES,
        layer_work=card.layer_values or card.layer_bytes,
        head_work=card.head_values if card.layer_values else card.head_bytes,
    )


def _choose_apart(nodes: Sequence[Candidate], num_stages: int, leaning: Leaning) -> list[Candidate]:
    """The nodes with the fewest other instances of the model, then the head's, then those that held layers, then the roomiest."""
    return sorted(nodes, key=lambda node: (node.num_siblings, *_held_rank(node, leaning)))[:num_stages]


def _choose_held(nodes: Sequence[Candidate], num_stages: int, leaning: Leaning) -> list[Candidate]:
    """The head's node, then those that held layers, then those with the most free memory."""
    return sorted(nodes, key=lambda node: _held_rank(node, leaning))[:num_stages]


def _choose_roomy(nodes: Sequence[Candidate], num_stages: int, leaning: Leaning = NO_LEANING) -> list[Candidate]:
    """The nodes with the most free memory."""
    return sorted(nodes, key=lambda node: (-node.free_bytes, node.node_id))[:num_stages]


def _held_rank(node: Candidate, leaning: Leaning) -> tuple[bool, bool, int, NodeId]:
    return node.node_id not in leaning.order, node.node_id != leaning.head, -node.free_bytes, node.node_id


def _in_order(nodes: Sequence[Candidate]) -> list[Candidate]:
    return sorted(nodes, key=lambda node: node.node_id)


def _place(demand: Demand, costs: Costs, chosen: Sequence[Candidate], ends: Sequence[int]) -> Iterator[ShardPlacement]:
    bounds = tuple(pairwise((0, *ends)))
    least = [costs.planned(stage, len(chosen), start, end) for stage, (start, end) in enumerate(bounds)]
    token_bytes = [demand.kv_bytes * (end - start) for start, end in bounds]
    left = [node.free_bytes - bytes_ for node, bytes_ in zip(chosen, least, strict=True)]
    num_tokens = choose_num_tokens(demand.context_length, left, token_bytes)
    for stage, (start, end) in enumerate(bounds):
        more_bytes = (num_tokens - demand.context_length) * token_bytes[stage]
        yield ShardPlacement(
            *(chosen[stage].node_id, stage, start, end),
            planned_bytes=least[stage] + more_bytes,
            kv_cache_bytes=num_tokens * token_bytes[stage],
        )


def _describe_lack(demand: Demand, chosen: Sequence[Candidate]) -> str:
    costs = _make_costs(demand)
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
        f"{demand.card.model_id} needs {format_bytes(needed)} with {demand.context_length} tokens of context, "
        f"nodes offer {offers}: {lack}. Free memory, add a node or ask for a shorter context"
    )
