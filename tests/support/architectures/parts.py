"""What tiny configs share: sizes in the usual names, and the parts that families have in common under the same names."""

from typing import Any

Config = dict[str, Any]

VOCAB_SIZE = 320
NUM_LAYERS = 6
FEW_LAYERS = 4
"""Of the families that most tests take: enough for three stages of different sizes where all layers are alike."""
WINDOW = 8
"""Tokens of a sliding window: fewer than the first chunk of any prompt of the tests."""
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
HIDDEN, FEED_FORWARD, EXPERT_FEED_FORWARD = 64, 128, 64
NUM_EXPERTS, TOP_EXPERTS = 4, 2
CONTEXT = 512
SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
TWO_SLIDING_ONE_FULL = [SLIDING, SLIDING, FULL] * 2
TWO_LINEAR_ONE_FULL = [LINEAR, LINEAR, FULL] * 2
FIRST_LAYER_DENSE = [0, 1, 1, 1, 1, 1]

# YaRN from a context so short that the tests' prompts are beyond it.
YARN: Config = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
}
# Attention is scaled by the position, from the 9th token on.
SCALED_ROPE: Config = {
    "rope_theta": 10000.0,
    "rope_type": "default",
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 8,
}
ROPE_BY_KIND: Config = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": "default", "rope_theta": 100000.0, "partial_rotary_factor": 0.5},
}
# DeepSeek's latent attention.
MLA: Config = {
    "num_key_value_heads": HEADS,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
# DeepSeek's routed and shared experts, in two groups of which one is chosen.
ROUTED: Config = {
    "moe_intermediate_size": EXPERT_FEED_FORWARD,
    "n_shared_experts": 1,
    "n_routed_experts": NUM_EXPERTS,
    "num_experts_per_tok": TOP_EXPERTS,
    "routed_scaling_factor": 1.5,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
# Experts in Qwen's names.
MIXTURE: Config = {
    "num_experts": NUM_EXPERTS,
    "num_experts_per_tok": TOP_EXPERTS,
    "moe_intermediate_size": EXPERT_FEED_FORWARD,
    "norm_topk_prob": True,
}
# Experts in Ling's names.
LING_EXPERTS: Config = {
    **MIXTURE,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
}
# Granite's multipliers.
MULTIPLIERS: Config = {
    "logits_scaling": 2.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.7,
}
# Linear attention with a gated delta rule, in Qwen's names.
GATED_DELTA: Config = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
# Kimi's linear attention; its layers count from 1.
DELTA_ATTENTION: Config = {
    "kda_layers": [1, 2, 4, 5],
    "full_attn_layers": [3, 6],
    "num_heads": HEADS,
    "head_dim": HEAD_DIM,
    "short_conv_kernel_size": 4,
}


def tiny(model_type: str, **own: Any) -> Config:
    """A config in the usual names, with what is the family's own."""
    return {
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "num_hidden_layers": NUM_LAYERS,
        "intermediate_size": FEED_FORWARD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB_SIZE,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT,
        **own,
    }


def tiny_gpt(model_type: str, **own: Any) -> Config:
    """A config in the names of GPT-2."""
    return {
        "model_type": model_type,
        "n_embd": HIDDEN,
        "n_layer": NUM_LAYERS,
        "n_head": HEADS,
        "n_positions": CONTEXT,
        "layer_norm_epsilon": 1e-5,
        "vocab_size": VOCAB_SIZE,
        **own,
    }


def tiny_inside(model_type: str, text_config: Config, **own: Any) -> Config:
    """A config of a family that wraps a language model."""
    return {"model_type": model_type, "text_config": text_config, **own}


def by_model_type(*configs: Config) -> dict[str, Config]:
    return {config["model_type"]: config for config in configs}
