"""Attention: mx.fast.scaled_dot_product_attention."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.comparing import (
    SETTINGS,
    Setting,
    assert_close,
    assert_same,
    assert_stock,
    computing,
    make_values,
    on_every_instruction_set,
    on_every_setting,
)
from mlx_lm.models.base import create_causal_mask

TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one attention. value_dim 0: as head_dim."""

    batch: int = 1
    heads: int = 4
    kv_heads: int = 2
    queries: int = 5
    keys: int = 46
    head_dim: int = 64
    value_dim: int = 0

    def make(self) -> tuple[mx.array, mx.array, mx.array]:
        q = make_values(self.batch, self.heads, self.queries, self.head_dim)
        k = make_values(self.batch, self.kv_heads, self.keys, self.head_dim, seed=1)
        v = make_values(self.batch, self.kv_heads, self.keys, self.value_dim or self.head_dim, seed=2)
        return q, k, v

    @property
    def scores(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.queries, self.keys


def attend(q: mx.array, k: mx.array, v: mx.array, **named: Any) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, **{"scale": q.shape[-1] ** -0.5, **named})


def check(setting: Setting, q: mx.array, k: mx.array, v: mx.array, case: object = "", **named: Any) -> None:
    stock = attend(*(mx.contiguous(part) for part in (q, k, v)), **named)
    mx.eval(stock)
    with computing(setting):
        assert_close(attend(q, k, v, **named), stock, TOLERANCE, case)


def make_bools(*shape: int) -> mx.array:
    """Random, with at least one true in each row."""
    values = np.random.default_rng(7).random(shape) < 0.6
    values[..., 0] = True
    return mx.array(values)


@on_every_setting
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
def test_attention_without_a_mask_and_causal_agrees_with_stock(head_dim: int, setting: Setting) -> None:
    for shape in (
        Shape(queries=1, keys=1, head_dim=head_dim),
        Shape(queries=1, keys=7, heads=9, kv_heads=3, head_dim=head_dim),
        Shape(queries=1, keys=700, heads=8, kv_heads=1, head_dim=head_dim),
        Shape(queries=5, keys=5, heads=4, kv_heads=4, head_dim=head_dim),
        Shape(queries=46, keys=46, batch=2, head_dim=head_dim),
        Shape(queries=5, keys=333, heads=6, kv_heads=2, head_dim=head_dim),
        Shape(queries=130, keys=257, heads=3, kv_heads=1, head_dim=head_dim),
    ):
        for mask in (None, "causal"):
            check(setting, *shape.make(), case=(shape, mask), mask=mask)


@on_every_instruction_set
@pytest.mark.parametrize("value_dim", [32, 64, 128, 512])
def test_values_may_have_another_size_than_keys(value_dim: int, setting: Setting) -> None:
    for queries in (1, 13):
        shape = Shape(queries=queries, head_dim=192, value_dim=value_dim, kv_heads=1)
        check(setting, *shape.make(), mask="causal")


@on_every_instruction_set
@pytest.mark.parametrize("queries", [1, 5, 46])
def test_masks_of_every_broadcast_shape_agree_with_stock(queries: int, setting: Setting) -> None:
    shape = Shape(batch=3, heads=6, kv_heads=2, queries=queries, keys=70, head_dim=32)
    batch, heads, _, keys = shape.scores
    sizes = [
        (queries, keys),
        (1, keys),
        (1, queries, keys),
        (heads, queries, keys),
        (heads, 1, keys),
        (batch, 1, queries, keys),
    ]
    sizes += [(batch, 1, 1, keys), shape.scores, (1, heads, queries, keys), (keys,), (batch, heads, 1, keys)]
    for size in sizes:
        check(setting, *shape.make(), case=("bool", size), mask=make_bools(*size))
        check(setting, *shape.make(), case=("additive", size), mask=make_values(*size, seed=9))
        hidden = mx.where(make_bools(*size), 0.0, -mx.inf)
        check(setting, *shape.make(), case=("infinite", size), mask=hidden)
        check(setting, *shape.make(), case=("finite", size), mask=mx.maximum(hidden, mx.finfo(mx.float32).min))


