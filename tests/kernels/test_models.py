"""Whole tiny models of every family, with the KV caches of mlx-lm: taken over, they write what stock MLX writes."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from kernels.comparing import INSTRUCTION_SETS, SETTINGS, Setting, computing, on_every_instruction_set, to_numpy
from mlx import nn
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import BatchKVCache, KVCache, QuantizedKVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.utils import load_model

from paceline_kernels import speed_up_layers
from paceline_kernels.layers import join_layers
from paceline_kernels.runs import find_runs, join_runs
from support.models import FAMILIES, VOCAB_SIZE, make_tiny_model

PROMPT = [(index * 37) % VOCAB_SIZE for index in range(41)]
CHUNKS = (PROMPT[:23], PROMPT[23:40], PROMPT[40:])
NUM_TOKENS, TOLERANCE = 8, 1e-4
Caches = Callable[[nn.Module], list[Any]]
on_some_settings = pytest.mark.parametrize(
    ("bits", "setting"),
    [(0, SETTINGS[1]), (4, SETTINGS[0]), (8, SETTINGS[-1])],
    ids=lambda value: f"{value} bits" if isinstance(value, int) else str(value),
)


@dataclass(frozen=True, slots=True)
class Run:
    """Greedy tokens [tokens, batch] and the logits [tokens, batch, vocab] that they were chosen by."""

    tokens: list[list[int]]
    logits: np.ndarray


def run(model: nn.Module, make_caches: Caches = make_prompt_cache, chunks: Any = CHUNKS) -> Run:
    """Chunks of one prompt ([tokens]) or several ([batch][tokens]), then NUM_TOKENS greedy tokens."""
    caches = make_caches(model)
    for chunk in chunks:
        logits = model(mx.atleast_2d(mx.array(chunk)), cache=caches)[:, -1]
        mx.eval(logits, [cache.state for cache in caches])
    tokens, all_logits = [], []
    for _ in range(NUM_TOKENS):
        all_logits.append(to_numpy(logits))
        tokens.append(mx.argmax(logits, axis=-1).tolist())
        logits = model(mx.array(tokens[-1])[:, None], cache=caches)[:, -1]
    return Run(tokens, np.stack(all_logits))


def assert_same_text(ours: Run, stock: Run, tolerance: float = TOLERANCE) -> None:
    assert ours.tokens == stock.tokens
    error = np.abs(ours.logits - stock.logits).max() / np.abs(stock.logits).max()
    assert error <= tolerance, f"logits are off by {error:.3g}"


def speed_up(model: nn.Module) -> int:
    return speed_up_layers(model.model, lambda inputs, caches: model.model(inputs, cache=caches), mx.array([[0, 1, 2]]))


class Models:
    """Tiny models by family and kind, made once; loaded afresh where a test changes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: dict[str, nn.Module] = {}

    def load(self, family: str, bits: int = 0) -> nn.Module:
        name = f"{family}-{bits}"
        if name not in self.loaded:
            self.loaded[name] = self.load_afresh(family, bits)
        return self.loaded[name]

    def load_afresh(self, family: str, bits: int = 0, **changed: Any) -> nn.Module:
        folder = self.folder / "-".join([family, *(f"{key}={value}" for key, value in changed.items())])
        if not folder.exists():
            make_tiny_model(family, folder, **changed)
        model, _ = load_model(folder)
        if bits:
            nn.quantize(model, 32, bits, class_predicate=lambda _, module: is_quantizable(module))
        mx.eval(model.parameters())
        return model


