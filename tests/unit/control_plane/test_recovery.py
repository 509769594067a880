"""What failed is placed anew at once the first time; what caused it is told apart; what keeps failing is avoided."""

from dataclasses import replace

import pytest

from paceline_control_plane.controllers.decision import Decision
from paceline_control_plane.controllers.memory import avoided_links
from paceline_control_plane.topology.view import ClusterView, Stored
from paceline_services.domain.instances import Assignment, ShardFailure
from paceline_services.domain.models import KnownModel, ModelSource
from paceline_services.domain.runners import RunnerState
from paceline_services.ids import NodeId, Revision
from support.leading import PATIENCE, Leader, only_assignment
from support.views import (
    GIB,
    INSTANCE,
    MIB,
    MODEL,
    draining,
    make_assignment,
    make_card,
    make_report,
    make_spec,
    make_view,
    with_runner,
    with_runners,
    with_silent_node,
)

READY, LOADING, LOADED = RunnerState.READY, RunnerState.LOADING, RunnerState.LOADED
BROKEN, FAILED = RunnerState.BROKEN, RunnerState.FAILED
KNOWN = KnownModel(ModelSource(MODEL), make_card())
AB = frozenset({NodeId("a"), NodeId("b")})


def nodes_of(assignment: Assignment) -> list[str]:
    return [shard.node_id for shard in assignment.shards]


def running(
    *states: RunnerState | None,
    nodes: str = "abc",
    placed: str = "abc",
    epoch: int = 7,
    free: int = 4 * GIB,
    failures: tuple[ShardFailure, ...] = (),
) -> ClusterView:
    """An instance on the nodes that placed names, with its runners in these states."""
    assignment = replace(make_assignment(*placed), shard_failures=failures)
    reports = {name: make_report(free) for name in nodes}
    return with_runners(make_view(reports, [make_spec()], {epoch: assignment}, [KNOWN]), epoch, *states)


def stored(view: ClusterView, assignment: Assignment, *states: RunnerState | None) -> ClusterView:
    """The view after an assignment was written, with its runners in these states."""
    reports = {node_id: replace(one, value=replace(one.value, runners=())) for node_id, one in view.reports.items()}
    written = {INSTANCE: Stored(assignment, Revision(view.revision + 1))}
    after = replace(view, assignments=written, reports=reports, revision=Revision(view.revision + 1))
    return with_runners(after, assignment.epoch, *states)


def test_the_first_failure_of_an_instance_that_answered_is_acted_on_at_once() -> None:
    leader, placed = Leader(), running(READY, READY, READY)
    leader.decide(placed, 1000)
    again = only_assignment(leader.decide(running(READY, FAILED, READY), 1001))
    assert nodes_of(again) == ["a", "b", "c"]
    assert (again.num_failures, again.epoch) == (1, placed.revision + 1)


def test_failures_in_a_row_are_paused_after() -> None:
    leader, view, now = Leader(), running(READY, READY, READY), 1000.0
    for pause in (0.0, 1.0, 2.0, 4.0):
        leader.decide(view, now)
        failed = stored(view, replace(view.record(INSTANCE).assignment), READY, FAILED, READY)
        if pause:
            assert leader.decide(failed, now + 1) == Decision((), now + 1 + pause)
        leader.decide(failed, now + 1)
        again = only_assignment(leader.decide(failed, now + 1 + pause))
        view, now = stored(failed, replace(again, shard_failures=()), READY, READY, READY), now + 2 + pause


def test_a_failure_to_load_is_paused_after_from_the_first() -> None:
    leader, view = Leader(), running(LOADING, FAILED, LOADED)
    assert leader.decide(view, 1000) == Decision((), 1001)


@pytest.mark.parametrize("other", [None, RunnerState.STARTING, LOADING])
def test_a_neighbour_whose_agent_was_started_anew_is_not_waited_for(other: RunnerState | None) -> None:
    leader = Leader()
    leader.decide(running(READY, READY, READY), 1000)
    broken = with_runner(running(BROKEN, other, READY), 0, lost_stage=1)
    assert nodes_of(only_assignment(leader.decide(broken, 1001))) == ["a", "b", "c"]


