"""Instances whose stages have ranks: what nodes are told, how they are shown, what ends an epoch and what comes after it."""

from dataclasses import replace

import pytest

from paceline_control_plane.api.placement import preview
from paceline_control_plane.controllers.changes import next_changes
from paceline_control_plane.controllers.memory import Memory
from paceline_control_plane.registry.admission import check_report
from paceline_control_plane.registry.orders import wanted_shards
from paceline_control_plane.topology.loads import LoadBoard, with_loads
from paceline_control_plane.topology.observe import observe_cluster, observe_instance
from paceline_control_plane.topology.view import ClusterView, Stored
from paceline_services.domain.instances import (
    Assignment,
    InstanceRecord,
    InstanceState,
    ShardPlacement,
    Strategy,
    first_ranks,
)
from paceline_services.domain.models import KnownModel, ModelSource
from paceline_services.domain.nodes import LastOrders, NodeInventory, RdmaInventory, ThunderboltPort
from paceline_services.domain.runners import GroupBackend, RunnerLoad, RunnerState, ShardAssignment
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import NodeId, Revision
from support.leading import PATIENCE, Leader, assigned, only_assignment
from support.views import (
    INSTANCE,
    MODEL,
    draining,
    make_assignment,
    make_card,
    make_inventory,
    make_report,
    make_spec,
    make_view,
    ready_model,
    with_ranks,
    with_runner,
    with_runners,
    with_silent_node,
)

LOADING, LOADED, READY = RunnerState.LOADING, RunnerState.LOADED, RunnerState.READY
BROKEN, FAILED = RunnerState.BROKEN, RunnerState.FAILED
CARD = with_ranks(make_card(), 1, 2, 3, 4, num_kv_heads=12)
KNOWN = KnownModel(ModelSource(MODEL), CARD)
EPOCH = 7


def running(
    *states: RunnerState | None, placed: str = "abcd", nodes: str = "abcd", ranks: int = 2, stages: int = 0
) -> ClusterView:
    """Stages of so many ranks on the nodes that placed names, by stage and rank, with runners in these states."""
    strategy = Strategy.HYBRID if len(placed) > ranks else Strategy.TENSOR
    spec = make_spec(strategy=strategy, stages=stages, ranks=ranks)
    reports = {name: make_report() for name in nodes}
    view = make_view(reports, [spec], {EPOCH: make_assignment(*placed, ranks=ranks)}, [KNOWN])
    return with_runners(view, EPOCH, *states)


def told(view: ClusterView) -> list[ShardAssignment]:
    """Every shard as its node is told, by stage and rank."""
    shards = [shard for node_id in view.nodes for shard in wanted_shards(view, node_id)]
    return sorted(shards, key=lambda shard: (shard.stage, shard.rank))


def places(assignment: Assignment) -> list[tuple[str, int, int]]:
    return [(shard.node_id, shard.stage, shard.rank) for shard in assignment.shards]


def with_inventory(view: ClusterView, node: str, **changes: object) -> ClusterView:
    """The view with another inventory of a node."""
    stored = view.nodes[NodeId(node)]
    changed = replace(stored.value, inventory=replace(stored.value.inventory, **changes))  # type: ignore[arg-type]
    return replace(view, nodes={**view.nodes, NodeId(node): Stored(changed, stored.revision)})


def test_each_rank_has_its_seat_in_the_group_of_its_stage() -> None:
    shards = told(running())
    assert [(one.stage, one.num_stages, one.rank, one.num_ranks) for one in shards] == [
        *((0, 2, 0, 2), (0, 2, 1, 2), (1, 2, 0, 2), (1, 2, 1, 2))
    ]
    seats = [one.group for one in shards]
    assert [(seat.backend, seat.rank, seat.size, seat.addresses) for seat in seats if seat] == [
        (GroupBackend.RING, one.rank, 2, ()) for one in shards
    ]
    assert [(one.start_layer, one.end_layer) for one in shards] == [(0, 15), (0, 15), (15, 30), (15, 30)]