def is_quantizable(module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    yield Models(tmp_path_factory.mktemp("models"))


# -- families --


@on_some_settings
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_what_stock_writes(family: str, bits: int, setting: Setting, models: Models) -> None:
    model = models.load(family, bits)
    stock = run(model)
    with computing(setting):
        assert_same_text(run(model), stock)


@on_every_instruction_set
def test_every_instruction_set_writes_what_stock_writes(setting: Setting, models: Models) -> None:
    for family in ("llama", "gpt_oss", "deepseek_v3"):
        model = models.load(family, 4)
        stock = run(model)
        with computing(setting):
            assert_same_text(run(model), stock)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_half_precision_give_float32s_logits(family: str, dtype: mx.Dtype, models: Models) -> None:
    """Weights stay as they are and everything else is float32: the float32 model of the same values is the truth."""
    model = models.load_afresh(family)
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    with computing(SETTINGS[0]):
        ours = run(model)
    model.set_dtype(mx.float32)
    assert_same_text(ours, run(model), 2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_stays_near_stock(family: str, models: Models) -> None:
    """Over several prompts: where two experts are nearly as good, rounding may choose the other one and change a single prompt's logits."""
    model = models.load(family, 4)
    errors = []
    for shift in range(7):
        chunks = [[(token + shift) % VOCAB_SIZE for token in chunk] for chunk in CHUNKS]
        stock = run(model, chunks=chunks)
        with computing(SETTINGS[0], "fast"):
            ours = run(model, chunks=chunks)
        # The first logits only: what follows depends on the tokens that were chosen.
        errors.append(np.abs(ours.logits[0] - stock.logits[0]).max() / np.abs(stock.logits[0]).max())
    assert np.median(errors) <= 0.25


def test_stock_is_itself_again_afterwards(models: Models) -> None:
    model = models.load("llama", 4)
    before = run(model)
    with computing(SETTINGS[0]):
        run(model)
    after = run(model)
    assert np.array_equal(after.logits, before.logits)


# -- caches --


def make_rotating(model: nn.Module) -> list[Any]:
    """Shorter than the prompt; the first tokens are kept."""
    return [RotatingKVCache(max_size=16, keep=4) for _ in model.layers]


def make_quantized(model: nn.Module) -> list[Any]:
    return [QuantizedKVCache(group_size=32, bits=8) for _ in model.layers]


def make_short_steps(model: nn.Module) -> list[Any]:
    """A KV cache that grows every few tokens."""
    caches = [KVCache() for _ in model.layers]
    for cache in caches:
        cache.step = 5
    return caches


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[-1]], ids=str)
@pytest.mark.parametrize("make_caches", [make_rotating, make_short_steps], ids=["rotating", "growing"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "mixtral"])
def test_caches_give_what_stock_gives(family: str, make_caches: Caches, setting: Setting, models: Models) -> None:
    model = models.load(family, 4)
    stock = run(model, make_caches)
    with computing(setting):
        assert_same_text(run(model, make_caches), stock)


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[-1]], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_quantized_caches_give_what_stock_gives(family: str, setting: Setting, models: Models) -> None:
    model = models.load_afresh(family, 4, head_dim=32)
    stock = run(model, make_quantized)
    with computing(setting):
        # Keys that lie between two codes may round either way: a step of 1/255.
        assert_same_text(run(model, make_quantized), stock, 5e-3)


PADDING = (0, 7, 3)


def make_batch(model: nn.Module) -> list[Any]:
    return [BatchKVCache(list(PADDING)) for _ in model.layers]


@pytest.mark.parametrize("setting", [SETTINGS[1], SETTINGS[-1]], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "mixtral"])
def test_batches_with_left_padding_give_what_stock_gives(family: str, setting: Setting, models: Models) -> None:
    model = models.load(family, 4)
    prompts = [[0] * padding + PROMPT[padding:23] for padding in PADDING]
    chunks = ([prompt[:13] for prompt in prompts], [prompt[13:] for prompt in prompts])
    stock = run(model, make_batch, chunks)
    with computing(setting):
        ours = run(model, make_batch, chunks)
        assert_same_text(ours, stock)
        alone = [run(model, chunks=(PROMPT[padding:23],)) for padding in PADDING]
    for index, single in enumerate(alone):
        assert [row[index] for row in ours.tokens] == [row[0] for row in single.tokens]


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "deepseek_v3"])
def test_batches_of_other_caches_give_what_stock_gives(family: str, models: Models) -> None:
    """Rotating caches of batches, as mlx-lm's batch generation makes them."""
    model = models.load(family, 4)
    prompts = [[0] * padding + PROMPT[padding:23] for padding in PADDING]
    chunks = ([prompt[:13] for prompt in prompts], [prompt[13:] for prompt in prompts])

    def make_caches(model: nn.Module) -> list[Any]:
        return [
            type(cache).merge([cache]).__class__(*window_of(cache), list(PADDING)) for cache in make_prompt_cache(model)
        ]

    stock = run(model, make_caches, chunks)
    with computing(SETTINGS[1]):
        assert_same_text(run(model, make_caches, chunks), stock)


