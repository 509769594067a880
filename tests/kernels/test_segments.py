"""Joined layers over several sequences at once, each with KV caches of its own: every one gets what it gets alone."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from kernels.comparing import SETTINGS, Setting, computing, on_every_setting, to_numpy
from kernels.test_models import Models, speed_up
from mlx import nn
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

from paceline_kernels import _native
from paceline_kernels.layers import join_layers
from paceline_kernels.runs import find_runs
from support.models import VOCAB_SIZE

TOLERANCE = 2e-5
Caches = list[KVCache]
Part = tuple[Caches, list[int]]
"""A sequence's caches and its next tokens."""


@dataclass(frozen=True, slots=True)
class Segment:
    cache: Any
    num_tokens: int


class OwnWayError(Exception):
    """A layer's own way asked for keys and values."""


@dataclass(frozen=True, slots=True)
class SegmentedCache:
    segments: tuple[Segment, ...]
    offset = 0

    def make_mask(self, *_: Any, **__: Any) -> str:
        return "segments"

    def update_and_fetch(self, *_: Any) -> Any:
        raise OwnWayError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    yield Models(tmp_path_factory.mktemp("models"))


def load(models: Models, family: str = "llama", **changed: Any) -> nn.Module:
    """Joined; to be called while the kernels are in use."""
    model = models.load_afresh(family, 4, **changed)
    speed_up(model)
    return model


def make_caches(model: nn.Module, step: int = KVCache.step) -> Caches:
    caches = [KVCache() for _ in model.layers]
    for cache in caches:
        cache.step = step
    return caches


def make_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, count).tolist()


def segment(parts: Sequence[Part]) -> list[SegmentedCache]:
    """One cache per layer, which stands for those of all sequences."""
    layers = zip(*(caches for caches, _ in parts), strict=True)
    return [
        SegmentedCache(tuple(Segment(cache, len(tokens)) for cache, (_, tokens) in zip(layer, parts, strict=True)))
        for layer in layers
    ]


def run_together(model: nn.Module, *parts: Part) -> list[mx.array]:
    """Logits [tokens, vocab] of every sequence."""
    tokens = mx.array([token for _, own in parts for token in own])[:, None]
    logits = model(tokens, cache=segment(parts))[:, 0]
    mx.eval(logits)
    ends = np.cumsum([len(own) for _, own in parts])[:-1].tolist()
    return mx.split(logits, ends)


def run_alone(model: nn.Module, caches: Caches, tokens: list[int]) -> mx.array:
    logits = model(mx.array([tokens]), cache=caches)[0]
    mx.eval(logits)
    return logits


def assert_near(ours: Any, expected: Any) -> None:
    ours, expected = to_numpy(ours), to_numpy(expected)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()


def assert_same_contents(ours: Caches, expected: Caches) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert one.offset == other.offset
        for mine, theirs in zip(one.keys_and_values(), other.keys_and_values(), strict=True):
            assert_near(mine, theirs)


def copy_caches(caches: Caches) -> Caches:
    """Copies that share nothing."""
    copies = [KVCache() for _ in caches]
    for own, other in zip(copies, caches, strict=True):
        own.keys, own.values, own.offset, own.step = other.keys + 0, other.values + 0, other.offset, other.step
    mx.eval([cache.state for cache in copies])
    return copies


def find_address(a: mx.array) -> int:
    return int(np.asarray(memoryview(a)).__array_interface__["data"][0])


# -- results --


@on_every_setting
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_sequences_of_all_phases_get_what_they_get_alone(family: str, setting: Setting, models: Models) -> None:
    """A prompt's start, a prompt's next chunk, one token after a short and after a long prompt, and a few tokens."""
    with computing(setting):
        model = load(models, family)
        before = [[], make_tokens(23, 1), make_tokens(5, 2), make_tokens(211, 3), make_tokens(40, 4)]
        steps = [make_tokens(count, 10 + count) for count in (19, 37, 1, 1, 4)]
        together, alone = ([make_caches(model) for _ in before] for _ in range(2))
        for tokens, caches, others in zip(before, together, alone, strict=True):
            if tokens:
                run_alone(model, caches, tokens)
                run_alone(model, others, tokens)
        for _ in range(3):
            ours = run_together(model, *zip(together, steps, strict=True))
            for logits, caches, tokens in zip(ours, alone, steps, strict=True):
                assert_near(logits, run_alone(model, caches, tokens))
            steps = [tokens[::-1][:7] for tokens in steps]
        for caches, others in zip(together, alone, strict=True):
            assert_same_contents(caches, others)


