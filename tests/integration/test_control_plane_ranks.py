"""Ranks of a stage over a real etcd and gRPC: addresses come round to every member, and a lost rank starts the group anew."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from paceline_services.clients import ControlPlaneClient
from paceline_services.domain.instances import Instance, InstanceState, Strategy
from paceline_services.domain.nodes import NodeState
from paceline_services.domain.runners import GroupBackend, RunnerReport, RunnerState, ShardAssignment
from paceline_services.errors import InvalidRequestError
from support.replicas import (
    FakeAgent,
    ReplicaProcess,
    at_epoch,
    is_active_on,
    running_agent,
    wait_for_instance,
    wait_for_state,
)
from support.views import MODEL, make_card, make_report, make_spec, ready_model, with_ranks

CARD = with_ranks(make_card(), 1, 2, 4, num_kv_heads=4, refusal="16 heads over 4 of keys and values: 1, 2 or 4 ranks")


@pytest.fixture
async def agents(replica: ReplicaProcess) -> AsyncIterator[dict[str, FakeAgent]]:
    """Four nodes, whose runners are what a shard with a seat goes through: LOADING until its group has addresses, then as far as it can."""
    report = make_report(models=[ready_model(CARD)])
    async with AsyncExitStack() as stack:
        joined = {
            name: await stack.enter_async_context(running_agent([replica.address], name, report)) for name in "abcd"
        }
        for agent in joined.values():
            agent.runner_state = reach
            agent.change_runners(hide_address)
        yield joined


def reach(shard: ShardAssignment) -> RunnerState:
    """The state that a runner reaches with what it has been told."""
    if shard.group and not shard.group.addresses:
        return RunnerState.LOADING
    is_linked = shard.rank > 0 or len(shard.rank_addresses) == shard.num_ranks - 1
    has_next = shard.rank > 0 or shard.num_stages == 1 or shard.next_address
    return RunnerState.READY if is_linked and has_next else RunnerState.LOADED


def hide_address(report: RunnerReport) -> RunnerReport:
    """A runner that loads does not listen yet."""
    return replace(report, address="") if report.state is RunnerState.LOADING else report


async def place(client: ControlPlaneClient, *nodes: str, **wish: int | Strategy) -> Instance:
    await wait_for_state(client, lambda state: sum(node.state is NodeState.UP for node in state.nodes) == 4)
    await client.place_instance(make_spec("", **wish))  # type: ignore[arg-type]
    return await wait_for_instance(client, is_active_on(*nodes))


async def test_four_ranks_are_told_of_one_another_and_answer(
    agents: dict[str, FakeAgent], client: ControlPlaneClient
) -> None:
    instance = await place(client, *"abcd", strategy=Strategy.TENSOR)
    assert instance.head_address == "127.0.0.1:20000"
    assert (instance.spec.strategy, instance.group_backend) == (Strategy.TENSOR, GroupBackend.RING)
    for rank, agent in enumerate(agents.values()):
        assert agent.orders
        (shard,) = agent.orders.shards
        assert (shard.rank, shard.num_ranks, shard.num_stages, shard.next_address) == (rank, 4, 1, "")
        assert shard.group
        assert shard.group.addresses == tuple(f"127.0.0.1:{30000 + 100 * other}" for other in range(4))
        others = tuple(f"127.0.0.1:{20000 + 100 * other}" for other in range(1, 4))
        assert shard.rank_addresses == (() if rank else others)


async def test_stages_of_two_ranks_are_one_pipeline(agents: dict[str, FakeAgent], client: ControlPlaneClient) -> None:
    instance = await place(client, *"abcd", strategy=Strategy.HYBRID, stages=2, ranks=2)
    assert instance.head_address == "127.0.0.1:20001"
    shards = [agent.orders.shards[0] for agent in agents.values() if agent.orders]
    assert [shard.next_address for shard in shards] == ["127.0.0.1:20001", "", "127.0.0.1:20000", ""]
    assert [shard.group.addresses for shard in shards if shard.group] == [
        *[("127.0.0.1:30000", "127.0.0.1:30100")] * 2,
        *[("127.0.0.1:30001", "127.0.0.1:30101")] * 2,
    ]


async def test_a_rank_that_fails_starts_every_member_anew(
    agents: dict[str, FakeAgent], client: ControlPlaneClient
) -> None:
    before = await place(client, *"ab", strategy=Strategy.TENSOR, ranks=2)
    agents["b"].change_runners(at_epoch(before.epoch, state=RunnerState.FAILED))
    agents["a"].change_runners(at_epoch(before.epoch, state=RunnerState.BROKEN, lost_rank=1))
    again = await wait_for_instance(client, lambda one: one.epoch > before.epoch and is_active_on("a", "b")(one))
    assert [shard.runner.epoch for shard in again.shards if shard.runner] == [again.epoch] * 2


async def test_ranks_that_cannot_be_are_refused_with_those_that_can(
    agents: dict[str, FakeAgent], client: ControlPlaneClient
) -> None:
    await place(client, *"abcd", stages=4)
    with pytest.raises(InvalidRequestError, match="use strategy tensor or hybrid"):
        await client.place_instance(make_spec("", ranks=2))
    await client.place_instance(make_spec("three", strategy=Strategy.TENSOR, ranks=3))
    refused = await wait_for_instance(client, lambda one: one.state is InstanceState.UNPLACEABLE)
    assert refused.message == f"{MODEL} cannot be divided over 3 ranks: {CARD.tensor_refusal}"
    previews = await client.preview_placements(make_spec("", strategy=Strategy.TENSOR))
    assert [(one.tensor_size, len(one.shards)) for one in previews] == [(1, 1), (2, 2), (3, 0), (4, 4)]