def window_of(cache: Any) -> tuple[int, ...]:
    return (cache.max_size,) if isinstance(cache, RotatingKVCache) else ()


@pytest.mark.parametrize("is_joined", [False, True], ids=["layers", "joined layers"])
def test_generation_of_mlx_lm_writes_what_stock_writes(is_joined: bool, models: Models) -> None:
    """It has a stream of its own and computes a token ahead."""

    def generate(model: nn.Module) -> list[int]:
        return [int(token) for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=12, prefill_step_size=16)]

    stock = generate(models.load("qwen3", 4))
    model = models.load_afresh("qwen3", 4)
    with computing(SETTINGS[1]):
        if is_joined:
            speed_up(model)
        assert generate(model) == stock


# -- layers whose steps are joined --


@on_some_settings
@pytest.mark.parametrize("family", FAMILIES)
def test_joined_layers_write_what_stock_writes(family: str, bits: int, setting: Setting, models: Models) -> None:
    stock = run(models.load(family, bits))
    model = models.load_afresh(family, bits)
    with computing(setting):
        speed_up(model)
        assert_same_text(run(model), stock)
        assert_same_text(run(model, chunks=(PROMPT,)), run(models.load(family, bits), chunks=(PROMPT,)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_layers_of_the_usual_kind_are_joined(family: str, models: Models) -> None:
    model = models.load_afresh(family, 4)
    with computing(SETTINGS[0]):
        assert join_layers(model.layers) == len(model.layers)


def test_layers_are_not_joined_where_the_kernels_are_not_in_use(models: Models) -> None:
    model = models.load_afresh("llama", 4)
    classes = [type(layer) for layer in model.layers]
    assert join_layers(model.layers) == 0
    assert [type(layer) for layer in model.layers] == classes


@pytest.mark.parametrize("make_caches", [make_rotating, make_short_steps, make_quantized, make_batch])
def test_joined_layers_take_every_cache(make_caches: Caches, models: Models) -> None:
    plain, model = (models.load_afresh("llama", 4, head_dim=32) for _ in range(2))
    chunks = ([PROMPT[:13]] * 3, [PROMPT[13:23]] * 3) if make_caches is make_batch else CHUNKS
    stock = run(plain, make_caches, chunks)
    with computing(SETTINGS[0]):
        speed_up(model)
        assert_same_text(run(model, make_caches, chunks), stock, 5e-3 if make_caches is make_quantized else TOLERANCE)


def test_joined_layers_batch_sequences_of_one_length(models: Models) -> None:
    chunks = ([PROMPT[:13], PROMPT[20:33]], [PROMPT[13:20], PROMPT[33:40]])
    stock = run(models.load("llama", 4), chunks=chunks)
    model = models.load_afresh("llama", 4)
    with computing(SETTINGS[0]):
        speed_up(model)
        assert_same_text(run(model, chunks=chunks), stock)


def test_joined_layers_run_without_a_cache(models: Models) -> None:
    model = models.load_afresh("llama", 4)
    tokens = mx.array([PROMPT])
    stock = model(tokens)
    mx.eval(stock)
    with computing(SETTINGS[0]):
        speed_up(model)
        ours = model(tokens)
        mx.eval(ours)
    assert np.abs(to_numpy(ours - stock)).max() <= TOLERANCE * np.abs(to_numpy(stock)).max()


def test_a_joined_layer_without_a_mask_sees_all_tokens(models: Models) -> None:
    layer = models.load_afresh("llama").layers[0]
    x = mx.random.normal((1, 6, 64), key=mx.random.key(1))
    stock = layer(x, None, KVCache())
    mx.eval(stock)
    model = models.load_afresh("llama")
    with computing(SETTINGS[0]):
        speed_up(model)
        ours = model.layers[0](x, None, KVCache())
        mx.eval(ours)
    assert np.abs(to_numpy(ours - stock)).max() <= TOLERANCE * np.abs(to_numpy(stock)).max()


@pytest.mark.parametrize(
    "save", [lambda cache: cache.state, lambda cache: copy.deepcopy(cache).state], ids=["state", "copy"]
)
def test_a_copy_of_a_cache_is_not_changed_by_what_follows(save: Callable[[Any], Any], models: Models) -> None:
    """Saved prompts share their arrays with the caches that go on from them: writing in place must not reach them."""
    model = models.load_afresh("llama", 4)
    with computing(SETTINGS[0]):
        speed_up(model)
        caches = make_prompt_cache(model)
        mx.eval(model(mx.array([PROMPT[:13]]), cache=caches), [cache.state for cache in caches])
        saved = [save(cache) for cache in caches]
        before = [np.array(state[0]) for state in saved]
        for token in (5, 9, 5):
            mx.eval(model(mx.array([[token]]), cache=caches))
        assert all(np.array_equal(np.array(state[0]), kept) for state, kept in zip(saved, before, strict=True))
        again = make_prompt_cache(model)
        for cache, state in zip(again, saved, strict=True):
            cache.state = state
        logits = model(mx.array([[7]]), cache=again)
        fresh = make_prompt_cache(model)
        expected = model(mx.array([[*PROMPT[:13], 7]]), cache=fresh)[:, -1:]
        mx.eval(logits, expected)
    assert np.abs(to_numpy(logits - expected)).max() <= TOLERANCE * np.abs(to_numpy(expected)).max()


def test_a_cache_that_was_cut_back_goes_on_from_there(models: Models) -> None:
    model = models.load_afresh("llama", 4)
    with computing(SETTINGS[0]):
        speed_up(model)
        caches = make_prompt_cache(model)
        model(mx.array([PROMPT]), cache=caches)
        for cache in caches:
            cache.trim(len(PROMPT) - 13)
        ours = model(mx.array([[7, 8]]), cache=caches)
        expected = model(mx.array([[*PROMPT[:13], 7, 8]]))[:, -2:]
        mx.eval(ours, expected)
    assert np.abs(to_numpy(ours - expected)).max() <= TOLERANCE * np.abs(to_numpy(expected)).max()


def test_a_cache_of_another_type_is_used_the_layers_own_way(models: Models) -> None:
    """As read from a file that was saved in half precision."""
    model = models.load_afresh("llama", 4)
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([PROMPT[:13]]), cache=caches))
    halves = [(cache.keys.astype(mx.float16), cache.values.astype(mx.float16), cache.offset) for cache in caches]

    def go_on() -> mx.array:
        again = make_prompt_cache(model)
        for cache, state in zip(again, halves, strict=True):
            cache.state = state
        logits = model(mx.array([[7]]), cache=again)
        mx.eval(logits)
        return logits

    stock = go_on()
    with computing(SETTINGS[0]):
        speed_up(model)
        ours = go_on()
    assert np.abs(to_numpy(ours - stock)).max() <= 1e-3 * np.abs(to_numpy(stock)).max()


