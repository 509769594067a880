"""Small GGUF files with random weights, written by the gguf package the way llama.cpp's converter writes them."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
NUM_LAYERS, HIDDEN, HEADS, KV_HEADS, FEED_FORWARD = 2, 256, 4, 2, 512
HEAD_DIM = HIDDEN // HEADS

# Bytes of a block of 256 values, and where its half-precision scales are (ggml-common.h: block_q4_K, block_q6_K).
_K_BLOCKS = {"Q4_K": (144, (0, 2)), "Q6_K": (210, (208,))}

Weights = dict[str, npt.NDArray[np.float32]]


def make_vocabulary() -> list[str]:
    """Special tokens, then GPT-2's 256 printable stand-ins for bytes, then one merge."""
    return [*TOKENS, *_byte_alphabet(), "Ġt"]


def make_weights(architecture: str, seed: int = 1, *, is_tied: bool = True) -> Weights:
    """Random weights in Hugging Face's order of rows, under mlx-lm's names."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> npt.NDArray[np.float32]:
        return random.normal(0, 0.3, shape).astype(np.float32)

    vocabulary = len(make_vocabulary())
    weights = {"model.embed_tokens.weight": draw(vocabulary, HIDDEN), "model.norm.weight": draw(HIDDEN)}
    if not is_tied:
        weights["lm_head.weight"] = draw(vocabulary, HIDDEN)
    for layer in range(NUM_LAYERS):
        here = f"model.layers.{layer}"
        weights |= {
            f"{here}.input_layernorm.weight": draw(HIDDEN),
            f"{here}.post_attention_layernorm.weight": draw(HIDDEN),
            f"{here}.self_attn.q_proj.weight": draw(HEADS * HEAD_DIM, HIDDEN),
            f"{here}.self_attn.k_proj.weight": draw(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{here}.self_attn.v_proj.weight": draw(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{here}.self_attn.o_proj.weight": draw(HIDDEN, HEADS * HEAD_DIM),
            f"{here}.mlp.gate_proj.weight": draw(FEED_FORWARD, HIDDEN),
            f"{here}.mlp.up_proj.weight": draw(FEED_FORWARD, HIDDEN),
            f"{here}.mlp.down_proj.weight": draw(HIDDEN, FEED_FORWARD),
        }
        if architecture == "qwen2":
            weights |= {
                f"{here}.self_attn.q_proj.bias": draw(HEADS * HEAD_DIM),
                f"{here}.self_attn.k_proj.bias": draw(KV_HEADS * HEAD_DIM),
                f"{here}.self_attn.v_proj.bias": draw(KV_HEADS * HEAD_DIM),
            }
        if architecture == "qwen3":
            weights |= {
                f"{here}.self_attn.q_norm.weight": draw(HEAD_DIM),
                f"{here}.self_attn.k_norm.weight": draw(HEAD_DIM),
            }
    return weights


def write_gguf(
    path: Path,
    weights: Weights,
    *,
    architecture: str = "llama",
    kind: str = "F32",
    tokenizer: str = "gpt2",
    division: str = "smollm",
    extra: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write weights as GGUF; matrices get the quantisation kind (random blocks for Q4_K and Q6_K), vectors stay F32.

    extra are further string fields.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(NUM_LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    _add_tokenizer(writer, tokenizer, division)
    for key, text in extra:
        writer.add_string(key, text)
    quantization = gguf.GGMLQuantizationType[kind]
    for name, weight in weights.items():
        ordered = _order_rows(name, weight) if architecture == "llama" else weight
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(name_in_gguf(name), ordered)
        else:
            packed = (
                _draw_blocks(kind, ordered.shape) if kind in _K_BLOCKS else gguf.quants.quantize(ordered, quantization)
            )
            writer.add_tensor(name_in_gguf(name), packed, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def name_in_gguf(name: str) -> str:
    """llama.cpp's name of a tensor, by the gguf package's own table."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, NUM_LAYERS)
    module, _, kind = name.rpartition(".")
    found = names.get_name(module)
    assert found is not None, name
    return f"{found}.{kind}"


def _draw_blocks(kind: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Random blocks of a type that the gguf package reads but cannot write: the values are not those of any weights."""
    size, scale_offsets = _K_BLOCKS[kind]
    random = np.random.default_rng(2)
    blocks = random.integers(0, 256, (shape[0], shape[1] // 256, size), np.uint8)
    for offset in scale_offsets:
        blocks[..., offset : offset + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    return blocks.reshape(shape[0], -1)


def _order_rows(name: str, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """llama.cpp's order of query and key rows: LlamaModel.permute of its convert_hf_to_gguf.py."""
    heads = HEADS if ".q_proj." in name else KV_HEADS if ".k_proj." in name else 0
    if not heads:
        return weight
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def _add_tokenizer(writer: gguf.GGUFWriter, kind: str, division: str) -> None:
    vocabulary = make_vocabulary()
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(division)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * len(TOKENS) + [1] * (len(vocabulary) - len(TOKENS)))
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)


def _byte_alphabet() -> list[str]:
    """GPT-2's bytes_to_unicode: printable bytes stand for themselves, the others move up behind 255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]