@on_every_setting
def test_sequences_of_one_length_get_to_the_last_bit_what_a_batch_gets(setting: Setting, models: Models) -> None:
    """The products are those of as many rows either way: what differs is rotation, writing and attention alone."""
    with computing(setting):
        model = load(models, "qwen3")
        batch = make_caches(model)
        mx.eval(model(mx.array([make_tokens(30, seed) for seed in range(5)]), cache=batch))
        parts = []
        for index in range(5):
            own = make_caches(model)
            for cache, whole in zip(own, batch, strict=True):
                cache.keys, cache.values = whole.keys[index : index + 1] + 0, whole.values[index : index + 1] + 0
                cache.offset = whole.offset
            mx.eval([cache.state for cache in own])
            parts.append(own)
        for token in (3, 200):
            expected = model(mx.array([[token + index] for index in range(5)]), cache=batch)[:, 0]
            mx.eval(expected)
            ours = run_together(model, *((own, [token + index]) for index, own in enumerate(parts)))
            assert np.array_equal(np.array(mx.concatenate(ours)), np.array(expected))


@on_every_setting
@pytest.mark.parametrize("neighbour", [7, 40])
def test_a_sequence_is_not_changed_by_its_neighbours(neighbour: int, setting: Setting, models: Models) -> None:
    """As many rows each time, other ones: not a bit of its own differs."""
    with computing(setting):
        model = load(models)
        caches = make_caches(model)
        run_alone(model, caches, make_tokens(50))
        results = []
        for seed, seen in ((1, 0), (2, 90)):
            other = make_caches(model)
            if seen:
                run_alone(model, other, make_tokens(seen, seed))
            own = copy_caches(caches)
            logits = run_together(model, (own, [5]), (other, make_tokens(neighbour, seed)))[0]
            results.append((np.array(logits), [np.array(cache.keys) for cache in own]))
        (one, keys), (another, other_keys) = results
        assert np.array_equal(one, another)
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(keys, other_keys, strict=True))


@on_every_setting
def test_attention_of_many_sequences_is_divided_over_threads(setting: Setting, models: Models) -> None:
    """Enough of it to be shared: chunks of a prompt, which divide their own, beside single tokens, which go together."""
    with computing(setting):
        model = load(models, head_dim=64, num_hidden_layers=2)
        steps = [make_tokens(count, count) for count in (1, 20, 1, 2, 1, 33, 1, 16)]
        together, alone = ([make_caches(model) for _ in steps] for _ in range(2))
        for index, pair in enumerate(zip(together, alone, strict=True)):
            for caches in pair:
                run_alone(model, caches, make_tokens(40 * index + 9, index))
        ours = run_together(model, *zip(together, steps, strict=True))
        for logits, caches, tokens in zip(ours, alone, steps, strict=True):
            assert_near(logits, run_alone(model, caches, tokens))


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[-1]], ids=str)
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_one_sequence_as_a_segment_gets_what_it_gets_alone(precision: str, setting: Setting, models: Models) -> None:
    with computing(setting, precision):
        model = load(models)
        caches, others = make_caches(model), make_caches(model)
        for tokens in (make_tokens(12), [4], make_tokens(3, 1)):
            expected = run_alone(model, others, tokens)
            assert np.array_equal(np.array(run_together(model, (caches, tokens))[0]), np.array(expected))


@pytest.mark.parametrize(("step", "length"), [(5, 3), (KVCache.step, 250)])
def test_caches_grow_each_when_it_is_full(step: int, length: int, models: Models) -> None:
    with computing(SETTINGS[1]):
        model = load(models)
        together, alone = ([make_caches(model, step) for _ in range(3)] for _ in range(2))
        lengths = (length, length - 2, 1)
        for index in range(3):
            tokens = make_tokens(lengths[index], index)
            run_alone(model, together[index], tokens)
            run_alone(model, alone[index], tokens)
        for token in range(12):
            ours = run_together(
                model, *((caches, [token, 7][: 1 + index % 2]) for index, caches in enumerate(together))
            )
            for index, caches in enumerate(alone):
                assert_near(ours[index], run_alone(model, caches, [token, 7][: 1 + index % 2]))
        for caches, others in zip(together, alone, strict=True):
            assert [cache.keys.shape for cache in caches] == [cache.keys.shape for cache in others]
            assert_same_contents(caches, others)


def test_buffers_grow_as_mlx_lms_own(models: Models) -> None:
    stock = models.load("llama", 4)
    with computing(SETTINGS[0]):
        model = load(models)
        for lengths in ((13, 1), (256, 1), (250, 6, 1), (250, 7), (300, 300), (1, 256, 1)):
            own, ours = make_caches(stock), make_caches(model)
            for count in lengths:
                mx.eval(stock(mx.array([make_tokens(count)]), cache=own))
                run_together(model, (ours, make_tokens(count)))
                assert [cache.keys.shape for cache in ours] == [cache.keys.shape for cache in own], (lengths, count)


