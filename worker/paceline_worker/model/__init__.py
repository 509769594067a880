"""Models on MLX: loading a shard, tokenizers, importing GGUF files. mlx-lm does the modelling; this room cuts and feeds it."""
