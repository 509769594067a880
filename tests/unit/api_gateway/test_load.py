"""How busy an instance is: our own requests and what its head says of others'."""

from dataclasses import replace

from paceline_api_gateway.routing.load import add_loads, follow_loads
from paceline_services.domain.instances import Shard, ShardPlacement
from paceline_services.ids import InstanceId, NodeId
from support.head import make_instance, make_state, with_load

A, B = InstanceId("a"), InstanceId("b")


def test_what_a_head_reports_beyond_our_own_is_others() -> None:
    seen = follow_loads({}, make_state(with_load(make_instance(A), 5, 2)), {A: 3})
    assert add_loads(seen, {A: 3}) == {A: 7}
    assert add_loads(seen, {}) == {A: 4}, "three of ours have ended since"


def test_report_that_did_not_change_says_nothing_new() -> None:
    state = make_state(with_load(make_instance(A), 5))
    seen = follow_loads({}, state, {A: 5})
    assert add_loads(follow_loads(seen, state, {}), {}) == {A: 0}
    later = make_state(with_load(make_instance(A), 5, num_steps=2))
    assert add_loads(follow_loads(seen, later, {}), {}) == {A: 5}


def test_report_older_than_our_newest_requests_leaves_no_negative_load() -> None:
    seen = follow_loads({}, make_state(with_load(make_instance(A), 1)), {A: 4})
    assert add_loads(seen, {A: 4}) == {A: 4}


def test_instances_without_report_count_by_our_requests_alone() -> None:
    unreported = replace(make_instance(B), shards=(Shard(ShardPlacement(NodeId("n"), 0, 0, 1)),))
    seen = follow_loads({}, make_state(make_instance(A), unreported), {})
    assert add_loads(seen, {A: 2}) == {A: 2}


def test_load_is_that_of_rank_0_of_the_last_stage() -> None:
    head = with_load(make_instance(A), 6).shards[0]
    first = with_load(make_instance(A), 0).shards[0]
    other = replace(first, placement=replace(first.placement, stage=1, rank=1))
    shards = (replace(head, placement=replace(head.placement, stage=1)), first, other)
    seen = follow_loads({}, make_state(replace(make_instance(A), shards=shards)), {})
    assert add_loads(seen, {}) == {A: 6}


def test_instance_that_is_gone_is_forgotten() -> None:
    seen = follow_loads({}, make_state(with_load(make_instance(A), 1)), {})
    assert follow_loads(seen, make_state(), {}) == {}
