"""Families with latent attention, some of them with an index that chooses the tokens to attend to."""

from support.architectures.parts import (
    EXPERT_FEED_FORWARD,
    FEED_FORWARD,
    FEW_LAYERS,
    MLA,
    NUM_EXPERTS,
    NUM_LAYERS,
    ROUTED,
    SCALED_ROPE,
    TOP_EXPERTS,
    WINDOW,
    YARN,
    Config,
    by_model_type,
    tiny,
)

DEEPSEEK: Config = {**MLA, **ROUTED, "rope_scaling": None, "attention_bias": False}
INDEX: Config = {"index_head_dim": 32, "index_n_heads": 4, "index_topk": 8}
# Each layer has two attentions and two dense parts, and some of its experts do nothing.
LONGCAT: Config = {
    **MLA,
    "attention_method": "MLA",
    "ffn_hidden_size": FEED_FORWARD,
    "expert_ffn_hidden_size": EXPERT_FEED_FORWARD,
    "moe_topk": TOP_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "zero_expert_num": 2,
    "zero_expert_type": "identity",
    "num_layers": NUM_LAYERS,
    "routed_scaling_factor": 1.5,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "attention_bias": False,
}

LATENT = by_model_type(
    tiny("deepseek_v2", **{**DEEPSEEK, "topk_method": "group_limited_greedy", "rope_scaling": YARN}),
    tiny("deepseek_v3", num_hidden_layers=FEW_LAYERS, **DEEPSEEK),
    tiny("deepseek_v32", **DEEPSEEK, **INDEX),
    # The second layer compresses keys and values in pairs for those after it, and chooses blocks of candidates for the fourth,
    # which chooses among these for the fifth; the sixth compresses its own.
    tiny(
        "deepseek_v41",
        head_dim=32,
        q_lora_rank=32,
        qk_rope_head_dim=16,
        o_groups=2,
        o_lora_rank=32,
        moe_intermediate_size=EXPERT_FEED_FORWARD,
        n_routed_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_EXPERTS,
        sliding_window=WINDOW,
        compress_ratios=[0, 2, 2, 2, 2, 2],
        kv_source_layer_ids=[1, 5],
        index_source_layer_ids=[1, 3, 5],
        candidate_source_layer_id=1,
        candidate_topk_blocks=2,
        candidate_block_size=2,
        index_n_heads=4,
        index_head_dim=32,
        index_topk=3,
        rope_scaling=YARN,
        hc_mult=2,
        hc_sinkhorn_iters=3,
    ),
    tiny("glm4_moe_lite", **DEEPSEEK),
    tiny("glm_moe_dsa", **DEEPSEEK, **INDEX, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}),
    tiny("longcat_flash", **LONGCAT),
    # Embeds the last three tokens, too.
    tiny("longcat_flash_ngram", **LONGCAT, ngram_vocab_size_ratio=3, emb_neighbor_num=3, emb_split_num=2),
    tiny(
        "minicpm3",
        **MLA,
        dim_model_base=32,
        scale_depth=1.4,
        scale_emb=4.0,
        rope_scaling={
            "type": "longrope",
            "long_factor": [1.0 + index / 8 for index in range(8)],
            "short_factor": [1.0] * 8,
            "original_max_position_embeddings": 512,
        },
    ),
    tiny("mistral4", **DEEPSEEK, rope_parameters=SCALED_ROPE),
    tiny("youtu_llm", **MLA),
)