@on_every_instruction_set
def test_masks_need_not_lie_in_rows(setting: Setting) -> None:
    shape = Shape(batch=2, queries=9, keys=40, head_dim=32)
    masks = {
        "transposed": make_bools(40, 9).T,
        "middle of a longer one": make_bools(9, 100)[:, 30:70],
        "every second": make_bools(18, 80)[::2, ::2],
        "window": create_causal_mask(9, 31, window_size=12),
        "left padding": create_causal_mask(9, 31, left_padding=mx.array([3, 0])),
        "right padding": create_causal_mask(9, 31, right_padding=mx.array([0, 2])),
        "rolled": mx.roll(make_bools(40), 7),
        "additive, transposed": make_values(40, 9, seed=9).T,
        "additive, broadcast": mx.broadcast_to(make_values(2, 1, 1, 40, seed=9), (2, 4, 9, 40)),
    }
    for name, mask in masks.items():
        check(setting, *shape.make(), case=name, mask=mask)


@on_every_instruction_set
@pytest.mark.parametrize("queries", [1, 6])
def test_rows_that_see_nothing_are_as_in_stock(queries: int, setting: Setting) -> None:
    shape = Shape(batch=2, queries=queries, keys=20, head_dim=32)
    mask = np.array(make_bools(2, 1, queries, 20))
    mask[1, :, 0] = False
    check(setting, *shape.make(), case="bool", mask=mx.array(mask))
    additive = mx.where(mx.array(mask), 0.0, mx.finfo(mx.float32).min)
    check(setting, *shape.make(), case="finite", mask=additive)
    infinite = mx.where(mx.array(mask), 0.0, -mx.inf)
    stock = attend(*shape.make(), mask=infinite)
    mx.eval(stock)
    with computing(setting):
        ours = attend(*shape.make(), mask=infinite)
        mx.eval(ours)
    assert np.array_equal(np.isnan(np.array(ours)), np.isnan(np.array(stock)))
    assert np.allclose(np.array(ours), np.array(stock), atol=1e-5, equal_nan=True)


@on_every_instruction_set
def test_sinks_take_part_in_the_sum(setting: Setting) -> None:
    for queries, mask in ((1, None), (9, "causal"), (9, make_bools(9, 46)), (130, "causal")):
        shape = Shape(heads=6, kv_heads=2, queries=queries, keys=max(46, queries))
        for sinks in (make_values(6, seed=4), make_values(6, seed=4) * 40, make_values(12, seed=4)[::2]):
            check(setting, *shape.make(), case=(queries, mask), mask=mask, sinks=sinks)


@on_every_instruction_set
@pytest.mark.parametrize("queries", [1, 5])
def test_keys_and_values_may_be_the_start_of_a_longer_buffer(queries: int, setting: Setting) -> None:
    q = make_values(2, 4, queries, 64)
    k, v = make_values(2, 2, 256, 64, seed=1)[..., :46, :], make_values(2, 2, 256, 64, seed=2)[..., :46, :]
    for is_evaluated in (False, True):
        if is_evaluated:
            mx.eval(k, v)
        check(setting, q, k, v, case=is_evaluated, mask="causal")


@on_every_instruction_set
def test_attention_takes_views(setting: Setting) -> None:
    q, k, v = make_values(2, 4, 5, 32), make_values(2, 2, 46, 32, seed=1), make_values(2, 2, 46, 32, seed=2)
    joined = make_values(2, 46, 8, 32)
    views = {
        "heads from tokens": (make_values(2, 5, 4, 32).transpose(0, 2, 1, 3), k, v),
        "parts of a joined projection": tuple(
            joined[:, :, a:b].transpose(0, 2, 1, 3) for a, b in ((0, 4), (4, 6), (6, 8))
        ),
        "keys transposed": (q, make_values(2, 2, 32, 46, seed=1).swapaxes(2, 3), v),
        "values every second": (q, k, make_values(2, 2, 46, 64)[..., ::2]),
        "one sequence's keys for all": (q, mx.broadcast_to(k[:1], k.shape), mx.broadcast_to(v[:1], v.shape)),
        "backwards": (q[:, :, ::-1], k[:, :, ::-1], v[:, :, ::-1]),
        "parts of one array": (q, joined.transpose(0, 2, 1, 3)[:, :2], joined.transpose(0, 2, 1, 3)[:, 2:4]),
    }
    for name, parts in views.items():
        for is_evaluated in (False, True):
            if is_evaluated:
                mx.eval(parts)
            check(setting, *parts, case=(name, is_evaluated), mask="causal")


