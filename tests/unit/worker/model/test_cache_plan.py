"""Which caches a stage holds and what it shows in place of the others; what an empty one is told; what a fork copies."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from paceline_worker.model.caches import CachePlan, copy_first, count_bytes_per_token, make_blank, plan_caches

ALL = range(6)


def test_held_cache_of_the_same_kind_stands_in() -> None:
    whole = [KVCache(), RotatingKVCache(8), KVCache(), RotatingKVCache(8)]
    assert plan_caches(whole, {2, 3}, ALL) == CachePlan((2, 3), (), (0, 1, 0, 1))


@pytest.mark.parametrize(
    "kinds",
    [
        (RotatingKVCache(8), RotatingKVCache(16)),
        (KVCache(), ArraysCache(2)),
        (ChunkedKVCache(4), ChunkedKVCache(8)),
        (CacheList(KVCache(), KVCache()), CacheList(ArraysCache(2), KVCache())),
    ],
)
def test_one_empty_cache_stands_in_for_all_of_a_kind_that_is_not_held(kinds: tuple[object, object]) -> None:
    missing, held = kinds
    assert plan_caches([missing, held, missing], {1}, ALL) == CachePlan((1,), (0,), (1, 0, 1))


def test_stage_without_caches_shows_empty_ones() -> None:
    assert plan_caches([KVCache(), ArraysCache(2)], set(), ALL) == CachePlan((), (0, 1), (0, 1))


def test_cache_of_no_layer_has_no_stand_in_that_is_held() -> None:
    assert plan_caches([ArraysCache(2), ArraysCache(2)], {1}, {1}) == CachePlan((1,), (0,), (1, 0))


def test_empty_cache_knows_the_position_and_forgets_what_is_written() -> None:
    pristine = CacheList(ArraysCache(2), KVCache())
    blank = make_blank(pristine, 5)
    assert blank[1].offset == 5
    blank[0][0] = mx.ones((1, 2))
    assert make_blank(pristine, 7)[0][0] is None


def test_forked_state_is_its_own() -> None:
    state = ArraysCache(2)
    state[0] = mx.array([[1.0, 2.0]])
    keys = KVCache()
    keys.update_and_fetch(mx.ones((1, 1, 3, 2)), mx.ones((1, 1, 3, 2)))
    forked = copy_first(CacheList(state, keys), 3)
    state[0][0, 0] = 9.0
    assert forked[0][0].tolist() == [[1.0, 2.0]]
    assert forked[1].offset == 3
    assert forked[0].cache is not state.cache


def test_keys_beside_a_state_count_by_token() -> None:
    keys = KVCache()
    keys.update_and_fetch(mx.ones((1, 2, 3, 4)), mx.ones((1, 2, 3, 4)))
    assert count_bytes_per_token([CacheList(ArraysCache(2), keys)]) == 2 * 2 * 4 * 4
