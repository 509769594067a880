"""Room for KV caches: what fits, what is found, what leaves."""

from hypothesis import given
from hypothesis import strategies as st

from paceline_services.ids import SequenceId
from paceline_worker.pipeline.memory import GROWTH_TOKENS, Found, KvMemory, count_capacity, round_up
from paceline_worker.pipeline.prefixes import MIN_TOKENS, PrefixIndex

A, B, C = SequenceId(1), SequenceId(2), SequenceId(3)
STEP = GROWTH_TOKENS


def test_capacity_is_what_is_wanted_as_far_as_it_is_there() -> None:
    assert count_capacity(wanted_bytes=1 << 30, available_bytes=1 << 40, bytes_per_token=1 << 10) == 1 << 20
    assert count_capacity(wanted_bytes=1 << 30, available_bytes=1 << 29, bytes_per_token=1 << 10) < 1 << 19
    assert count_capacity(wanted_bytes=1, available_bytes=0, bytes_per_token=1 << 10) == STEP
    assert count_capacity(wanted_bytes=1, available_bytes=1, bytes_per_token=0) == 0


def test_running_sequences_share_the_room_in_whole_steps() -> None:
    memory = KvMemory(3 * STEP)
    assert memory.reserve(A, 1) and memory.reserve(B, STEP + 1)
    assert not memory.reserve(C, 1)
    assert not memory.reserve(A, STEP + 1)
    memory.release(B)
    assert memory.reserve(A, 2 * STEP)
    assert memory.take_evicted() == (B,)
    assert memory.running_tokens == 2 * STEP


def test_longest_common_beginning_is_found_and_one_token_is_left_to_compute() -> None:
    memory = KvMemory(10 * STEP)
    for sequence_id, tokens in ((A, list(range(100))), (B, [*range(50), 7, 7])):
        memory.start(sequence_id, tokens, len(tokens))
        memory.keep(sequence_id, tokens)
    assert memory.find([*range(80), 9, 9], {}) == Found(A, 80)
    assert memory.find([*range(50), 7, 7, 7], {}) == Found(B, 52)
    assert memory.find(list(range(100)), {}) == Found(A, 99)
    assert memory.find(list(range(MIN_TOKENS)), {}) is None
    assert memory.find([5] * 60, {}) is None


def test_running_sequence_serves_as_far_as_it_is_computed() -> None:
    memory = KvMemory(10 * STEP)
    memory.start(A, list(range(100)), 100)
    assert memory.find(list(range(90)), {A: 64}) == Found(A, 64)
    assert memory.find(list(range(90)), {A: 5}) is None
    assert memory.find_coming(list(range(90))) == 89


def test_what_another_one_holds_too_is_not_kept_twice() -> None:
    memory = KvMemory(10 * STEP)
    for sequence_id, tokens in ((A, list(range(60))), (B, list(range(90)))):
        memory.start(sequence_id, tokens, len(tokens))
        memory.keep(sequence_id, tokens)
    assert memory.num_kept == 1
    assert memory.take_evicted() == (A,)


def test_least_recently_used_leaves_first() -> None:
    memory = KvMemory(2 * STEP)
    for sequence_id, first in ((A, 1), (B, 2)):
        memory.start(sequence_id, [first] * 40, 40)
        memory.keep(sequence_id, [first] * 40)
    memory.find([1] * 40, {})
    assert memory.reserve(C, 1)
    assert memory.take_evicted() == (B,)


def test_sequence_not_to_be_trusted_is_dropped() -> None:
    memory = KvMemory(4 * STEP)
    memory.start(A, [1] * 40, 40)
    memory.keep(A, [1] * 40)
    memory.drop(A)
    memory.drop(B)
    assert memory.find([1] * 40, {}) is None
    assert memory.take_evicted() == (A,)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), max_size=12), st.data())
def test_index_finds_what_comparing_all_finds(sequences: list[list[int]], data: st.DataObject) -> None:
    index = PrefixIndex()
    for number, tokens in enumerate(sequences):
        index.add(SequenceId(number), tokens)
    removed = data.draw(st.sets(st.sampled_from(range(len(sequences))))) if sequences else set()
    for number in removed:
        index.remove(SequenceId(number))
    asked = [*data.draw(st.sampled_from(sequences) if sequences else st.just([1] * 20)), 1, 0]
    expected = {}
    for number, tokens in enumerate(sequences):
        shared = next((i for i, pair in enumerate(zip(tokens, asked, strict=False)) if pair[0] != pair[1]), None)
        shared = min(len(tokens), len(asked)) if shared is None else shared
        if number not in removed and shared >= MIN_TOKENS:
            expected[SequenceId(number)] = shared
    found = index.find(asked)
    assert dict(found) == expected
    assert [shared for _, shared in found] == sorted(expected.values(), reverse=True)


def test_rounding_is_to_whole_steps() -> None:
    assert [round_up(n) for n in (0, 1, STEP, STEP + 1)] == [0, STEP, STEP, 2 * STEP]
