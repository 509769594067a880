"""Which instance answers a request, and what is said when none does."""

from dataclasses import replace

import pytest

from paceline_api_gateway.routing.choice import (
    AFFINITY_SLACK,
    Absent,
    Affinity,
    Choice,
    Coming,
    Search,
    Traffic,
    choose_instance,
    choose_retry_s,
    explain_absence,
    leave_out_failed,
    list_active,
    list_lost,
    list_models,
)
from paceline_services.domain.instances import InstanceState
from paceline_services.domain.nodes import Node, NodeInventory, NodeState
from paceline_services.domain.runners import Precision
from paceline_services.errors import NotFoundError, UnavailableError
from paceline_services.ids import InstanceId, ModelId, NodeId, Revision
from support.head import MODEL, make_instance, make_state

A, B, C = InstanceId("a"), InstanceId("b"), InstanceId("c")
SEARCH = Search(MODEL)
THREE = [make_instance(name, f"h:{name}") for name in (A, B, C)]


def choose(loads: dict[InstanceId, int], knowing: set[InstanceId] = frozenset(), **turns: int) -> Choice:  # type: ignore[assignment]
    return choose_instance(THREE, knowing, Traffic(loads, {InstanceId(name): turn for name, turn in turns.items()}))


def name_chosen(choice: Choice) -> tuple[str, Affinity | None]:
    return choice.instance.spec.instance_id, choice.affinity


def test_least_loaded_instance_is_chosen_when_none_knows_the_prompt() -> None:
    assert name_chosen(choose({A: 2, B: 1, C: 3})) == (B, Affinity.MISS)


def test_among_equals_the_one_that_was_chosen_longest_ago_is_next() -> None:
    assert name_chosen(choose({}, a=1, b=3, c=2)) == (A, Affinity.MISS)
    assert name_chosen(choose({A: 1}, a=1, b=3, c=2)) == (C, Affinity.MISS)
    assert name_chosen(choose({}, a=1, c=2)) == (B, Affinity.MISS)


def test_instance_that_knows_the_prompt_is_chosen_up_to_the_slack() -> None:
    assert name_chosen(choose({A: AFFINITY_SLACK}, {A})) == (A, Affinity.HIT)
    assert name_chosen(choose({A: AFFINITY_SLACK + 1, B: 1}, {A})) == (C, Affinity.OVERLOADED)
    assert name_chosen(choose({A: AFFINITY_SLACK + 1, B: 1, C: 1}, {A})) == (A, Affinity.HIT)


def test_of_several_that_know_the_prompt_the_least_loaded_is_chosen() -> None:
    assert name_chosen(choose({A: 3, B: 2}, {A, B})) == (B, Affinity.HIT)


def test_only_instance_is_no_matter_of_affinity() -> None:
    choice = choose_instance(THREE[:1], {A}, Traffic({A: 100}))
    assert name_chosen(choice) == (A, None)


def test_failed_heads_are_left_out_while_there_is_another() -> None:
    assert leave_out_failed(THREE, ["h:a", "h:c"]) == [THREE[1]]
    assert leave_out_failed(THREE, ["h:a", "h:b", "h:c"]) == THREE


def test_only_active_instances_of_the_model_count() -> None:
    state = make_state(
        make_instance("a", "h:1", model="other"),
        make_instance("b", "h:2"),
        make_instance("c", state=InstanceState.LOADING),
        models=(MODEL, "other"),
    )
    assert [one.spec.instance_id for one in list_active(state, SEARCH)] == [B]


def test_known_model_without_instance_is_absent() -> None:
    state = make_state(make_instance("a", "h:1", model="other"), models=(MODEL, "other"))
    assert isinstance(explain_absence(state, SEARCH), Absent)


@pytest.mark.parametrize("state", [InstanceState.PENDING, InstanceState.LOADING, InstanceState.RECOVERING])
def test_instance_on_its_way_tells_how_far_it_is(state: InstanceState) -> None:
    coming = explain_absence(make_state(make_instance("a", state=state, progress=0.4, message="stage 1")), SEARCH)
    assert isinstance(coming, Coming)
    assert "40%" in coming.message and "stage 1" in coming.message