@on_every_instruction_set
def test_results_can_be_used_in_any_way(setting: Setting) -> None:
    """They may lie in memory otherwise than stock's; nobody may notice."""
    q, k, v = Shape(batch=2, queries=7).make()
    stock = attend(q, k, v)
    uses = {
        "heads joined": lambda a: a.transpose(0, 2, 1, 3).reshape(2, 7, -1),
        "flat": lambda a: a.reshape(-1),
        "reversed": lambda a: a[:, ::-1, ::-1, ::-1],
        "one head": lambda a: a[:, 1:2],
        "sum": lambda a: a.sum(axis=(0, 2)),
        "added": lambda a: a + 1.0,
        "in place": lambda a: mx.multiply(a, a),
        "as numpy": lambda a: mx.array(np.array(a)),
        "contiguous": mx.contiguous,
    }
    for name, use in uses.items():
        expected = use(stock)
        mx.eval(expected)
        with computing(setting):
            assert_close(use(attend(q, k, v)), expected, TOLERANCE, name)


@on_every_instruction_set
def test_large_scores_do_not_overflow(setting: Setting) -> None:
    q, k, v = Shape(queries=5).make()
    for size in (1e3, 1e15):
        check(setting, q * size, k * size, v, case=size, mask="causal")
    check(setting, q * 30, k * 30, v, mask=None, scale=10.0)


@on_every_instruction_set
def test_attentions_that_are_not_covered_are_stocks(setting: Setting) -> None:
    odd, half = Shape(head_dim=20).make(), [part.astype(mx.float16) for part in Shape().make()]
    q, k, v = Shape().make()
    calls = {
        "odd head size": lambda: attend(*odd, mask="causal"),
        "odd value size": lambda: attend(*Shape(value_dim=10).make()),
        "float16": lambda: attend(*half, mask="causal"),
        "float16 mask": lambda: attend(half[0], half[1], half[2], mask=make_values(5, 46, dtype=mx.float16)),
        "no queries": lambda: attend(q[:, :, :0], k, v),
    }
    assert_stock(calls, setting)


@on_every_instruction_set
def test_more_causal_queries_than_keys_are_as_in_stock(setting: Setting) -> None:
    q, k, v = Shape(queries=9, keys=4).make()
    stock = attend(q, k, v, mask="causal")
    mx.eval(stock)
    with computing(setting):
        assert_same(attend(q, k, v, mask="causal"), stock)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    setting=st.sampled_from(SETTINGS),
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    repeats=st.integers(1, 5),
    queries=st.sampled_from((1, 1, 2, 3, 7, 8, 9, 17, 33)),
    past=st.integers(0, 150),
    head_dim=st.sampled_from((8, 16, 32, 40, 48, 64)),
    mask=st.sampled_from((None, "causal", "bool", "additive")),
    has_sinks=st.booleans(),
)
def test_attention_of_any_shape_agrees_with_stock(
    setting: Setting,
    batch: int,
    kv_heads: int,
    repeats: int,
    queries: int,
    past: int,
    head_dim: int,
    mask: str | None,
    has_sinks: bool,
) -> None:
    shape = Shape(batch, kv_heads * repeats, kv_heads, queries, past + queries, head_dim)
    masks = {"bool": make_bools(queries, past + queries), "additive": make_values(queries, past + queries, seed=9)}
    sinks = make_values(shape.heads, seed=4) if has_sinks else None
    check(setting, *shape.make(), case=shape, mask=masks.get(mask or "", mask), sinks=sinks)
