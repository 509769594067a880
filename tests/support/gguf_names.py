"""mlx-lm's names of llama.cpp's tensors, written down once more so that the importer's own table is checked against another."""

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def name_in_mlx(name: str) -> str:
    """The name in mlx-lm of blk.3.attn_q.weight (or scales, or biases)."""
    place, _, kind = name.rpartition(".")
    if place in _TOP:
        return f"{_TOP[place]}.{kind}"
    _, layer, part = place.split(".")
    return f"model.layers.{layer}.{_PARTS[part]}.{kind}"