def test_a_silent_neighbour_is_left_out_at_once_where_another_placement_fits() -> None:
    leader = Leader()
    leader.decide(running(READY, READY, READY), 1000)
    broken = with_runner(running(BROKEN, READY, BROKEN), 0, lost_stage=1)
    again = only_assignment(leader.decide(with_silent_node(broken, "b"), 1001))
    assert (nodes_of(again), again.num_failures) == (["a", "c"], 0)


def test_a_silent_neighbour_without_which_nothing_fits_is_waited_for() -> None:
    leader = Leader()
    tight = running(BROKEN, READY, nodes="ab", placed="ab", free=0)
    tight = with_runner(with_runner(tight, 0, lost_stage=1, resident_bytes=800 * MIB), 1, resident_bytes=800 * MIB)
    assert leader.decide(with_silent_node(tight, "b"), 1001) == Decision()
    assert only_assignment(leader.decide(tight, 1003)).shards


def test_a_silent_node_whose_neighbours_are_content_is_left_alone() -> None:
    assert Leader().decide(with_silent_node(running(READY, READY, READY), "b"), 1001) == Decision()


def broken_link(view: ClusterView) -> ClusterView:
    """Stages 0 and 1 each say that they lost the other."""
    return with_runner(with_runner(view, 0, lost_stage=1), 1, lost_stage=0)


def test_a_link_that_broke_is_tried_once_more_and_then_avoided_for_a_while() -> None:
    leader, view = Leader(), running(READY, READY, READY)
    leader.decide(view, 1000)
    again = only_assignment(leader.decide(broken_link(running(BROKEN, BROKEN, READY)), 1001))
    assert nodes_of(again) == ["a", "b", "c"]
    assert not avoided_links(leader.memory, 1001, PATIENCE)
    leader.decide(stored(view, again, READY, READY, READY), 1002)
    twice = broken_link(stored(view, again, BROKEN, BROKEN, READY))
    leader.decide(twice, 1004)
    apart = only_assignment(leader.decide(twice, 1006))
    assert avoided_links(leader.memory, 1006, PATIENCE) == {AB}
    assert nodes_of(apart) == ["a", "c"]
    assert not avoided_links(leader.memory, 1004 + 2 * PATIENCE.suspect_s, PATIENCE)


def test_a_link_that_never_came_about_is_avoided_at_once() -> None:
    leader = Leader()
    view = broken_link(running(BROKEN, BROKEN, nodes="ab", placed="ab"))
    leader.decide(view, 1000)
    assert nodes_of(only_assignment(leader.decide(view, 1001))) == ["b"]


def test_a_link_is_not_blamed_for_a_runner_that_failed() -> None:
    leader = Leader()
    leader.decide(running(READY, READY, READY), 1000)
    leader.decide(with_runner(running(BROKEN, READY, READY), 0, lost_stage=1), 1001)
    assert leader.memory.link_breaks
    leader.decide(with_runner(running(BROKEN, FAILED, READY), 0, lost_stage=1), 1001.1)
    assert not leader.memory.link_breaks


def test_a_stage_that_broke_because_of_a_third_one_is_not_blamed() -> None:
    leader = Leader()
    leader.decide(running(READY, READY, READY), 1000)
    view = with_runner(with_runner(running(BROKEN, READY, BROKEN), 0, lost_stage=2), 2, lost_stage=1)
    leader.decide(view, 1001)
    assert {pair for _, pair in leader.memory.link_breaks} == {frozenset({NodeId("b"), NodeId("c")})}


def test_a_runner_killed_for_lack_of_memory_gets_a_smaller_share() -> None:
    leader = Leader()
    leader.decide(running(READY, READY, READY), 1000)
    killed = with_runner(running(READY, FAILED, READY), 1, is_out_of_memory=True)
    before = only_assignment(leader.decide(running(READY, FAILED, READY), 1000)).shards[1]
    again = only_assignment(leader.decide(killed, 1001))
    assert again.shard_failures == (ShardFailure(NodeId("b"), 10, 20, 1, True),)
    assert again.shards[1].node_id == "b"
    assert (again.shards[1].end_layer - again.shards[1].start_layer) < before.end_layer - before.start_layer


def failure(node: str, count: int, *, memory: bool = False, layers: tuple[int, int] = (10, 20)) -> ShardFailure:
    return ShardFailure(NodeId(node), *layers, count, memory)


