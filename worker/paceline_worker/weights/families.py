"""Which families of mlx-lm cannot be divided into stages, and why: known without loading anything."""

from collections.abc import Mapping

# By the model_type of config.json.
UNDIVIDED: Mapping[str, str] = {}


def explain_undivided(model_type: str) -> str:
    """Why models of this type run in one stage only, or "" where they can be divided."""
    return UNDIVIDED.get(model_type, "")