def test_steps_that_were_not_evaluated_between_are_right(models: Models) -> None:
    stock = run(models.load("llama", 4))
    model = models.load_afresh("llama", 4)
    with computing(SETTINGS[0]):
        speed_up(model)
        caches = make_prompt_cache(model)
        for chunk in CHUNKS:
            logits = model(mx.array([chunk]), cache=caches)[:, -1]
        tokens = []
        for _ in range(NUM_TOKENS):
            tokens.append(mx.argmax(logits, axis=-1))
            logits = model(tokens[-1][:, None], cache=caches)[:, -1]
        written = mx.stack(tokens).tolist()
    assert written == stock.tokens


# -- layers that are computed together --


def load_deep(models: Models, num_layers: int) -> nn.Module:
    return models.load_afresh("llama", 4, num_hidden_layers=num_layers)


@pytest.mark.parametrize("num_layers", [1, 2, 9, 19])
def test_layers_in_a_row_are_computed_together(num_layers: int, models: Models) -> None:
    stock = run(load_deep(models, num_layers))
    model = load_deep(models, num_layers)
    with computing(SETTINGS[0]):
        assert speed_up(model) == num_layers
        assert [len(layers) for layers in find_runs(model.layers) if layers] == [num_layers]
        assert [layer.place.position for layer in model.layers] == list(range(num_layers))
        assert_same_text(run(model), stock)