def test_instance_that_loads_is_waited_for_beside_one_that_failed() -> None:
    state = make_state(make_instance("a", state=InstanceState.FAILED), make_instance("b", state=InstanceState.LOADING))
    assert isinstance(explain_absence(state, SEARCH), Coming)


@pytest.mark.parametrize("state", [InstanceState.UNPLACEABLE, InstanceState.FAILED])
def test_instance_that_cannot_run_is_an_error_with_its_reason(state: InstanceState) -> None:
    with pytest.raises(UnavailableError, match="2 GiB short"):
        explain_absence(make_state(make_instance("a", state=state, message="2 GiB short")), SEARCH)


def test_unknown_model_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match="one, two") as caught:
        explain_absence(make_state(models=("two", "one")), Search(ModelId("nope")))
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_models_are_those_known_and_those_with_an_instance() -> None:
    state = make_state(make_instance("a", model="placed"), models=("on-disk",))
    assert list_models(state) == {"on-disk": False, "placed": True}


def test_begun_answer_is_gone_on_with_where_it_is_computed_alike() -> None:
    exact, other = make_instance("a", "h:a"), make_instance("b", "h:b")
    fast = replace(make_instance("c", "h:c"), spec=replace(exact.spec, instance_id=C, precision=Precision.FAST))
    small = replace(make_instance("d", "h:d"), spec=replace(exact.spec, kv_bits=8))
    state = make_state(fast, other, small)
    assert list_active(state, Search(MODEL, has_begun=True, like=exact)) == [other]
    assert list_active(state, Search(MODEL, has_begun=True)) == [fast, other, small]


def test_instance_that_computes_otherwise_does_not_count_as_coming() -> None:
    exact = make_instance("a", "h:a")
    fast = replace(make_instance("c", state=InstanceState.LOADING), spec=replace(exact.spec, precision=Precision.FAST))
    assert isinstance(explain_absence(make_state(fast), Search(MODEL, has_begun=True)), Coming)
    with pytest.raises(UnavailableError, match="was removed"):
        explain_absence(make_state(fast), Search(MODEL, has_begun=True, like=exact))


def test_of_several_on_their_way_the_one_that_came_furthest_is_told_of() -> None:
    loading = [make_instance(name, state=InstanceState.LOADING, progress=part) for name, part in [(A, 0.1), (B, 0.7)]]
    coming = explain_absence(make_state(*loading), SEARCH)
    assert isinstance(coming, Coming) and coming.progress == 0.7 and "70%" in coming.message


@pytest.mark.parametrize(("progress", "seconds"), [(0.0, 30.0), (0.5, 15.0), (0.99, 1.0), (1.0, 1.0)])
def test_the_less_is_left_the_sooner_to_come_back(progress: float, seconds: float) -> None:
    assert choose_retry_s(progress) == seconds


def test_models_of_a_cluster_that_lost_its_state_are_lost_and_removed_ones_are_not() -> None:
    placed = replace(
        make_state(make_instance(A), make_instance(B, model="other"), models=(MODEL,)), revision=Revision(9)
    )
    unplaced = replace(make_state(make_instance(B, model="other"), models=(MODEL,)), revision=Revision(10))
    empty = make_state(models=())
    assert list_lost(placed, unplaced) == set()
    assert list_lost(placed, replace(unplaced, revision=Revision(3))) == {MODEL}
    assert list_lost(placed, replace(empty, revision=Revision(1))) == {MODEL, "other"}
    node = Node(NodeInventory(NodeId("node-a"), "agent-1"), NodeState.UP)
    assert list_lost(replace(placed, nodes=(node,)), replace(empty, revision=Revision(10))) == {MODEL, "other"}
    assert list_lost(empty, placed) == set()
