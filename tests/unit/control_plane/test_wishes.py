"""Placing twice places once; names that mean something else and unknown models are refused with a reason."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from paceline_control_plane.api.placement import preview
from paceline_control_plane.api.wishes import Wishes, name_instance, name_next, share_nodes
from paceline_control_plane.keys import Keys
from paceline_control_plane.records import encode_assignment, encode_node, encode_report
from paceline_control_plane.store.interface import Put
from paceline_control_plane.store.memory import MemoryStore
from paceline_control_plane.topology.feed import ClusterFeed
from paceline_services.domain.instances import Assignment, InstanceSpec, ShardFailure
from paceline_services.domain.models import ModelSource
from paceline_services.domain.nodes import Node, NodeState
from paceline_services.domain.runners import Precision
from paceline_services.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from paceline_services.ids import InstanceId, ModelId, NodeId, parse_instance_id
from support.views import MODEL, failed_model, make_assignment, make_inventory, make_report, make_spec, make_view

KEYS = Keys("test")


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    """A store with one node that has the demo model."""
    store = MemoryStore()
    node = encode_node(Node(make_inventory("a"), NodeState.UP))
    await store.transact(
        [], [Put(KEYS.node(NodeId("a")), node), Put(KEYS.report(NodeId("a")), encode_report(make_report()))]
    )
    yield store
    await store.close()


@pytest.fixture
async def wishes(store: MemoryStore) -> AsyncIterator[Wishes]:
    feed = ClusterFeed(store, KEYS)
    following = asyncio.create_task(feed.run())
    await feed.changed(None)
    yield Wishes(store, KEYS, feed)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_wish_is_stored_with_id_and_time(wishes: Wishes) -> None:
    spec, created = await wishes.place(make_spec(""))
    assert created
    assert spec.instance_id == "demo"
    assert spec.create_time is not None


async def test_a_wish_for_a_model_that_is_wanted_already_is_that_instance(wishes: Wishes) -> None:
    first, _ = await wishes.place(make_spec("mine", stages=2))
    assert await wishes.place(make_spec("")) == (first, False)


async def test_clients_who_want_a_model_at_once_get_the_same_instance(wishes: Wishes) -> None:
    answers = await asyncio.gather(*(wishes.place(make_spec("")) for _ in range(8)))
    assert {spec.instance_id for spec, _ in answers} == {"demo"}
    assert sum(created for _, created in answers) == 1


async def test_a_new_instance_id_makes_another_instance(wishes: Wishes) -> None:
    await wishes.place(make_spec("one"))
    assert (await wishes.place(make_spec("two")))[1]


async def test_the_same_wish_again_is_not_created_again(wishes: Wishes) -> None:
    first, _ = await wishes.place(make_spec("one", stages=2, location="/models/demo"))
    assert await wishes.place(make_spec("one", stages=2)) == (first, False)
    assert await wishes.place(make_spec("one", stages=2, location="/models/demo")) == (first, False)


def ids_of(specs: Sequence[InstanceSpec]) -> list[str]:
    return [spec.instance_id for spec in specs]


async def test_replicas_are_named_after_the_model_and_counted(wishes: Wishes) -> None:
    specs, created = await wishes.place_replicas(make_spec(""), 3)
    assert (ids_of(specs), created) == (["demo", "demo-2", "demo-3"], True)
    assert {replace(spec, instance_id=MODEL, create_time=None) for spec in specs} == {make_spec(MODEL, stages=1)}


async def test_as_many_replicas_again_change_nothing_and_more_add_what_lacks(wishes: Wishes) -> None:
    first, _ = await wishes.place_replicas(make_spec(""), 2)
    assert await wishes.place_replicas(make_spec(""), 2) == (first, False)
    assert await wishes.place_replicas(make_spec(""), 1) == (first[:1], False)
    more, created = await wishes.place_replicas(make_spec(""), 3)
    assert (more[:2], ids_of(more), created) == (first, ["demo", "demo-2", "demo-3"], True)


async def test_instances_of_other_names_count_and_gaps_are_filled(wishes: Wishes) -> None:
    await wishes.place(make_spec("mine"))
    assert ids_of((await wishes.place_replicas(make_spec(""), 3))[0]) == ["demo", "demo-2", "mine"]
    await wishes.remove(InstanceId("demo"))
    assert ids_of((await wishes.place_replicas(make_spec(""), 3))[0]) == ["demo", "demo-2", "mine"]


async def test_replicas_are_in_the_order_of_their_numbers(wishes: Wishes) -> None:
    specs, _ = await wishes.place_replicas(make_spec(""), 11)
    assert ids_of(specs) == ["demo", *(f"demo-{number}" for number in range(2, 12))]


async def test_clients_who_want_replicas_at_once_get_the_same_ones(wishes: Wishes) -> None:
    answers = await asyncio.gather(*(wishes.place_replicas(make_spec(""), number) for number in (2, 3, 3, 2, 1)))
    assert ids_of(max((specs for specs, _ in answers), key=len)) == ["demo", "demo-2", "demo-3"]
    assert len((await wishes.place_replicas(make_spec(""), 3))[0]) == 3
    assert not (await wishes.place_replicas(make_spec(""), 3))[1]


async def test_replicas_of_a_named_instance_carry_its_name(wishes: Wishes) -> None:
    specs, _ = await wishes.place_replicas(make_spec("mine", stages=1), 2)
    assert ids_of(specs) == ["mine", "mine-2"]
    assert await wishes.place_replicas(make_spec("mine"), 2) == (specs, False)
    with pytest.raises(ConflictError):
        await wishes.place_replicas(make_spec("mine", stages=2), 2)


async def test_a_replica_passes_over_the_name_of_another_model(wishes: Wishes) -> None:
    await wishes.place(make_spec("demo-2", model="other", location="/other"))
    assert ids_of((await wishes.place_replicas(make_spec(""), 2))[0]) == ["demo", "demo-3"]


async def test_long_names_have_room_for_a_number() -> None:
    name = "x" * 63
    wanted = {InstanceId(name): make_spec(name), InstanceId("x" * 61 + "-2"): make_spec("x" * 61 + "-2")}
    assert name_next(wanted, make_spec(name)) == "x" * 61 + "-3"


@pytest.mark.parametrize("number", [-1, 0, 65])
async def test_an_unusable_number_of_replicas_is_refused(wishes: Wishes, number: int) -> None:
    with pytest.raises(InvalidRequestError, match="ask for 1 to 64"):
        await wishes.place_replicas(make_spec(""), number)


@pytest.mark.parametrize(
    ("nodes", "failed", "replicas", "stages"),
    [(4, 0, 2, 2), (5, 0, 2, 2), (2, 0, 3, 1), (0, 0, 2, 1), (4, 2, 2, 1), (4, 0, 1, 0)],
)
def test_replicas_divide_the_nodes_that_can_have_the_model(nodes: int, failed: int, replicas: int, stages: int) -> None:
    reports = {
        f"n{number}": make_report(models=[failed_model("full")] if number < failed else None) for number in range(nodes)
    }
    assert share_nodes(make_view(reports), make_spec(""), replicas).num_stages == stages


@pytest.mark.parametrize("kv_bits", [1, 5, 16])
async def test_other_kv_bits_are_refused_before_anything_is_stored(wishes: Wishes, kv_bits: int) -> None:
    with pytest.raises(InvalidRequestError, match="use 8 or 4"):
        await wishes.place(replace(make_spec(""), kv_bits=kv_bits))
    assert (await wishes.place(replace(make_spec(""), kv_bits=8)))[0].kv_bits == 8


async def test_a_draft_must_be_known_and_another_model(wishes: Wishes) -> None:
    with pytest.raises(NotFoundError, match="model 'small' is not known"):
        await wishes.place(make_spec("", draft=ModelSource(ModelId("small"))))
    with pytest.raises(InvalidRequestError, match="cannot be its own draft"):
        await wishes.place(make_spec("", draft=ModelSource(MODEL)))
    with pytest.raises(InvalidRequestError):
        await wishes.place(make_spec("", draft=ModelSource(ModelId("../etc"), "/x")))
    drafted = make_spec("one", draft=ModelSource(ModelId("small"), "/models/small"))
    stored, created = await wishes.place(drafted)
    assert created
    assert await wishes.place(make_spec("one", draft=ModelSource(ModelId("small")))) == (stored, False)
    for other in (make_spec("one"), make_spec("one", draft=ModelSource(ModelId("tiny"), "/models/tiny"))):
        with pytest.raises(ConflictError) as caught:
            await wishes.place(other)
        assert caught.value.reason == "INSTANCE_EXISTS"
    with pytest.raises(ConflictError) as taken:
        await wishes.place(make_spec("two", draft=ModelSource(ModelId("small"), "/elsewhere")))
    assert taken.value.reason == "MODEL_ID_TAKEN"


async def test_an_instance_id_of_another_wish_is_refused(wishes: Wishes) -> None:
    await wishes.place(make_spec("one", stages=2))
    with pytest.raises(ConflictError) as caught:
        await wishes.place(make_spec("one", stages=3))
    assert caught.value.reason == "INSTANCE_EXISTS"


async def test_an_instance_id_of_another_precision_is_refused(wishes: Wishes) -> None:
    exact, fast = make_spec("one"), replace(make_spec("one"), precision=Precision.FAST)
    await wishes.place(exact)
    with pytest.raises(ConflictError) as caught:
        await wishes.place(fast)
    assert caught.value.reason == "INSTANCE_EXISTS"
    await wishes.remove(InstanceId("one"))
    stored, created = await wishes.place(fast)
    assert (stored.precision, created) == (Precision.FAST, True)
    assert await wishes.place(fast) == (stored, False)


async def test_a_wish_without_id_is_the_instance_of_the_model_at_whatever_precision(wishes: Wishes) -> None:
    fast, _ = await wishes.place(replace(make_spec("mine"), precision=Precision.FAST))
    assert await wishes.place(make_spec("")) == (fast, False)


async def test_a_model_id_that_means_another_location_is_refused_while_it_is_wanted(wishes: Wishes) -> None:
    await wishes.place(make_spec("one", model="new", location="/first"))
    with pytest.raises(ConflictError) as caught:
        await wishes.place(make_spec("two", model="new", location="/second"))
    assert caught.value.reason == "MODEL_ID_TAKEN"
    await wishes.remove(InstanceId("one"))
    assert (await wishes.place(make_spec("two", model="new", location="/second")))[1]


async def test_an_unknown_model_is_refused_with_those_that_are_known(wishes: Wishes) -> None:
    with pytest.raises(NotFoundError, match="known models: demo") as caught:
        await wishes.place(make_spec("", model="nowhere"))
    assert caught.value.reason == "MODEL_NOT_FOUND"


async def test_an_unknown_model_with_a_location_is_accepted(wishes: Wishes) -> None:
    assert (await wishes.place(make_spec("", model="new", location="owner/name")))[1]


@pytest.mark.parametrize(("instance", "model"), [("UPPER", MODEL), ("", "../etc"), ("", "")])
async def test_unusable_ids_are_refused(wishes: Wishes, instance: str, model: str) -> None:
    with pytest.raises(InvalidRequestError):
        await wishes.place(make_spec(instance, model=model))


async def test_removing_what_is_not_there_names_what_is(wishes: Wishes) -> None:
    await wishes.place(make_spec("one"))
    with pytest.raises(NotFoundError, match="there are: one") as caught:
        await wishes.remove(InstanceId("two"))
    assert caught.value.reason == "INSTANCE_NOT_FOUND"


@pytest.mark.parametrize("model", ["Org/Some_Model-4bit", "x" * 128, "..."])
def test_names_are_usable_and_say_the_model(model: str) -> None:
    assert parse_instance_id(name_instance(ModelId(model), {}))


def test_models_of_the_same_name_get_different_instances() -> None:
    taken = {InstanceId("demo"): make_spec("demo", model="one/demo")}
    assert name_instance(ModelId("two/demo"), taken) != "demo"
    assert name_instance(ModelId("one/demo"), taken) == "demo"


def test_previews_need_a_known_model_and_its_sizes() -> None:
    view = make_view({"a": make_report(), "b": make_report(models=[])})
    assert [len(one.shards) for one in preview(view, make_spec(""))] == [1, 2]
    with pytest.raises(NotFoundError):
        preview(view, make_spec("", model="nowhere"))
    with pytest.raises(UnavailableError, match="before a node has fetched it"):
        preview(view, make_spec("", model="nowhere", location="owner/name"))


def test_a_preview_is_bounded_by_the_context_that_is_asked_for() -> None:
    view = make_view({"a": make_report()})
    short, long = (preview(view, replace(make_spec(""), context_length=tokens))[0] for tokens in (16, 8192))
    assert short.shards[0].planned_bytes < long.shards[0].planned_bytes


def test_a_preview_counts_bits_of_kv_caches_and_needs_the_draft_too() -> None:
    view = make_view({"a": make_report()})
    assert preview(view, replace(make_spec(""), kv_bits=8))[0].shards[0].kv_cache_bytes == 8 * 8192 * 30 * 432
    with pytest.raises(InvalidRequestError):
        preview(view, replace(make_spec(""), kv_bits=3))
    with pytest.raises(UnavailableError, match="the sizes of demo and small are not known"):
        preview(view, make_spec("", draft=ModelSource(ModelId("small"), "/models/small")))


async def test_placing_a_failed_instance_again_starts_it_anew(store: MemoryStore, wishes: Wishes) -> None:
    spec, _ = await wishes.place(make_spec())
    held_against = (ShardFailure(NodeId("a"), 0, 30, 4, is_out_of_memory=True),)
    for assignment, is_new in (
        (make_assignment("a", failures=1), False),
        (make_assignment("a", failures=3), True),
        (Assignment(spec.instance_id, refusal="too small"), False),
        (Assignment(spec.instance_id, refusal="too small", shard_failures=held_against), True),
    ):
        put = Put(KEYS.assignment(spec.instance_id), encode_assignment(assignment))
        await wishes._feed.reached((await store.transact([], [put])).revision)
        before = await store.get(KEYS.spec(spec.instance_id))
        assert await wishes.place(make_spec()) == (spec, False)
        after = await store.get(KEYS.spec(spec.instance_id))
        assert before and after
        assert (after.value, after.mod_revision > before.mod_revision) == (before.value, is_new)