def test_members_are_told_all_addresses_of_their_group_once_every_one_has_set_one_aside() -> None:
    view = running(LOADING, LOADING, LOADING, LOADING)
    for place in (0, 1, 2):
        view = with_runner(view, place, group_address=f"10.0.0.{place}:700")
    seats = [shard.group for shard in told(view)]
    both = ("10.0.0.0:700", "10.0.0.1:700")
    assert [seat.addresses for seat in seats if seat] == [both, both, (), ()]
    older = with_runner(view, 1, epoch=EPOCH - 1)
    assert all(shard.group and shard.group.addresses == () for shard in told(older))


def test_only_rank_0_is_told_where_other_ranks_and_the_next_stage_listen() -> None:
    first, second, head, last = told(running(LOADED, LOADED, LOADED, LOADED))
    assert (first.rank_addresses, first.next_address) == (("127.0.0.1:5001",), "127.0.0.1:5002")
    assert (head.rank_addresses, head.next_address) == (("127.0.0.1:5003",), "127.0.0.1:5000")
    assert [(one.rank_addresses, one.next_address) for one in (second, last)] == [((), "")] * 2


def test_rank_0_is_told_of_the_others_only_once_all_of_them_listen() -> None:
    view = running(LOADED, LOADED, LOADING, placed="abc", ranks=3)
    early = with_runner(view, 2, address="")
    assert [one.rank_addresses for one in told(early)] == [(), (), ()]
    assert [one.rank_addresses for one in told(view)] == [("127.0.0.1:5001", "127.0.0.1:5002"), (), ()]
    assert [one.next_address for one in told(view)] == ["", "", ""]


def test_the_draft_is_the_heads_alone() -> None:
    view = running()
    spec = replace(view.specs[INSTANCE].value, draft=ModelSource(MODEL))
    drafting = replace(view, specs={INSTANCE: Stored(spec, Revision(2))})
    assert [bool(shard.draft_model_id) for shard in told(drafting)] == [False, False, True, False]
    assert [shard.is_head for shard in told(drafting)] == [False, False, True, False]


def test_members_over_rdma_are_told_the_devices_of_all() -> None:
    view = running(placed="ab", nodes="ab")
    rows = (("", "rdma_en3"), ("rdma_en5", ""))
    before = view.assignments[INSTANCE].value
    shards = tuple(replace(one, rdma_devices=row) for one, row in zip(before.shards, rows, strict=True))
    meshed = replace(before, shards=shards, group_backend=GroupBackend.JACCL)
    view = replace(view, assignments={INSTANCE: Stored(meshed, Revision(EPOCH))})
    for shard in told(view):
        assert shard.group
        assert shard.group.backend is GroupBackend.JACCL
        assert tuple(devices.names for devices in shard.group.rdma_devices) == rows


def test_stages_that_hand_off_in_a_group_have_their_stage_as_rank() -> None:
    assignment = replace(make_assignment("a", "b"), hands_off_in_group=True)
    view = make_view({"a": make_report(), "b": make_report()}, [make_spec()], {EPOCH: assignment})
    shards = told(with_runners(view, EPOCH, LOADED, LOADED))
    assert [(one.group.rank, one.group.size) for one in shards if one.group] == [(0, 2), (1, 2)]
    assert [(one.next_address, one.rank_addresses) for one in shards] == [
        ("127.0.0.1:5001", ()),
        ("127.0.0.1:5000", ()),
    ]


def test_an_instance_is_active_once_every_rank_is_ready_and_answers_at_rank_0_of_its_last_stage() -> None:
    assert observe_instance(running(READY, READY, READY, LOADED), INSTANCE).state is InstanceState.LOADING
    seen = observe_instance(running(READY, READY, READY, READY), INSTANCE)
    assert (seen.state, seen.head_address) == (InstanceState.ACTIVE, "127.0.0.1:5002")
    assert [shard.placement.node_id for shard in first_ranks(seen.shards)] == ["a", "c"]