def test_a_sequence_that_was_cut_back_goes_on_from_there(models: Models) -> None:
    with computing(SETTINGS[0]):
        model = load(models)
        tokens = make_tokens(30)
        caches, others, fresh = (make_caches(model) for _ in range(3))
        run_together(model, (caches, tokens), (others, tokens[:9]))
        for cache in caches:
            cache.trim(17)
        ours = run_together(model, (others, [1]), (caches, [7, 8]))[1]
        assert_near(ours, run_alone(model, fresh, [*tokens[:13], 7, 8])[-2:])


def test_sequences_go_on_alone_and_together_in_turns(models: Models) -> None:
    with computing(SETTINGS[0]):
        model = load(models)
        caches, others, fresh = (make_caches(model) for _ in range(3))
        run_together(model, (others, [5]), (caches, make_tokens(9)))
        run_alone(model, caches, [3])
        run_together(model, (caches, [4]), (others, [6, 7]))
        assert_near(run_alone(model, caches, [5]), run_alone(model, fresh, [*make_tokens(9), 3, 4, 5])[-1:])


@pytest.mark.parametrize("is_evaluated", [True, False], ids=["evaluated", "not evaluated"])
def test_steps_need_not_be_evaluated_between(is_evaluated: bool, models: Models) -> None:
    """Nor need their results be kept: the caches hold on to what has to be computed."""
    with computing(SETTINGS[0]):
        model = load(models)
        caches, others, fresh = (make_caches(model) for _ in range(3))
        for token in (3, 4, 5):
            logits = model(mx.array([[token], [9]]), cache=segment([(caches, [token]), (others, [9])]))
            if is_evaluated:
                mx.eval(logits)
            del logits
        run_alone(model, fresh, [3, 4, 5])
        assert_same_contents(caches, fresh)
        assert_near(run_together(model, (caches, [6]))[0], run_alone(model, fresh, [6]))


# -- which inputs are taken --


def make_prompted(model: nn.Module) -> Caches:
    caches = make_caches(model)
    run_alone(model, caches, make_tokens(4))
    return caches


def in_half_precision(cache: KVCache) -> KVCache:
    cache.keys, cache.values = cache.keys.astype(mx.float16), cache.values.astype(mx.float16)
    return cache


def of_two(cache: KVCache) -> KVCache:
    cache.keys, cache.values = (mx.concatenate([buffer, buffer]) for buffer in cache.keys_and_values())
    return cache


