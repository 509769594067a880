"""The queue's promises: turns between clients, a bound, and no client that pays for another's burst."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_services.errors import OverloadedError
from paceline_worker.pipeline.waiting import FairQueue


def fill(queue: FairQueue[str], items: list[str]) -> None:
    for item in items:
        queue.append(item[0], item)


def test_clients_take_turns() -> None:
    queue: FairQueue[str] = FairQueue(10)
    fill(queue, ["a1", "a2", "a3", "b1", "c1", "c2"])
    assert list(queue) == ["a1", "b1", "c1", "a2", "c2", "a3"]
    queue.take("a", "a1")
    assert next(iter(queue)) == "b1"


def test_who_had_its_turn_and_comes_back_is_next() -> None:
    queue: FairQueue[str] = FairQueue(10)
    fill(queue, ["a1", "b1"])
    queue.put_back("c0")
    assert list(queue) == ["c0", "a1", "b1"]


def test_those_put_back_keep_their_order_and_their_place() -> None:
    queue: FairQueue[str] = FairQueue(2)
    fill(queue, ["a1", "a2"])
    for item in ("a0", "b0"):
        queue.put_back(item)
    assert list(queue) == ["b0", "a0", "a1", "a2"]
    assert queue.make_room("c", 1, num_free=2) == ["a2"]
    queue.remove("a", "a0")
    assert list(queue) == ["b0", "a1", "a2"]


def test_longest_waiter_gives_up_its_latest() -> None:
    queue: FairQueue[str] = FairQueue(4)
    fill(queue, ["a1", "a2", "a3", "b1"])
    assert queue.make_room("c", 1) == ["a3"]
    assert queue.make_room("b", 1) == ["a3"]
    with pytest.raises(OverloadedError, match="4 requests are waiting"):
        queue.make_room("a", 1)


def test_items_that_can_start_at_once_need_no_place() -> None:
    queue: FairQueue[str] = FairQueue(0)
    assert queue.make_room("a", 2, num_free=2) == []
    with pytest.raises(OverloadedError):
        queue.make_room("a", 3, num_free=2)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3)), max_size=40), st.integers(1, 8))
def test_queue_never_exceeds_its_bound_and_nobody_is_shut_out(arrivals: list[tuple[str, int]], capacity: int) -> None:
    queue: FairQueue[str] = FairQueue(capacity)
    counter = 0
    for client, count in arrivals:
        own = sum(item[0] == client for item in queue)
        sizes = [sum(item[0] == other for item in queue) for other in "abcd" if other != client]
        try:
            for dropped in queue.make_room(client, count):
                assert dropped[0] != client
                queue.remove(dropped[0], dropped)
        except OverloadedError:
            assert own + count >= max(sizes, default=0) or own + count > capacity - sum(sizes)
            continue
        for _ in range(count):
            counter += 1
            queue.append(client, f"{client}{counter}")
        assert len(queue) <= capacity