def test_messages_name_ranks_where_there_are_any() -> None:
    assert observe_instance(running(READY, LOADING, placed="ab"), INSTANCE).message == (
        "stage 0 rank 1 on b loading, 100%"
    )
    failed = observe_instance(running(READY, FAILED, placed="ab"), INSTANCE)
    assert failed.message == "starting again: stage 0 rank 1 on b failed: boom 1"
    broken = with_runner(running(BROKEN, LOADED, placed="ab"), 0, lost_rank=1)
    assert "stage 0 rank 0 on a lost rank 1" in observe_instance(broken, INSTANCE).message


async def test_loads_of_two_ranks_on_one_node_are_kept_apart() -> None:
    view = running(READY, READY, placed="aa", nodes="a")
    board = LoadBoard(interval_s=0.0)
    runners = [
        replace(one, load=RunnerLoad(num_steps=number)) for number, one in enumerate(view.report(NodeId("a")).runners)
    ]
    board.take(NodeId("a"), runners)
    loads = await board.changed(board.current)
    (instance,) = with_loads(observe_cluster(view), loads).instances
    assert [one.runner.load.num_steps for one in instance.shards if one.runner and one.runner.load] == [0, 1]


def studio(node: str, *, peer: str, is_enabled: bool = True) -> NodeInventory:
    """A Mac Studio with one Thunderbolt cable to another one."""
    port = ThunderboltPort("2", "en3", f"rdma_{node}", True, node, peer, 80)
    return replace(
        make_inventory(node),
        os="darwin",
        architecture="arm64",
        accelerator="metal",
        os_version="macOS 26.2",
        rdma=RdmaInventory(is_enabled, "" if is_enabled else "run rdma_ctl enable in recovery", (port,)),
    )


def on_studios(view: ClusterView, *, is_enabled: bool = True) -> ClusterView:
    for node, peer in ("ab", "ba"):
        inventory = studio(node, peer=peer, is_enabled=is_enabled)
        stored = view.nodes[NodeId(node)]
        changed = Stored(replace(stored.value, inventory=inventory), stored.revision)
        view = replace(view, nodes={**view.nodes, NodeId(node): changed})
    return view


def wanting(nodes: str, **wish: int | Strategy) -> ClusterView:
    """A wish that nobody has placed yet."""
    spec = make_spec(**wish)  # type: ignore[arg-type]
    return make_view({name: make_report(models=[ready_model(CARD)]) for name in nodes}, [spec], models=[KNOWN])


def test_nodes_that_are_a_mesh_compute_over_rdma() -> None:
    placed = only_assignment(Leader().decide(on_studios(wanting("ab", strategy=Strategy.TENSOR)), 0))
    assert placed.group_backend is GroupBackend.JACCL
    assert [shard.rdma_devices for shard in placed.shards] == [("", "rdma_a"), ("rdma_b", "")]


def test_why_nodes_with_rdma_compute_over_tcp_is_told() -> None:
    view = on_studios(wanting("ab", strategy=Strategy.TENSOR), is_enabled=False)
    placed = only_assignment(Leader().decide(view, 0))
    assert placed.group_backend is GroupBackend.RING
    written = replace(view, assignments={INSTANCE: Stored(placed, Revision(placed.epoch))})
    seen = observe_instance(with_runners(written, placed.epoch, READY, READY), INSTANCE)
    assert (seen.state, seen.group_backend) == (InstanceState.ACTIVE, GroupBackend.RING)
    assert seen.message == (
        "ranks compute together over TCP, not RDMA: RDMA is off on node a: run rdma_ctl enable in recovery"
    )
    shown = preview(view, make_spec("", strategy=Strategy.TENSOR))
    assert [one.message != "" for one in shown] == [False, True]


def test_stages_hand_off_over_rdma_only_where_that_is_asked_for() -> None:
    view = on_studios(wanting("ab", stages=2))
    for may, backend, rows in (
        (False, GroupBackend.RING, [(), ()]),
        (True, GroupBackend.JACCL, [("", "rdma_a"), ("rdma_b", "")]),
    ):
        placed = only_assignment(next_changes(view, 0, Memory(0), PATIENCE, may_hand_off=may))
        assert (placed.hands_off_in_group, placed.group_backend) == (may, backend)
        assert [shard.rdma_devices for shard in placed.shards] == rows
    other = wanting("ab", stages=2)
    assert not only_assignment(next_changes(other, 0, Memory(0), PATIENCE, may_hand_off=True)).hands_off_in_group