def test_runs_end_where_a_layer_goes_its_own_way(models: Models) -> None:
    """One cache in the middle is of a kind that joined layers do not take."""

    def make_mixed(model: nn.Module) -> list[Any]:
        return [RotatingKVCache(max_size=64) if index == 2 else KVCache() for index in range(len(model.layers))]

    stock = run(load_deep(models, 5), make_mixed)
    model = load_deep(models, 5)
    with computing(SETTINGS[0]):
        speed_up(model)
        assert_same_text(run(model, make_mixed), stock)


def test_a_layer_of_a_run_that_is_called_by_itself_computes(models: Models) -> None:
    x = mx.random.normal((1, 6, 64), key=mx.random.key(1))
    stock = load_deep(models, 5).layers[3](x, "causal", KVCache())
    mx.eval(stock)
    model = load_deep(models, 5)
    with computing(SETTINGS[0]):
        speed_up(model)
        ours = model.layers[3](x, "causal", KVCache())
        mx.eval(ours)
    assert np.abs(to_numpy(ours - stock)).max() <= TOLERANCE * np.abs(to_numpy(stock)).max()


def test_a_call_that_was_interrupted_leaves_nothing_behind(models: Models) -> None:
    stock = run(load_deep(models, 5))
    model = load_deep(models, 5)
    own = model.layers[3]

    class Broken(nn.Module):
        use_sliding = False

        def __call__(self, *_: Any, **__: Any) -> mx.array:
            raise RuntimeError("interrupted")

    with computing(SETTINGS[0]):
        speed_up(model)
        model.layers[3] = Broken()
        with pytest.raises(RuntimeError, match="interrupted"):
            model(mx.array([PROMPT]), cache=make_prompt_cache(model))
        model.layers[3] = own
        assert_same_text(run(model), stock)


def test_layers_of_a_loop_that_looks_between_them_stay_apart(models: Models) -> None:
    """The activation after each layer goes into the result: a layer that hands its input on would be noticed."""
    model = load_deep(models, 4)

    class LookingTrunk(type(model.model)):  # type: ignore[misc]
        def __call__(self, inputs: mx.array, cache: Any, _embeddings: Any = None) -> mx.array:
            h = self.embed_tokens(inputs)
            total = mx.zeros_like(h)
            for layer, own in zip(self.layers, cache, strict=True):
                h = layer(h, "causal", cache=own)
                total = total + h
            return self.norm(total)

    model.model.__class__ = LookingTrunk
    stock = run(model)
    with computing(SETTINGS[0]):
        assert join_layers(model.layers) == 4
        assert (
            join_runs(model.model, lambda inputs, caches: model.model(inputs, cache=caches), mx.array([[0, 1, 2]])) == 0
        )
        assert type(model.model) is LookingTrunk
        assert_same_text(run(model), stock)


def test_there_is_more_than_one_instruction_set_to_compare() -> None:
    assert "portable" in INSTRUCTION_SETS