@pytest.mark.parametrize(
    ("failures", "nodes", "chosen"),
    [
        ((failure("b", 1),), "abc", ["a", "b", "c"]),
        ((failure("b", 2),), "abc", ["a", "c"]),  # the third one follows
        ((failure("b", 2), failure("a", 3)), "abc", ["c"]),
        ((failure("b", 2),), "b", ["b"]),
        ((failure("b", 2, layers=(0, 10)),), "abc", ["a", "b", "c"]),
        ((failure("b", 1, memory=True), failure("b", 2, memory=True, layers=(8, 12))), "abc", ["a", "c"]),
    ],
)
def test_three_failures_of_a_shard_move_it_elsewhere_while_there_is_another_node(
    failures: tuple[ShardFailure, ...], nodes: str, chosen: list[str]
) -> None:
    leader = Leader()
    view = running(FAILED, FAILED, FAILED, nodes=nodes, failures=failures)
    ours = [stage for stage, name in enumerate("abc") if name != "b" and name in nodes]
    for stage in ours:
        view = with_runner(view, stage, state=READY)
    leader.decide(view, 1000)
    assert nodes_of(only_assignment(leader.decide(view, 1010))) == chosen


def test_a_healthy_time_ends_what_is_held_against_nodes() -> None:
    leader, counted = Leader(), (failure("b", 2), failure("c", 1, memory=True))
    leader.decide(running(READY, READY, READY, failures=counted), 1000)
    after = running(FAILED, READY, READY, failures=counted)
    soon = only_assignment(leader.decide(after, 1000 + PATIENCE.stable_s))
    assert {one.node_id for one in soon.shard_failures} == {"a", "c"}
    late = Leader()
    late.decide(running(READY, READY, READY, failures=counted), 1000)
    forgiven = only_assignment(late.decide(after, 1000 + PATIENCE.forgive_s))
    assert {one.node_id for one in forgiven.shard_failures} == {"a"}


def test_an_epoch_is_higher_than_any_that_a_runner_reports() -> None:
    view = running(READY, FAILED, READY, epoch=5000)
    view = replace(
        view, assignments={INSTANCE: Stored(replace(view.assignments[INSTANCE].value, epoch=5000), Revision(9))}
    )
    leader = Leader()
    leader.decide(view, 1000)
    assert only_assignment(leader.decide(view, 1001)).epoch == 5001


def test_a_refusal_says_that_a_lack_of_memory_is_remembered() -> None:
    leader = Leader()
    killed = with_runner(running(FAILED, nodes="a", placed="a", free=1100 * MIB), 0, is_out_of_memory=True)
    leader.decide(killed, 1000)
    refused = only_assignment(leader.decide(killed, 1001))
    assert refused.refusal.endswith("Less than is free counts where a runner was ended for lack of memory")


def test_failures_are_forgotten_once_the_instance_is_healthy_without_another_epoch() -> None:
    leader, counted = Leader(), (failure("b", 2), failure("c", 1, memory=True))
    view = running(READY, READY, READY, failures=counted)
    before = replace(view.assignments[INSTANCE].value, num_failures=2, last_failure="stage 1 on b failed")
    view = replace(view, assignments={INSTANCE: Stored(before, Revision(7))})
    assert leader.decide(view, 1000) == Decision((), 1000 + PATIENCE.stable_s)
    after = only_assignment(leader.decide(view, 1000 + PATIENCE.stable_s))
    assert (after.num_failures, after.last_failure, after.shard_failures) == (0, "", (counted[1],))
    assert (after.epoch, after.shards) == (7, before.shards)
    forgiving = replace(view, assignments={INSTANCE: Stored(after, Revision(8))})
    assert leader.decide(forgiving, 1011) == Decision((), 1000 + PATIENCE.forgive_s)
    assert not only_assignment(leader.decide(forgiving, 1000 + PATIENCE.forgive_s)).shard_failures


def test_an_instance_that_fits_nowhere_else_comes_back_on_a_node_that_is_emptied() -> None:
    leader = Leader()
    leader.decide(running(READY, nodes="a", placed="a"), 1000)
    again = only_assignment(leader.decide(draining(running(FAILED, nodes="a", placed="a"), "a"), 1001))
    assert nodes_of(again) == ["a"]
    other = only_assignment(leader.decide(draining(running(FAILED, nodes="ab", placed="a"), "a"), 1002))
    assert nodes_of(other) == ["b"]
