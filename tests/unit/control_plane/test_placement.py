"""The planner covers every layer once, fits memory, splits evenly among equals, and says what is missing."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_control_plane.placement.planner import (
    RUNNER_BYTES,
    Candidate,
    Placement,
    Refusal,
    admitted_context,
    format_bytes,
    plan_at_most,
    plan_pipeline,
    preview_pipelines,
)
from paceline_control_plane.placement.splitting import Costs, missing_bytes_per_stage, split_layers
from paceline_services.domain.instances import InstanceSpec
from paceline_services.domain.models import ModelSource
from paceline_services.ids import InstanceId, NodeId
from support.views import GIB, MIB, MODEL, make_card


def make_nodes(*free: int) -> list[Candidate]:
    return [Candidate(NodeId(f"n{index:02d}"), bytes_) for index, bytes_ in enumerate(free)]


def layers_per_stage(plan: Placement | Refusal) -> list[int]:
    assert isinstance(plan, Placement), plan
    return [shard.end_layer - shard.start_layer for shard in plan.shards]


def brute_force_fits(costs: Costs, room: Sequence[int]) -> bool:
    """Whether any split at all fits, by trying every one."""
    num_stages, num_layers = len(room), len(costs.layers)
    return any(
        all(
            costs.planned(stage, num_stages, start, end) <= room[stage]
            for stage, (start, end) in enumerate(pairwise((0, *cuts, num_layers)))
        )
        for cuts in combinations(range(1, num_layers), num_stages - 1)
    )


costs_and_room = st.tuples(
    st.builds(
        Costs,
        layers=st.lists(st.integers(1, 40), min_size=1, max_size=9).map(tuple),
        first=st.integers(0, 30),
        last=st.integers(0, 30),
        runner=st.integers(0, 10),
    ),
    st.lists(st.integers(-20, 200), min_size=1, max_size=5),
).filter(lambda drawn: len(drawn[1]) <= len(drawn[0].layers))


@given(costs_and_room)
def test_a_split_exists_exactly_when_one_fits(drawn: tuple[Costs, list[int]]) -> None:
    costs, room = drawn
    ends = split_layers(costs, room)
    assert (ends is not None) == brute_force_fits(costs, room)


@given(costs_and_room)
def test_a_split_covers_every_layer_once_and_fits(drawn: tuple[Costs, list[int]]) -> None:
    costs, room = drawn
    ends = split_layers(costs, room)
    if ends is None:
        return
    bounds = (0, *ends)
    assert len(ends) == len(room)
    assert ends[-1] == len(costs.layers)
    assert all(start < end for start, end in pairwise(bounds))
    for stage, (start, end) in enumerate(pairwise(bounds)):
        assert costs.planned(stage, len(room), start, end) <= room[stage]


@given(costs_and_room)
def test_the_missing_bytes_are_the_least_that_help(drawn: tuple[Costs, list[int]]) -> None:
    costs, room = drawn[0], [max(0, bytes_) for bytes_ in drawn[1]]
    missing = missing_bytes_per_stage(costs, room)
    assert split_layers(costs, [bytes_ + missing for bytes_ in room]) is not None
    assert missing == 0 or split_layers(costs, [bytes_ + missing - 1 for bytes_ in room]) is None


@given(st.integers(1, 80), st.integers(1, 8))
def test_equal_nodes_get_equal_splits(num_layers: int, num_stages: int) -> None:
    plan = plan_pipeline(make_card(num_layers), make_nodes(*[64 * GIB] * num_stages), min(num_stages, num_layers), 2048)
    sizes = layers_per_stage(plan)
    assert max(sizes) - min(sizes) <= 1


def test_nearly_equal_nodes_get_equal_splits() -> None:
    assert layers_per_stage(plan_pipeline(make_card(), make_nodes(int(8.5 * GIB), 8 * GIB), 2, 2048)) == [15, 15]


def test_layers_follow_free_memory() -> None:
    assert layers_per_stage(plan_pipeline(make_card(), make_nodes(2 * GIB, 4 * GIB), 2, 2048)) == [10, 20]


def test_a_node_that_is_too_small_for_its_share_passes_layers_on() -> None:
    card = make_card(embedding=800 * MIB)
    small = RUNNER_BYTES + 800 * MIB + 4 * 14 * MIB
    plan = plan_pipeline(card, make_nodes(small, 4 * GIB), 2, 0)
    assert layers_per_stage(plan) == [4, 26]


def test_fewer_stages_take_the_nodes_with_the_most_memory_in_order_of_their_ids() -> None:
    plan = plan_pipeline(make_card(), make_nodes(3 * GIB, GIB, 4 * GIB), 2, 2048)
    assert isinstance(plan, Placement)
    assert [shard.node_id for shard in plan.shards] == ["n00", "n02"]


def test_ties_go_to_the_first_node_ids() -> None:
    plan = plan_pipeline(make_card(), make_nodes(*[4 * GIB] * 3)[::-1], 2, 2048)
    assert isinstance(plan, Placement)
    assert [shard.node_id for shard in plan.shards] == ["n00", "n01"]


def test_no_number_of_stages_uses_every_usable_node() -> None:
    assert len(layers_per_stage(plan_pipeline(make_card(), make_nodes(*[4 * GIB] * 5), 0, 2048))) == 5
    assert len(layers_per_stage(plan_pipeline(make_card(), make_nodes(4 * GIB, 4 * GIB, MIB), 0, 2048))) == 2
    assert len(layers_per_stage(plan_pipeline(make_card(3), make_nodes(*[4 * GIB] * 5), 0, 2048))) == 3


def test_planned_bytes_pay_embedding_first_and_head_last() -> None:
    plan = plan_pipeline(make_card(), make_nodes(8 * GIB, 8 * GIB, 8 * GIB), 3, 1000)
    assert isinstance(plan, Placement)
    layers = 10 * (14 * MIB + 1536 * 1000)
    assert [shard.planned_bytes for shard in plan.shards] == [
        RUNNER_BYTES + 100 * MIB + layers,
        RUNNER_BYTES + layers,
        RUNNER_BYTES + 100 * MIB + layers,
    ]


def test_a_refusal_says_how_many_bytes_are_short_and_where() -> None:
    card = make_card(4, GIB, embedding=0, kv=0)
    plan = plan_pipeline(
        card, [Candidate(NodeId("a"), int(1.2 * GIB)), Candidate(NodeId("b"), int(0.9 * GIB))], 2, 2048
    )
    assert isinstance(plan, Refusal)
    assert (
        "demo needs 4.3 GiB with 2048 tokens of context, nodes offer a: 1.2 GiB, b: 921.6 MiB: 2.2 GiB short"
        in plan.message
    )


def test_a_refusal_by_whole_layers_says_what_each_node_lacks() -> None:
    card = make_card(3, GIB, embedding=0, kv=0)
    plan = plan_pipeline(card, make_nodes(RUNNER_BYTES + 3 * GIB // 2, RUNNER_BYTES + 3 * GIB // 2), 2, 2048)
    assert isinstance(plan, Refusal)
    assert "whole layers do not fit: 512.0 MiB short on each node" in plan.message


def test_more_stages_than_nodes_are_refused_with_the_nodes_there_are() -> None:
    plan = plan_pipeline(make_card(), make_nodes(8 * GIB, 8 * GIB), 3, 2048)
    assert isinstance(plan, Refusal)
    assert "3 stages need as many nodes, but only 2 can take part (n00, n01)" in plan.message


def test_more_stages_than_layers_are_refused() -> None:
    plan = plan_pipeline(make_card(2), make_nodes(*[8 * GIB] * 3), 3, 2048)
    assert isinstance(plan, Refusal)
    assert "has 2 layers" in plan.message


@pytest.mark.parametrize("num_stages", [0, 2])
def test_without_any_node_the_needed_memory_is_named(num_stages: int) -> None:
    plan = plan_pipeline(make_card(), [], num_stages, 2048)
    assert isinstance(plan, Refusal)
    assert plan.message == "no node can take part: demo needs at least 770.0 MiB"


def test_at_most_falls_back_to_fewer_stages() -> None:
    assert len(layers_per_stage(plan_at_most(make_card(), make_nodes(4 * GIB), 2, 2048))) == 1
    assert len(layers_per_stage(plan_at_most(make_card(), make_nodes(*[4 * GIB] * 3), 2, 2048))) == 2


def test_previews_try_every_number_of_stages() -> None:
    previews = preview_pipelines(make_card(), make_nodes(400 * MIB, 4 * GIB), 2048)
    assert [preview.num_stages for preview in previews] == [1, 2]
    assert [shard.node_id for shard in previews[0].shards] == ["n01"]
    assert len(previews[1].shards) == 2
    refused = preview_pipelines(make_card(), make_nodes(MIB), 2048)[0]
    assert not refused.shards
    assert "short" in refused.refusal


@pytest.mark.parametrize(
    ("asked", "limit", "admitted"), [(0, 2048, 2048), (0, 131072, 8192), (512, 2048, 512), (4096, 2048, 2048)]
)
def test_context_is_what_is_asked_but_never_more_than_the_model_allows(asked: int, limit: int, admitted: int) -> None:
    spec = InstanceSpec(InstanceId("a"), ModelSource(MODEL), context_length=asked)
    assert admitted_context(spec, replace(make_card(), context_length=limit)) == admitted


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (4402341478, "4.1 GiB")])
def test_bytes_are_written_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text
