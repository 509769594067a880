"""Families that wrap the language model of another one, mostly because they see pictures, too."""

from support.architectures.experts import QWEN3_MOE
from support.architectures.latent import DEEPSEEK
from support.architectures.parts import (
    DELTA_ATTENTION,
    EXPERT_FEED_FORWARD,
    FEED_FORWARD,
    FIRST_LAYER_DENSE,
    FULL,
    GATED_DELTA,
    HEAD_DIM,
    KV_HEADS,
    MLA,
    NUM_EXPERTS,
    TOP_EXPERTS,
    TWO_SLIDING_ONE_FULL,
    VOCAB_SIZE,
    WINDOW,
    Config,
    by_model_type,
    tiny,
    tiny_inside,
)
from support.architectures.recurrent import LFM2
from support.architectures.windows import GEMMA3, GEMMA4, MINISTRAL3

QWEN3_5: Config = {
    **GATED_DELTA,
    "full_attention_interval": 3,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "type": "default",
        "mrope_section": [2, 1, 1],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
}
PACKED_WIDTH, ROTATED_WIDTH = 128, 512


def pack(path: str, block: int, *, embedding: bool = False) -> Config:
    """A module that a Hadamard pack holds in 2 bits; block: values that are rotated together, 0 for none."""
    return {"path": path, "block": block, "embedding": embedding, "dtype": "float16"}


WRAPPERS = by_model_type(
    tiny_inside("gemma3", tiny("gemma3_text", **GEMMA3), vocab_size=VOCAB_SIZE),
    # Four streams of activations, of which each layer predicts all and corrects by one; inputs of each layer's own.
    tiny_inside(
        "gemma3n",
        tiny(
            "gemma3n_text",
            layer_types=TWO_SLIDING_ONE_FULL,
            sliding_window=WINDOW,
            num_kv_shared_layers=2,
            vocab_size_per_layer_input=VOCAB_SIZE,
            rope_local_base_freq=10000.0,
            final_logit_softcapping=30.0,
            activation_sparsity_pattern=[0.95, 0.95, 0, 0, 0, 0],
            hidden_size_per_layer_input=16,
            altup_num_inputs=4,
            altup_coef_clip=120.0,
            altup_correct_scale=True,
            altup_active_idx=0,
            laurel_rank=16,
        ),
    ),
    # With experts beside the dense part, and keys that are the values, too.
    tiny_inside(
        "gemma4",
        tiny(
            "gemma4_text",
            **GEMMA4,
            enable_moe_block=True,
            num_experts=NUM_EXPERTS,
            top_k_experts=TOP_EXPERTS,
            moe_intermediate_size=EXPERT_FEED_FORWARD,
            attention_k_eq_v=True,
        ),
        vocab_size=VOCAB_SIZE,
    ),
    tiny_inside("kimi_k25", tiny("kimi_k2", **DEEPSEEK)),
    # Activations of earlier blocks of two layers are mixed into each layer's input.
    tiny_inside(
        "kimi_k3",
        tiny(
            "kimi_linear",
            **MLA,
            linear_attn_config=DELTA_ATTENTION,
            num_experts=NUM_EXPERTS,
            num_experts_per_token=TOP_EXPERTS,
            num_shared_experts=1,
            moe_intermediate_size=EXPERT_FEED_FORWARD,
            first_k_dense_replace=1,
            activation_situ_beta=1.0,
            activation_situ_linear_beta=1.0,
            attn_res_block_size=2,
        ),
    ),
    tiny_inside("kimi_vl", tiny("deepseek_v3", **DEEPSEEK)),
    tiny_inside("lfm2-vl", tiny("lfm2", **LFM2)),
    # Three layers attend within chunks, the fourth to all tokens; every second one has experts.
    tiny_inside(
        "llama4",
        tiny(
            "llama4_text",
            num_hidden_layers=8,
            attention_bias=False,
            attention_chunk_size=WINDOW,
            interleave_moe_layer_step=2,
            intermediate_size_mlp=FEED_FORWARD,
            num_experts_per_tok=1,
            num_local_experts=NUM_EXPERTS,
            rope_scaling=None,
            use_qk_norm=True,
            floor_scale=8,
        ),
    ),
    # Two of three layers attend to the blocks of four tokens that an index chooses.
    tiny_inside(
        "minimax_m3_vl",
        tiny(
            "minimax_m3",
            intermediate_size=EXPERT_FEED_FORWARD,
            dense_intermediate_size=FEED_FORWARD,
            shared_intermediate_size=EXPERT_FEED_FORWARD,
            num_local_experts=NUM_EXPERTS,
            num_experts_per_tok=TOP_EXPERTS,
            moe_layer_freq=FIRST_LAYER_DENSE,
            layer_types=[FULL, "sparse_attention", "sparse_attention"] * 2,
            sparse_attention_config={
                "sparse_num_index_heads": KV_HEADS,
                "sparse_index_dim": HEAD_DIM,
                "sparse_block_size": 4,
                "sparse_topk_blocks": 2,
                "sparse_local_block": 1,
                "sparse_attention_freq": [0, 1, 1] * 2,
            },
        ),
    ),
    tiny_inside("mistral3", tiny("ministral3", **MINISTRAL3)),
    tiny_inside("pixtral", tiny("mistral", layer_types=TWO_SLIDING_ONE_FULL, sliding_window=WINDOW)),
    # The feed forwards' second halves in 2 bits, one of them rotated; so is the embedding.
    tiny_inside(
        "prism_hadamard_qwen35",
        tiny("qwen3_5_text", **QWEN3_5, hidden_size=PACKED_WIDTH, intermediate_size=ROTATED_WIDTH),
        schema_version=1,
        tensor_namespace="mlx-lm-text",
        gdn_activation_layout="grouped",
        quantization={"bits": 2, "group_size": 128, "mode": "affine"},
        modules=[
            pack("model.embed_tokens", 0, embedding=True),
            pack("model.layers.1.mlp.down_proj", 512),
            pack("model.layers.4.mlp.down_proj", 0),
        ],
    ),
    tiny_inside("qwen2_vl", tiny("qwen2", tie_word_embeddings=False)),
    tiny_inside("qwen3_5", tiny("qwen3_5_text", **QWEN3_5)),
    tiny_inside(
        "qwen3_5_moe",
        tiny(
            "qwen3_5_moe_text",
            **QWEN3_5,
            num_experts=NUM_EXPERTS,
            num_experts_per_tok=TOP_EXPERTS,
            shared_expert_intermediate_size=EXPERT_FEED_FORWARD,
            moe_intermediate_size=EXPERT_FEED_FORWARD,
        ),
    ),
    tiny_inside("qwen3_vl", tiny("qwen3", tie_word_embeddings=False)),
    tiny_inside("qwen3_vl_moe", QWEN3_MOE),
)
