"""Random models of sizes that the demo model does not show, made once and kept in the benchmark's cache.

The 1B-shaped llama is written as a GGUF file of random Q4_1 blocks and imported by the worker's importer, so that llama.cpp and MLX
read the same weights. The Qwen3 mixture of experts is mlx-lm's own module, quantised by mlx-lm.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from filelock import FileLock

from bench.measuring import Subject
from bench.peers import bench_cache
from bench.rounds import say
from support.gguf_files import CHAT_TEMPLATE, TOKENS, make_vocabulary
from support.models import FAMILIES, write_tiny_tokenizer

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, VOCAB_SIZE = 2048, 16, 32, 8, 64, 8192, 32000
BLOCK = 32
MOE_VOCAB_SIZE = 3200
# The tiny Qwen3-MoE of support/architectures times ten, in multiples of 64, with experts in every layer.
MOE_CONFIG = {
    **FAMILIES["qwen3_moe"],
    "mlp_only_layers": [],
    "hidden_size": 640,
    "num_hidden_layers": 4,
    "intermediate_size": 960,
    "moe_intermediate_size": 320,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": MOE_VOCAB_SIZE,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
}


def make_1b() -> Subject:
    """Llama with hidden 2048 and 16 layers: about 1.04 billion weights in Q4_1."""
    source, folder = bench_cache() / "llama-1b-q4_1.gguf", bench_cache() / "llama-1b-q4_1"
    with FileLock(f"{folder}.lock"):
        if not source.exists():
            say("making a random model of 1 billion weights")
            partial = source.with_suffix(".partial")
            _write_llama(partial)
            partial.rename(source)
        if not folder.exists():
            command = [sys.executable, "-m", "paceline_worker.model.import_gguf", str(source), str(folder)]
            subprocess.run(command, check=True, timeout=1800, stdout=subprocess.DEVNULL)
    return Subject("1B-shaped llama, random, Q4_1", folder, VOCAB_SIZE, source)


def make_moe() -> Subject:
    """A small Qwen3 mixture of experts, 4 bits at groups of 64."""
    folder = bench_cache() / "qwen3-moe-4bit"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _write_moe(partial)
            partial.rename(folder)
    return Subject("Qwen3-MoE, random, 4 bits", folder, MOE_VOCAB_SIZE)


def _write_llama(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=True)
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    _add_vocabulary(writer)
    random = np.random.default_rng(1)
    for name, shape in _list_tensors():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        else:
            writer.add_tensor(name, _draw_q4_1(random, *shape), raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _list_tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (VOCAB_SIZE, HIDDEN)
    yield "output_norm.weight", (HIDDEN,)
    for layer in range(LAYERS):
        here = f"blk.{layer}"
        yield f"{here}.attn_norm.weight", (HIDDEN,)
        yield f"{here}.ffn_norm.weight", (HIDDEN,)
        yield f"{here}.attn_q.weight", (HEADS * HEAD_DIM, HIDDEN)
        yield f"{here}.attn_k.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield f"{here}.attn_v.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield f"{here}.attn_output.weight", (HIDDEN, HEADS * HEAD_DIM)
        yield f"{here}.ffn_gate.weight", (FEED_FORWARD, HIDDEN)
        yield f"{here}.ffn_up.weight", (FEED_FORWARD, HIDDEN)
        yield f"{here}.ffn_down.weight", (HIDDEN, FEED_FORWARD)


def _draw_q4_1(random: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Random blocks of scale, minimum and 32 codes, with values of mean 0 and deviation about 1 / sqrt(columns)."""
    blocks = random.integers(0, 256, (rows, columns // BLOCK, 20), np.uint8)
    scales = (random.uniform(0.5, 1.5, blocks.shape[:2]) / (4.6 * columns**0.5)).astype(np.float16)
    blocks[..., :2] = scales[..., None].view(np.uint8)
    blocks[..., 2:4] = (scales * np.float16(-7.5))[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """A byte-level vocabulary filled up with words that no text has."""
    known = make_vocabulary()
    vocabulary = known + [f"<word-{index}>" for index in range(VOCAB_SIZE - len(known))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * len(TOKENS) + [1] * (VOCAB_SIZE - len(TOKENS)))
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def _write_moe(folder: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import _get_classes, quantize_model, save_config, save_model

    mx.random.seed(1)
    model_class, args_class = _get_classes(MOE_CONFIG)
    model = model_class(args_class.from_dict(MOE_CONFIG))
    model.set_dtype(mx.float16)
    model, config = quantize_model(model, dict(MOE_CONFIG), 64, 4)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    write_tiny_tokenizer(folder)
