"""KV caches of one sequence: mlx-lm's own kinds, made, quantised, copied, cut and counted."""

from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import CacheList, KVCache, QuantizedKVCache, RotatingKVCache

from paceline_services.errors import ConfigurationError

Cache = Any
STEP_TOKENS = KVCache.step
"""Caches grow by so many tokens at a time."""
KV_BITS = (8, 4)
_GROUP_SIZES = (64, 32)


class UnpackedKVCache:
    """A quantised cache on a CPU: attention gets its keys and values as floats, unpacked for every call.

    MLX's CPU products with a packed cache are slower than unpacking it and computing with floats. Prompts of 1,000 tokens ran at 31
    tokens/s that way, on a busy machine, and at 123 to 148 this way on one as busy (135M model, one core, 8 bits).
    """

    def __init__(self, packed: QuantizedKVCache) -> None:
        self.packed = packed

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.packed.update_and_fetch(keys, values)
        return self._unpack(self.packed.keys), self._unpack(self.packed.values)

    def _unpack(self, buffers: Sequence[mx.array]) -> mx.array:
        """Whole buffers, cut afterwards: unpacking a part of them would copy it first."""
        codes, scales, biases = buffers
        whole = mx.dequantize(codes, scales, biases, group_size=self.packed.group_size, bits=self.packed.bits)
        return whole[..., : self.offset, :]

    @property
    def offset(self) -> int:
        return int(self.packed.offset)

    @property
    def state(self) -> Any:
        return self.packed.state

    @property
    def keys(self) -> Any:
        return self.packed.keys

    @property
    def values(self) -> Any:
        return self.packed.values

    @property
    def nbytes(self) -> int:
        return int(self.packed.nbytes)

    def make_mask(self, *args: Any, **named: Any) -> Any:
        return self.packed.make_mask(*args, **named)

    def empty(self) -> bool:
        return bool(self.packed.empty())

    def trim(self, num_tokens: int) -> int:
        return int(self.packed.trim(num_tokens))


_CUTTABLE = {KVCache, QuantizedKVCache, UnpackedKVCache}


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Which of a model's caches a stage holds, and what it shows the model in place of the others.

    A mask may be made from another stage's cache. A held one of the same kind has seen the same tokens; where there is none, an empty
    one that is told the position will do, as no held layer is given a mask of that kind. (It may be given the position: bailing's
    linear attention takes it from a cache of full attention.) In place of a cache that no layer is given, whatever holds it may write,
    so that is always an empty one.
    held, blanks: indices of the model's caches; stand_ins: for each of those, its place within [*held, *blanks].
    """

    held: tuple[int, ...]
    blanks: tuple[int, ...]
    stand_ins: tuple[int, ...]


def plan_caches(whole: Sequence[Cache], held: Collection[int], of_layers: Collection[int]) -> CachePlan:
    """whole: the model's caches, new; held: indices of those that a stage holds; of_layers: of those that any layer is given."""
    shown = [*sorted(held)]
    stand_ins = []
    for index, cache in enumerate(whole):
        chosen = index
        if index not in held and index in of_layers:
            alike = (one for one in shown if one in of_layers and _are_alike(whole[one], cache))
            chosen = next(alike, index)
        if chosen not in shown:
            shown.append(chosen)
        stand_ins.append(shown.index(chosen))
    return CachePlan(tuple(shown[: len(held)]), tuple(shown[len(held) :]), tuple(stand_ins))


def _are_alike(one: Cache, other: Cache) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, CacheList):
        pairs = zip(one.caches, other.caches, strict=False)
        return len(one.caches) == len(other.caches) and all(_are_alike(*pair) for pair in pairs)
    return all(getattr(one, name, None) == getattr(other, name, None) for name in ("max_size", "chunk_size"))


def make_blank(pristine: Cache, num_tokens: int) -> Cache:
    """A copy of an empty cache, which no layer uses, that is told how many tokens came before."""
    blank = deepcopy(pristine)
    for part in list_parts([blank]):
        if hasattr(part, "offset"):
            part.offset = num_tokens
    return blank


def list_parts(caches: Sequence[Cache]) -> Iterator[Cache]:
    """Caches, those that consist of others replaced by these."""
    for cache in caches:
        yield from list_parts(cache.caches) if isinstance(cache, CacheList) else (cache,)