OTHERS: dict[str, Callable[[KVCache], Any]] = {
    "rotating": lambda _: RotatingKVCache(max_size=8),
    "quantized": lambda _: QuantizedKVCache(group_size=32),
    "half precision": in_half_precision,
    "of two sequences": of_two,
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_cache_of_another_kind_makes_the_layer_go_its_own_way(other: str, models: Models) -> None:
    with computing(SETTINGS[0]):
        model = load(models)
        caches, others = make_prompted(model), make_prompted(model)
        others[2] = OTHERS[other](others[2])
        with pytest.raises(OwnWayError):
            run_together(model, (caches, [1]), (others, [2]))
        x, cache = mx.zeros((2, 1, 64)), segment([(caches, [1]), (others, [2])])
        taken = [layer.joined.takes(x, None, own) for layer, own in zip(model.layers, cache, strict=True)]
        assert taken == [True, True, False, True]
        assert run_together(model, (make_prompted(model), [1]), (make_prompted(model), [2]))


def test_inputs_that_are_not_one_row_per_token_are_not_taken(models: Models) -> None:
    with computing(SETTINGS[0]):
        layer = load(models).layers[0]
        one, other = KVCache(), KVCache()
        cache = SegmentedCache((Segment(one, 2), Segment(other, 3)))
        assert layer.joined.takes(mx.zeros((5, 1, 64)), "segments", cache)
        assert not layer.joined.takes(mx.zeros((1, 5, 64)), "segments", cache)
        assert not layer.joined.takes(mx.zeros((6, 1, 64)), "segments", cache)
        assert not layer.joined.takes(mx.zeros((5, 1, 64), mx.float16), "segments", cache)
        assert not layer.joined.takes(mx.zeros((0, 1, 64)), "segments", SegmentedCache(()))


def test_a_cache_that_occurs_twice_is_not_taken(models: Models) -> None:
    with computing(SETTINGS[0]):
        layer = load(models).layers[0]
        cache = KVCache()
        twice = SegmentedCache((Segment(cache, 1), Segment(KVCache(), 1), Segment(cache, 1)))
        assert not layer.joined.takes(mx.zeros((3, 1, 64)), None, twice)


def test_a_layer_that_looks_at_its_inputs_length_does_not_take_several_sequences(models: Models) -> None:
    """Alone it doubles inputs of three tokens, of which a joined layer knows nothing."""
    model = models.load_afresh("llama", 4)

    class LookingLayer(type(model.layers[0])):  # type: ignore[misc]
        def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
            return super().__call__(x, mask, cache) * (2 if x.shape[1] == 3 else 1)

    model.layers[1].__class__ = LookingLayer
    with computing(SETTINGS[0]):
        assert join_layers(model.layers) == 4
        assert [layer.joined.takes_segments for layer in model.layers] == [True, False, True, True]
        with pytest.raises(OwnWayError):
            run_together(model, (make_caches(model), [1]))


def test_layers_without_an_mlp_of_ours_end_runs(models: Models) -> None:
    """Five layers, the third with its own MLP: two runs and a single layer."""
    model = models.load_afresh("llama", 4, num_hidden_layers=5)

    class OtherMLP(type(model.layers[2].mlp)):  # type: ignore[misc]
        def __call__(self, x: mx.array) -> mx.array:
            return self.extra * super().__call__(x)

    mlp = model.layers[2].mlp
    mlp.__class__ = OtherMLP
    mlp.extra = mx.array(0.5)
    with computing(SETTINGS[0]):
        speed_up(model)
        assert [len(layers) for layers in find_runs(model.layers) if layers] == [2, 2]
        together, alone = ([make_caches(model) for _ in range(2)] for _ in range(2))
        for steps in ((make_tokens(9), make_tokens(3, 1)), ([4], [5, 6]), ([7], [8])):
            ours = run_together(model, *zip(together, steps, strict=True))
            for logits, caches, tokens in zip(ours, alone, steps, strict=True):
                assert_near(logits, run_alone(model, caches, tokens))


# -- writing in place --


def step_alone(model: nn.Module, caches: Caches, token: int) -> None:
    mx.eval(model(mx.array([[token]]), cache=caches))


def step_together(model: nn.Module, caches: Caches, token: int) -> None:
    run_together(model, (make_caches(model), [1, 2]), (caches, [token]))


on_both_ways = pytest.mark.parametrize("step", [step_alone, step_together], ids=["alone", "together"])


@on_both_ways
def test_buffers_that_only_the_cache_holds_are_written_in_place(step: Callable[..., None], models: Models) -> None:
    with computing(SETTINGS[0]):
        model = load(models)
        caches = make_prompted(model)
        before = [(find_address(cache.keys), find_address(cache.values)) for cache in caches]
        for token in range(5):
            step(model, caches, token)
        assert [(find_address(cache.keys), find_address(cache.values)) for cache in caches] == before


HOLDERS: dict[str, Callable[[KVCache], tuple[Any, Any]]] = {
    "the array": lambda cache: (cache.keys, cache.values),
    "its state": lambda cache: cache.state[:2],
    "a copied cache": lambda cache: copy.copy(cache).state[:2],
    "a deeply copied cache": lambda cache: copy.deepcopy(cache).state[:2],
    "a copied array": lambda cache: (copy.copy(cache.keys), mx.array(cache.values)),
    "a view of the start": lambda cache: cache.keys_and_values(),
    "a view past the end": lambda cache: (cache.keys[..., 2:40, :], cache.values[..., 3:, :]),
    "another shape": lambda cache: (cache.keys.reshape(-1), cache.values[0]),
    "a value to come": lambda cache: (cache.keys * 2, cache.values + 1),
    "numpy's view": lambda cache: (np.asarray(memoryview(cache.keys)), np.asarray(memoryview(cache.values))),
}


@on_both_ways
@pytest.mark.parametrize("is_evaluated", [True, False], ids=["evaluated", "not evaluated"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_what_somebody_holds_of_a_cache_does_not_change(
    holder: str, is_evaluated: bool, step: Callable[..., None], models: Models
) -> None:
    with computing(SETTINGS[0]):
        model = load(models)
        caches = make_prompted(model)
        held = [HOLDERS[holder](cache) for cache in caches]
        if is_evaluated:
            mx.eval([a for arrays in held for a in arrays if isinstance(a, mx.array)])
        expected = [[np.array(a) for a in HOLDERS[holder](cache)] for cache in copy_caches(caches)]
        for token in range(3):
            step(model, caches, token)
        assert all(
            np.array_equal(np.array(mine), theirs)
            for arrays, values in zip(held, expected, strict=True)
            for mine, theirs in zip(arrays, values, strict=True)
        )
        del held
        fresh = make_caches(model)
        assert_near(run_together(model, (caches, [9]))[0], run_alone(model, fresh, [*make_tokens(4), 0, 1, 2, 9])[-1:])


@on_both_ways
def test_a_fork_goes_its_own_way(step: Callable[..., None], models: Models) -> None:
    """Two caches that share their arrays: the first that writes gets buffers of its own."""
    with computing(SETTINGS[0]):
        model = load(models)
        caches = make_prompted(model)
        fork = [copy.copy(cache) for cache in caches]
        step(model, caches, 7)
        step(model, fork, 8)
        for own, token in ((caches, 7), (fork, 8)):
            fresh = make_caches(model)
            run_alone(model, fresh, [*make_tokens(4), token])
            assert_same_contents(own, fresh)


def test_forks_of_one_cache_may_be_computed_together(models: Models) -> None:
    with computing(SETTINGS[0]):
        model = load(models)
        caches = make_prompted(model)
        forks = [[copy.copy(cache) for cache in caches] for _ in range(3)]
        run_together(model, *((fork, [token]) for token, fork in enumerate(forks)))
        for token, fork in enumerate(forks):
            fresh = make_caches(model)
            run_alone(model, fresh, [*make_tokens(4), token])
            assert_same_contents(fork, fresh)


def test_a_cache_may_be_read_before_its_steps_result(models: Models) -> None:
    """Its arrays are computed when they are asked for, like every other of MLX's."""
    with computing(SETTINGS[0]):
        model = load(models)
        caches, fresh = make_prompted(model), make_caches(model)
        result = model(mx.array([[7], [8]]), cache=segment([(caches, [7]), (make_caches(model), [8])]))
        keys = [np.array(cache.keys[..., : cache.offset, :]) for cache in caches]
        run_alone(model, fresh, [*make_tokens(4), 7])
        for mine, cache in zip(keys, fresh, strict=True):
            assert_near(mine, cache.keys[..., : cache.offset, :])
        mx.eval(result)


def test_buffers_that_do_not_lie_in_rows_are_copied(models: Models) -> None:
    """As those of one sequence of a batch, or with the heads elsewhere in memory."""
    with computing(SETTINGS[0]):
        model = load(models)
        caches, fresh = make_prompted(model), make_caches(model)
        for cache in caches:
            cache.keys = mx.contiguous(cache.keys.swapaxes(1, 2)).swapaxes(1, 2)
            cache.values = mx.concatenate([cache.values, cache.values], axis=2)[:, :, :7]
        mx.eval([cache.state for cache in caches])
        ours = run_together(model, (caches, [7]))[0]
        assert_near(ours, run_alone(model, fresh, [*make_tokens(4), 7])[-1:])


# -- nonsense --


def test_a_call_that_is_refused_leaves_the_caches_as_they_were(models: Models) -> None:
    with computing(SETTINGS[0]):
        model = load(models)
        layers = model.layers[0].place.run._layers
        caches = make_prompted(model)
        keys, offset = caches[0].keys, caches[0].offset
        x = mx.zeros((5, 1, 64))
        absurd: dict[str, Any] = {
            "no layers": [],
            "no caches": [[]],
            "too few tokens": [[(caches[0], 2), (caches[1], 2)]],
            "too many tokens": [[(caches[0], 6)]],
            "no tokens": [[(caches[0], 0), (caches[1], 5)]],
            "fewer than none": [[(caches[0], -1), (caches[1], 6)]],
            "too many layers": [[(cache, 1)] for cache in [*caches, *caches]],
            "another batch": [[(caches[0], 1)]],
            "no values": [[(make_halved(caches[0]), 5)]],
        }
        for name, entries in absurd.items():
            with pytest.raises(ValueError, match=r"."):
                layers.apply(x, 0, entries)
            assert (caches[0].keys is keys, caches[0].offset) == (True, offset), name
        for wrong in (mx.zeros((5, 64)), mx.zeros((5, 1, 32)), mx.zeros((5, 1, 64), mx.float16)):
            with pytest.raises(ValueError, match=r"."):
                layers.apply(wrong, 0, [[(caches[0], 5)]])


def make_halved(cache: KVCache) -> KVCache:
    half = copy.copy(cache)
    half.values = None
    return half


def test_what_is_no_cache_is_not_plain() -> None:
    assert _native.are_plain([], KVCache, 1)
    assert not _native.are_plain([None], KVCache, 1)
    assert not _native.are_plain([KVCache(), object()], KVCache, 1)
