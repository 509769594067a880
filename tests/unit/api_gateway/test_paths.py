"""Which address a head is asked at when not all of them can be reached."""

from dataclasses import replace

from paceline_api_gateway.routing.paths import Path, PathMemory, list_paths
from paceline_services.addressee import Addressee
from paceline_services.ids import Epoch
from support.head import make_instance
from support.relays import INSTANCE, make_staged_instance

RETRY_S = 10.0
THREE = make_staged_instance("head", "first", "second", epoch=7)
TO_HEAD = Addressee(INSTANCE, Epoch(7))
DIRECT, SECOND, FIRST = Path("head"), Path("second", TO_HEAD), Path("first", TO_HEAD)


def make_memory(*failed: Path, now: float = 0.0) -> PathMemory:
    memory = PathMemory(RETRY_S)
    for path in failed:
        memory.note_failed(path, now)
    return memory


def test_shortest_way_comes_first() -> None:
    assert list_paths(THREE) == [DIRECT, SECOND, FIRST]


def test_stages_of_another_epoch_or_without_address_are_no_way() -> None:
    first, second, head = THREE.shards
    assert first.runner is not None and second.runner is not None
    older = replace(first, runner=replace(first.runner, epoch=Epoch(6)))
    silent = replace(second, runner=replace(second.runner, address=""))
    assert list_paths(replace(THREE, shards=(older, silent, head))) == [DIRECT]
    assert list_paths(replace(THREE, shards=(replace(first, runner=None), second, head))) == [DIRECT, SECOND]
    assert list_paths(make_instance("alone", "head")) == [DIRECT]


def test_only_rank_0_of_a_stage_passes_calls_on() -> None:
    first, second, head = THREE.shards
    last = replace(head, placement=replace(head.placement, rank=1), runner=replace(THREE.shards[1].runner, rank=1))  # type: ignore[type-var]
    other = replace(first, placement=replace(first.placement, rank=1))
    assert list_paths(replace(THREE, shards=(first, other, second, head, last))) == [DIRECT, SECOND, FIRST]


def test_way_that_failed_is_left_for_the_next_best() -> None:
    assert make_memory().choose(THREE, 0) == DIRECT
    assert make_memory(DIRECT).choose(THREE, 1) == SECOND
    assert make_memory(DIRECT, SECOND).choose(THREE, 1) == FIRST


def test_head_itself_is_asked_where_no_way_is_left() -> None:
    memory = make_memory(DIRECT, SECOND, FIRST)
    assert memory.choose(THREE, 1) == DIRECT
    assert not memory.has_way(THREE, 1)
    assert memory.has_way(THREE, RETRY_S)


def test_one_request_at_a_time_tries_a_failed_way_again() -> None:
    memory = make_memory(DIRECT)
    chosen = [memory.choose(THREE, RETRY_S + number) for number in range(3)]
    assert chosen == [DIRECT, SECOND, SECOND]
    assert memory.choose(THREE, 2 * RETRY_S) == DIRECT


def test_way_that_works_again_is_everyones() -> None:
    memory = make_memory(DIRECT)
    memory.note_reached(memory.choose(THREE, RETRY_S))
    assert [memory.choose(THREE, RETRY_S + 1) for _ in range(2)] == [DIRECT, DIRECT]


def test_refusal_of_one_stage_speaks_for_all_of_its_epoch() -> None:
    memory = make_memory(DIRECT)
    memory.note_refused(THREE, 1)
    assert memory.choose(THREE, 2) == DIRECT and not memory.has_way(THREE, 2)
    assert memory.choose(make_staged_instance("head", "first", "second", epoch=8), 2).address == "second"


def test_unreachable_head_is_so_in_the_next_epoch_too_and_nowhere_else() -> None:
    memory = make_memory(DIRECT)
    assert memory.choose(make_staged_instance("head", "first", epoch=8), 1).address == "first"
    assert memory.choose(make_staged_instance("second", "first", "head", epoch=8), 1) == Path("second")


def test_ways_of_long_ago_are_forgotten() -> None:
    memory = make_memory(*(Path(str(number)) for number in range(100)))
    memory.note_failed(DIRECT, 3 * RETRY_S)
    assert len(memory._failed) == 1
