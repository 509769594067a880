"""What GGUF's metadata and tensor names mean in the terms of mlx-lm's configs. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline_services.errors import ConfigurationError

SUPPORTED = ("llama", "qwen2", "qwen3")
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


@dataclass(frozen=True, slots=True)
class TensorName:
    """A tensor's name in mlx-lm, and whether its rows are in llama.cpp's rotary order for queries or keys."""

    module: str
    kind: str
    permuted_heads: int = 0


def make_config(metadata: Mapping[str, Any], *, is_tied: bool) -> dict[str, Any]:
    """mlx-lm's config.json for the metadata of a GGUF file; raises ConfigurationError for an architecture that is not supported."""
    architecture = str(metadata.get("general.architecture", ""))
    if architecture not in SUPPORTED:
        raise ConfigurationError(
            f"GGUF files of architecture {architecture!r} cannot be imported (supported: {', '.join(SUPPORTED)}): "
            "use the model's MLX version instead"
        )

    def read(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise ConfigurationError(
                f"the GGUF file lacks {architecture}.{key}: it is damaged or was made by an unknown converter"
            )
        return value

    num_heads, hidden_size = int(read("attention.head_count")), int(read("embedding_length"))
    config: dict[str, Any] = {
        "model_type": architecture,
        "hidden_size": hidden_size,
        "num_hidden_layers": int(read("block_count")),
        "intermediate_size": int(read("feed_forward_length")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(read("attention.head_count_kv", num_heads)),
        "head_dim": int(read("attention.key_length", hidden_size // num_heads)),
        "rms_norm_eps": float(read("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(read("rope.freq_base", 10000.0)),
        "max_position_embeddings": int(read("context_length")),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": is_tied,
    }
    for key, name in (("eos_token_id", "eos_token_id"), ("bos_token_id", "bos_token_id")):
        if (token := metadata.get(f"tokenizer.ggml.{key}")) is not None:
            config[name] = int(token)
    _check_rope(metadata, architecture)
    return config


def rename(tensor: str, config: Mapping[str, Any]) -> TensorName:
    """The name of a GGUF tensor in mlx-lm; raises ConfigurationError for one that has no place there."""
    match = _TENSOR.fullmatch(tensor)
    table = _IN_LAYER if match and match["layer"] else _TOP
    if match is None or match["part"] not in table:
        raise ConfigurationError(
            f"the GGUF file has a tensor {tensor!r} that {config['model_type']} models here do not know"
        )
    part = table[match["part"]]
    module = f"model.layers.{match['layer']}.{part}" if match["layer"] else part
    heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
    return TensorName(module, match["kind"], heads.get(part, 0) if config["model_type"] == "llama" else 0)


def _check_rope(metadata: Mapping[str, Any], architecture: str) -> None:
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling not in {"none", ""}:
        raise ConfigurationError(
            f"GGUF files with rope scaling {scaling!r} cannot be imported: use the model's MLX version instead"
        )
