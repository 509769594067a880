"""What answers is moved only for a reason: off a node that is to be emptied, or onto nodes that came, idle and one at a time."""

from dataclasses import replace

import pytest

from paceline_control_plane.controllers.decision import Decision
from paceline_control_plane.topology.view import ClusterView, Stored
from paceline_services.domain.models import KnownModel, ModelSource
from paceline_services.domain.runners import RunnerState
from paceline_services.ids import InstanceId, NodeId, Revision
from support.leading import PATIENCE, Leader, assigned
from support.views import (
    GIB,
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

READY, LOADING = RunnerState.READY, RunnerState.LOADING
KNOWN = KnownModel(ModelSource(MODEL), make_card())
REST, GROWTH = PATIENCE.rest_s, PATIENCE.growth_s


def placed_on(decision: Decision) -> list[str]:
    return ["".join(shard.node_id for shard in one.shards) for one in assigned(decision)]


def running(
    placed: str, nodes: str = "abc", *, stages: int = 0, busy: bool = False, free: int = 4 * GIB
) -> ClusterView:
    view = make_view(
        {name: make_report(free) for name in nodes}, [make_spec(stages=stages)], {7: make_assignment(*placed)}, [KNOWN]
    )
    view = with_runners(view, 7, *[READY] * len(placed))
    return with_runner(view, len(placed) - 1, is_busy=busy)


def test_an_idle_instance_leaves_a_node_that_is_emptied_at_once_and_its_head_stays() -> None:
    assert placed_on(Leader().decide(draining(running("abc"), "b"), 1000)) == ["ac"]


def test_a_busy_instance_leaves_when_it_is_idle_or_patience_is_over() -> None:
    leader, busy = Leader(), draining(running("abc", busy=True), "b", 20)
    assert leader.decide(busy, 1000) == Decision((), 1020)
    assert placed_on(leader.decide(busy, 1020)) == ["ac"]
    early = Leader()
    early.decide(busy, 1000)
    assert placed_on(early.decide(draining(running("abc"), "b", 20), 1001)) == ["ac"]


def test_an_instance_that_fits_nowhere_else_stays_and_says_why_until_the_wish_ends() -> None:
    leader, view = Leader(), draining(running("a", "ab", free=GIB), "a")
    view = replace(view, reports={**view.reports, NodeId("b"): Stored(make_report(100 * MIB), Revision(1))})
    (told,) = assigned(leader.decide(view, 1000))
    assert (told.shards, told.epoch) == (make_assignment("a").shards, 7)
    assert told.refusal.startswith("it stays on a, as nothing else does: demo needs ")
    kept = replace(view, assignments={told.instance_id: Stored(told, Revision(9))})
    assert leader.decide(kept, 1001) == Decision()
    (again,) = assigned(leader.decide(replace(kept, drains={}), 1002))
    assert (again.refusal, again.epoch) == ("", 7)


def test_nothing_is_placed_on_a_node_that_is_emptied_and_a_silent_one_is_waited_for() -> None:
    view = make_view({name: make_report() for name in "abc"}, [make_spec()], models=[KNOWN])
    assert placed_on(Leader().decide(draining(view, "a"), 1000)) == ["bc"]
    assert Leader().decide(with_silent_node(draining(view, "a"), "b"), 1000) == Decision()
    (refused,) = assigned(Leader().decide(draining(draining(draining(view, "a"), "b"), "c"), 1000))
    assert "paceline drain NODE --undo" in refused.refusal


@pytest.mark.parametrize(
    ("placed", "stages", "busy", "due"),
    [
        ("ab", 0, False, REST),  # every usable node is wanted
        ("ab", 3, False, REST),  # it was shrunk
        ("ab", 0, True, None),  # never in the middle of its work for more speed alone
        ("ab", 3, True, PATIENCE.growth_patience_s),
        ("ab", 2, False, None),  # it has what was wanted
        ("abc", 0, False, None),
    ],
)
def test_an_instance_gets_the_stages_that_it_lacks_when_it_rests(
    placed: str, stages: int, busy: bool, due: float | None
) -> None:
    leader, view = Leader(), running(placed, stages=stages, busy=busy)
    assert leader.decide(view, 1000) == Decision((), due and 1000 + due)
    later = 1000 + (due or 10_000)
    assert placed_on(leader.decide(view, later - 1)) == []
    assert placed_on(leader.decide(view, later)) == (["acb"] if due else [])


def test_growth_must_have_been_possible_without_interruption() -> None:
    leader, small, large = Leader(), running("ab", "ab"), running("ab")
    leader.decide(small, 1000)
    assert leader.decide(large, 1100) == Decision((), 1100 + GROWTH)
    assert leader.decide(small, 1120) == Decision()
    assert leader.decide(large, 1125) == Decision((), 1125 + GROWTH)
    assert placed_on(leader.decide(large, 1125 + GROWTH)) == ["acb"]


def test_nothing_moves_while_another_instance_loads() -> None:
    leader, other = Leader(), InstanceId("other")
    view = draining(running("abc"), "b")
    loading = with_runners(
        replace(
            view,
            specs={**view.specs, other: Stored(make_spec("other"), Revision(2))},
            assignments={**view.assignments, other: Stored(make_assignment("c", instance="other"), Revision(8))},
        ),
        8,
        LOADING,
        instance="other",
    )
    assert leader.decide(loading, 1000) == Decision()
    assert placed_on(leader.decide(view, 1001)) == ["ac"]


def test_two_instances_leave_a_node_one_after_the_other() -> None:
    other = InstanceId("other")
    view = draining(running("abc"), "b")
    both = with_runners(
        replace(
            view,
            specs={**view.specs, other: Stored(make_spec("other"), Revision(2))},
            assignments={**view.assignments, other: Stored(make_assignment("b", instance="other"), Revision(8))},
        ),
        8,
        READY,
        instance="other",
    )
    assert len(placed_on(Leader().decide(both, 1000))) == 1