def can_cut(caches: Sequence[Cache]) -> bool:
    """Whether caches of these kinds can be cut back to any of their tokens: a sliding window forgets what left it, a state everything."""
    return all(type(cache) in _CUTTABLE for cache in caches)


def can_stand_side_by_side(caches: Sequence[Cache]) -> bool:
    """Whether these are keys and values of attention, so that several sequences can be run in one forward (segments.py)."""
    return all(type(cache) in {*_CUTTABLE, RotatingKVCache} for cache in caches)


def quantize(cache: Cache, bits: int, head_dim: int) -> Cache:
    """An empty cache whose keys and values are kept in 8 or 4 bits. A sliding window stays as it is: it is small, and mlx-lm has none.

    Raises ConfigurationError when heads of that width cannot be divided into groups.
    """
    if type(cache) is not KVCache:
        return cache
    group_size = next((size for size in _GROUP_SIZES if head_dim % size == 0), None)
    if group_size is None:
        raise ConfigurationError(
            f"KV caches cannot be quantised: this model's heads of {head_dim} values are no multiple of {_GROUP_SIZES[-1]}; "
            "place it without --kv-bits"
        )
    packed = cache.to_quantized(group_size=group_size, bits=bits)
    return UnpackedKVCache(packed) if mx.default_device() == mx.cpu else packed


def copy_first(cache: Cache, num_tokens: int) -> Cache:
    """A cache of its own with the first tokens of another, which stays as it is. Where that cannot be cut, with all its tokens."""
    if type(cache) is UnpackedKVCache:
        return UnpackedKVCache(_copy_cut(cache.packed, num_tokens))
    if type(cache) in _CUTTABLE:
        return _copy_cut(cache, num_tokens)
    if isinstance(cache, CacheList):
        return CacheList(*(copy_first(part, num_tokens) for part in cache.caches))
    copied = copy(cache)
    for name, value in vars(cache).items():
        setattr(copied, name, tree_map(_copy_array, value))
    return copied


def set_growth(caches: Sequence[Cache], num_tokens: int) -> None:
    """Let caches that must grow make room for so many tokens at once.

    A buffer that grows is made anew and copied: with 2,000 tokens of the 135M model a step that did so took 100 to 280 ms instead of 40.
    """
    for cache in caches:
        if type(cache) in _CUTTABLE:
            grown = cache.packed if type(cache) is UnpackedKVCache else cache
            grown.step = max(STEP_TOKENS, -(-num_tokens // STEP_TOKENS) * STEP_TOKENS)


def count_bytes(caches: Sequence[Cache]) -> int:
    return sum(0 if cache.empty() else int(cache.nbytes) for cache in list_parts(caches))


def count_bytes_per_token(caches: Sequence[Cache]) -> int:
    """Bytes that one more token takes in caches that hold some already; 0 where nothing grows with tokens."""
    arrays: list[mx.array] = []
    for cache in list_parts(caches):
        if can_stand_side_by_side([cache]) and not cache.empty():
            tree_map(arrays.append, (cache.keys, cache.values))
    return sum(array.nbytes // array.shape[-2] for array in arrays)


def _copy_cut(cache: Cache, num_tokens: int) -> Cache:
    is_quantized = type(cache) is QuantizedKVCache
    copied = QuantizedKVCache(cache.group_size, cache.bits) if is_quantized else KVCache()
    if num_tokens and not cache.empty():  # a layer may have one and not use it
        copy_part: Callable[[mx.array], mx.array] = lambda array: _copy_tokens(array, num_tokens)  # noqa: E731
        copied.keys, copied.values = tree_map(copy_part, (cache.keys, cache.values))
        copied.offset = num_tokens
    return copied


def _copy_tokens(array: mx.array, num_tokens: int) -> mx.array:
    """The first tokens of [batch, heads, tokens, dim] in a new buffer of whole steps."""
    capacity = -(-num_tokens // STEP_TOKENS) * STEP_TOKENS
    copied = mx.zeros((*array.shape[:-2], capacity, array.shape[-1]), array.dtype)
    copied[..., :num_tokens, :] = array[..., :num_tokens, :]
    return copied


def _copy_array(value: Any) -> Any:
    return mx.concatenate([value, value[:0]]) if isinstance(value, mx.array) and value.ndim else value