def test_nothing_is_said_of_rdma_where_no_node_has_it() -> None:
    assert observe_instance(running(READY, READY, placed="ab"), INSTANCE).message == ""


def test_cuda_nodes_compute_over_nccl() -> None:
    view = wanting("ab", strategy=Strategy.TENSOR)
    for node in "ab":
        view = with_inventory(view, node, accelerator="cuda")
    assert only_assignment(Leader().decide(view, 0)).group_backend is GroupBackend.NCCL


def test_a_wish_for_ranks_is_placed_on_nodes_that_compute_alike() -> None:
    view = with_inventory(wanting("abc", strategy=Strategy.TENSOR, ranks=2), "a", accelerator="metal")
    assert places(only_assignment(Leader().decide(view, 0))) == [("b", 0, 0), ("c", 0, 1)]


def test_nodes_of_two_versions_of_paceline_share_no_stage() -> None:
    view = wanting("abc", strategy=Strategy.TENSOR, ranks=2)
    for node, version in (("a", "1.0"), ("b", "1.1"), ("c", "1.1")):
        view = with_inventory(view, node, version=version)
    assert places(only_assignment(Leader().decide(view, 0))) == [("b", 0, 0), ("c", 0, 1)]


def test_nodes_of_an_older_version_get_no_rank_but_stages() -> None:
    old = with_inventory(wanting("abc", strategy=Strategy.TENSOR, ranks=2), "a", protocol_version=2)
    assert places(only_assignment(Leader().decide(old, 0))) == [("b", 0, 0), ("c", 0, 1)]
    refused = only_assignment(Leader().decide(with_inventory(old, "b", protocol_version=2), 0))
    assert "knows no ranks" in refused.refusal
    pipeline = with_inventory(wanting("abc", stages=3), "a", protocol_version=2)
    assert places(only_assignment(Leader().decide(pipeline, 0))) == [("a", 0, 0), ("b", 1, 0), ("c", 2, 0)]


def test_a_card_without_sizes_of_groups_gives_way_to_one_with_them() -> None:
    old = KnownModel(ModelSource(MODEL), make_card())
    view = replace(wanting("ab", strategy=Strategy.TENSOR), models={MODEL: Stored(old, Revision(3))})
    decision = Leader().decide(view, 0)
    assert view.card(MODEL) == CARD
    assert len(only_assignment(decision).shards) == 2
    assert any(getattr(change, "model", None) == KNOWN for change in decision.changes)


def test_a_report_of_shards_that_are_no_whole_stages_is_refused() -> None:
    def report(*shards: ShardPlacement) -> tuple[LastOrders, NodeInventory]:
        assignment = replace(make_assignment("a"), shards=shards, epoch=EPOCH)
        return LastOrders("x", Revision(1), (InstanceRecord(make_spec(), assignment),)), make_inventory("a")  # type: ignore[arg-type]

    whole = make_assignment("a", "b", "c", "d", ranks=2).shards
    for shards in (whole, whole[:2], ()):
        orders, inventory = report(*shards)
        check_report(replace(make_report(), last_orders=orders), inventory)
    for shards in (whole[:3], whole[1:], (*whole[:3], replace(whole[3], rank=2**32 - 1)), (whole[1], whole[0])):
        orders, inventory = report(*shards)
        with pytest.raises(InvalidRequestError, match="contradicts itself"):
            check_report(replace(make_report(), last_orders=orders), inventory)


def test_a_rank_that_fails_starts_the_whole_group_anew_on_the_same_nodes_at_once() -> None:
    leader = Leader()
    leader.decide(running(READY, READY, placed="ab", nodes="ab"), 1000)
    broken = with_runner(running(BROKEN, FAILED, placed="ab", nodes="ab"), 0, lost_rank=1)
    again = only_assignment(leader.decide(broken, 1001))
    assert places(again) == [("a", 0, 0), ("b", 0, 1)]
    assert again.epoch > EPOCH
    assert [failure.node_id for failure in again.shard_failures] == ["b"]


