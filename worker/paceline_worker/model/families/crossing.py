"""DeepSeek V4.1: layers share a compressed context, its index and what they chose from it, beside several residual streams.

mlx-lm's own pipeline says what of it later layers read, and in what form: that is what travels, as bytes, and the first held layer's
cache keeps what grows, as there. (mlx_lm/models/deepseek_v41.py: _crossing, _layout, _send and _receive.)
"""

import sys
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from paceline_worker.model.families.handoff import Handoff, LayerCall


class Crossing(Handoff):
    """layer(streams, pre_mix, start_pos=, window_idx=, cache=, shared=) gives (streams, pre_mix) and writes to shared."""

    def __init__(self, trunk: nn.Module, start: int, end: int) -> None:
        super().__init__(trunk, start, end)
        self._family: Any = sys.modules[type(trunk).__module__]

    def watch(self, call: LayerCall) -> None:
        if call.index == self.start:
            self.shapes = [self.pack(call).shape[2:]]

    def make_example(self, num_tokens: int) -> mx.array:
        return mx.zeros((1, num_tokens, self.width), mx.int32)

    def pack(self, call: LayerCall) -> mx.array:
        """[1, tokens, width] int32: the bytes of all parts and some zeros."""
        streams, pre_mix = call.args
        state = {**call.named["shared"], "streams": streams, "pre_mix": pre_mix}
        packed = self._family._pack(
            [self._take(key, shape, dtype, state) for key, shape, dtype in self._list_parts(call, call.index)]
        )
        num_tokens = streams.shape[1]
        words = packed.view(mx.int32)
        return mx.pad(words, (0, -words.size % num_tokens)).reshape(1, num_tokens, -1)

    def answer(self, call: LayerCall) -> Any:
        streams, pre_mix = call.args
        if call.index != self.start - 1:
            return streams, pre_mix
        layout = self._list_parts(call, self.start)
        num_words = sum(self._family._nbytes(shape, dtype) for _, shape, dtype in layout) // mx.int32.size
        width = -(-num_words // streams.shape[1])
        words = self.received[0][..., :width].reshape(-1)[:num_words]
        parts = self._family._unpack(words.view(mx.uint8), layout)
        for key, part in parts.items():
            self._share(call, key, part)
        return parts["streams"], parts["pre_mix"]

    def _list_parts(self, call: LayerCall, boundary: int) -> list[tuple[str, tuple[int, ...], mx.Dtype]]:
        streams = call.args[0]
        crossing = self._family._crossing(self.trunk.args, boundary)
        batch, num_tokens = streams.shape[:2]
        return list(
            self._family._layout(self.trunk.args, crossing, batch, num_tokens, call.named["start_pos"], streams.dtype)
        )

    def _take(self, key: str, shape: tuple[int, ...], dtype: mx.Dtype, state: Mapping[str, Any]) -> mx.array:
        part = state.get(key)
        if part is None:  # nothing was written yet, and nothing is wanted
            return mx.zeros(shape, dtype)
        if key in self._family._CACHE_FIELDS:
            part = part[:, part.shape[1] - shape[1] :]
        elif key == "candidates":
            part = part[..., :: self.trunk.args.candidate_block_size]
        return part.astype(dtype)

    def _share(self, call: LayerCall, key: str, part: mx.array) -> None:
        shared, cache = call.named["shared"], call.caches[self.start]
        if key in self._family._CACHE_FIELDS:
            if part.shape[1]:
                setattr(cache, key, self._family._append(getattr(cache, key), part))
            shared[key] = getattr(cache, key)
        elif key == "candidates":
            args = self.trunk.args
            source = self._family._crossing(args, self.start)[key]
            num_keys = self._family._index_keys(args, source, call.named["start_pos"] + part.shape[1])
            whole = mx.repeat(part, args.candidate_block_size, axis=-1)
            shared[key] = whole[..., :num_keys] if num_keys else None
        elif key == "topk_idx":
            shared[key] = part
