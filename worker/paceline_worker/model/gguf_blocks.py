"""GGUF's blocks of quantised weights -> MLX's packed layout, exactly, row by row of bytes. numpy only.

Both formats compute weight = scale * code + bias over groups of 32; only the packing and the place of scales differ.
Block layouts: ggml's ggml-common.h (block_q4_0, block_q4_1, block_q8_0). MLX's: codes from the lowest bits of uint32 upward.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GROUP_SIZE = 32


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix [rows, columns] in MLX's affine layout: codes [rows, columns * bits / 32], scales and biases [rows, groups]."""

    codes: npt.NDArray[np.uint32]
    scales: npt.NDArray[np.float16]
    biases: npt.NDArray[np.float16]
    bits: int


def unpack_q4_0(raw: npt.NDArray[np.uint8], rows: int) -> PackedWeight:
    """Blocks of 18 bytes: scale, 32 codes of 4 bits around 8."""
    blocks = raw.reshape(rows, -1, 18)
    scales = _halves(blocks[..., :2])
    return PackedWeight(_pack_nibbles(blocks[..., 2:]), scales, scales * np.float16(-8), 4)


def unpack_q4_1(raw: npt.NDArray[np.uint8], rows: int) -> PackedWeight:
    """Blocks of 20 bytes: scale, minimum, 32 codes of 4 bits."""
    blocks = raw.reshape(rows, -1, 20)
    return PackedWeight(_pack_nibbles(blocks[..., 4:]), _halves(blocks[..., :2]), _halves(blocks[..., 2:4]), 4)


def unpack_q8_0(raw: npt.NDArray[np.uint8], rows: int) -> PackedWeight:
    """Blocks of 34 bytes: scale, 32 signed codes of 8 bits; MLX's codes are unsigned, so they move up by 128."""
    blocks = raw.reshape(rows, -1, 34)
    scales = _halves(blocks[..., :2])
    codes = np.ascontiguousarray(blocks[..., 2:] ^ np.uint8(0x80)).reshape(rows, -1).view("<u4")
    return PackedWeight(codes, scales, scales * np.float16(-128), 8)


def unpermute_rows(rows: npt.NDArray[np.generic], num_heads: int) -> npt.NDArray[np.generic]:
    """Undo llama.cpp's order of Q and K rows (rotary pairs side by side) to the halves that MLX rotates."""
    per_head = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(per_head.swapaxes(1, 2)).reshape(rows.shape)


def _halves(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(raw).view("<f2")[..., 0]


def _pack_nibbles(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """ggml puts elements 0..15 of a block in the low nibbles and 16..31 in the high ones; MLX packs them one after another."""
    codes = np.concatenate([raw & 0x0F, raw >> 4], axis=-1)
    packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return np.ascontiguousarray(packed).reshape(raw.shape[0], -1).view("<u4")