def test_a_rank_whose_node_is_gone_is_replaced_at_once_by_another_node() -> None:
    leader = Leader()
    leader.decide(running(READY, READY, placed="ab", nodes="abc"), 1000)
    broken = with_runner(running(BROKEN, None, placed="ab", nodes="ac"), 0, lost_rank=1)
    assert places(only_assignment(leader.decide(broken, 1001))) == [("a", 0, 0), ("c", 0, 1)]


@pytest.mark.parametrize(("left", "found"), [("abc", 3), ("ab", 2), ("a", 1)])
def test_without_another_node_the_next_smaller_number_of_ranks_does(left: str, found: int) -> None:
    leader = Leader()
    leader.decide(running(READY, READY, READY, READY, ranks=4), 1000)
    states = [BROKEN if name in left else None for name in "abcd"]
    broken = with_runner(running(*states, ranks=4, nodes=left), 0, lost_rank=3)
    assert places(only_assignment(leader.decide(broken, 1001))) == [(left[rank], 0, rank) for rank in range(found)]


def test_a_link_between_ranks_that_broke_twice_is_avoided() -> None:
    def parted(view: ClusterView) -> ClusterView:
        return with_runner(with_runner(view, 0, lost_rank=1), 1, lost_rank=0)

    leader, now = Leader(), 1000.0
    view = running(READY, READY, placed="ab", nodes="abc")
    leader.decide(view, now)
    again = only_assignment(leader.decide(parted(running(BROKEN, BROKEN, placed="ab", nodes="abc")), now + 1))
    assert places(again) == [("a", 0, 0), ("b", 0, 1)]
    second = replace(view, assignments={INSTANCE: Stored(again, Revision(again.epoch))}, revision=Revision(1001))
    cleared = {name: replace(one, value=replace(one.value, runners=())) for name, one in second.reports.items()}
    second = replace(second, reports=cleared)
    leader.decide(with_runners(second, again.epoch, READY, READY), now + 2)
    broken = parted(with_runners(second, again.epoch, BROKEN, BROKEN))
    leader.decide(broken, now + 3)
    elsewhere = only_assignment(leader.decide(broken, now + 3 + PATIENCE.pause_s(2, was_ready=True)))
    assert {node for node, *_ in places(elsewhere)} != {"a", "b"}


def test_an_instance_gets_the_ranks_back_that_it_lacks_when_it_rests() -> None:
    leader, shrunk = Leader(), running(READY, READY, placed="ab", nodes="ab", ranks=2)
    spec = make_spec(strategy=Strategy.TENSOR, ranks=4)
    shrunk = replace(shrunk, specs={INSTANCE: Stored(spec, Revision(2))})
    assert assigned(leader.decide(shrunk, 1000)) == []
    whole = replace(running(READY, READY, placed="ab", nodes="abcd", ranks=2), specs=shrunk.specs)
    leader.decide(whole, 1010)
    assert assigned(leader.decide(whole, 1010 + PATIENCE.growth_s)) == [], "it has not rested"
    due = 1000 + max(10 + PATIENCE.growth_s, PATIENCE.rest_s)
    assert len(only_assignment(leader.decide(whole, due)).shards) == 4
    busy = with_runner(whole, 0, is_busy=True)
    assert assigned(leader.decide(busy, due)) == []
    assert len(only_assignment(leader.decide(busy, 1010 + PATIENCE.growth_patience_s)).shards) == 4


def test_a_group_leaves_a_node_that_is_emptied() -> None:
    view = draining(running(READY, READY, placed="ab", nodes="abc"), "b")
    assert places(only_assignment(Leader().decide(view, 1000))) == [("a", 0, 0), ("c", 0, 1)]


def test_a_silent_node_whose_group_is_content_is_left_alone() -> None:
    view = with_silent_node(running(READY, READY, placed="ab", nodes="abc"), "b")
    assert assigned(Leader().decide(view, 1000)) == []
