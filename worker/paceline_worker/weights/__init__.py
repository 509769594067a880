"""Models on disk: getting them, finding them, and reading their sizes. Used by the agent, so nothing here imports mlx."""
