"""The in-process twin against real etcd: the same calls in the same order give the same answers, revisions and events."""

import random
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from paceline_control_plane.store.etcd import make_etcd_store
from paceline_control_plane.store.interface import (
    Change,
    CreatedAt,
    Delete,
    Event,
    Guard,
    ModifiedAt,
    Put,
    Store,
)
from paceline_control_plane.store.memory import MemoryStore
from paceline_services.ids import Revision
from support.etcd import EtcdCluster, running_etcd

NUM_TRANSACTIONS = 300
KEYS = tuple(f"/twin/{name}" for name in "abcdefgh")

Transaction = tuple[Sequence[Guard], Sequence[Change]]


@pytest.fixture
def fresh_etcd(tmp_path: Path) -> Iterator[EtcdCluster]:
    with running_etcd(tmp_path) as running:
        yield running


def make_transactions(seed: int) -> list[Transaction]:
    """Guarded changes of a few keys; about half of the guards hold."""
    drawn = random.Random(seed)
    return [(_draw_guards(drawn, number), _draw_changes(drawn, number)) for number in range(NUM_TRANSACTIONS)]


def _draw_guards(drawn: random.Random, number: int) -> list[Guard]:
    kinds: tuple[type[CreatedAt] | type[ModifiedAt], ...] = (CreatedAt, ModifiedAt)
    guards: list[Guard] = []
    for key in drawn.sample(KEYS, drawn.choice((0, 0, 1, 1, 2))):
        revision = drawn.choice((0, 0, drawn.randrange(max(1, number - 10), number + 2)))
        guards.append(drawn.choice(kinds)(key, Revision(revision)))
    return guards


def _draw_changes(drawn: random.Random, number: int) -> list[Change]:
    keys = drawn.sample(KEYS, drawn.randrange(4))
    return [Delete(key) if drawn.random() < 0.3 else Put(key, str(number).encode()) for key in keys]


async def carry_out(store: Store, transactions: Sequence[Transaction]) -> list[object]:
    """Every outcome, what is there after each, and at last the whole history."""
    seen: list[object] = []
    for guards, changes in transactions:
        seen += [await store.transact(guards, changes), await store.list("/twin/")]
    last = await store.transact([], [Put("/twin/end", b"")])
    return [*seen, await history(store, last.revision)]


async def history(store: Store, until: Revision) -> list[Event]:
    events: list[Event] = []
    async with aclosing(store.watch("/twin/", Revision(0))) as batches:
        async for batch in batches:
            # etcd does not order the events of one revision by key; nor does anyone need it.
            events += sorted(batch.events, key=lambda event: (event.revision, event.key))
            if batch.revision >= until:
                break
    return events


@pytest.mark.parametrize("seed", [1, 2])
async def test_twin_and_etcd_answer_alike(fresh_etcd: EtcdCluster, seed: int) -> None:
    transactions = make_transactions(seed)
    memory, etcd = MemoryStore(), make_etcd_store(fresh_etcd.settings())
    try:
        expected, seen = await carry_out(memory, transactions), await carry_out(etcd, transactions)
    finally:
        await etcd.close()
    assert seen == expected
    outcomes = [outcome.succeeded for outcome in seen[:-1:2] if hasattr(outcome, "succeeded")]
    assert 0.2 < sum(outcomes) / len(outcomes) < 0.95
