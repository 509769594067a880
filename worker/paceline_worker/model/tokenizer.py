"""Tokenizers: mlx-lm's wrapper around the one that lies in the model's folder. Code from model folders is never run."""

from pathlib import Path
from typing import Any

from mlx_lm.utils import load_config
from mlx_lm.utils import load_tokenizer as load_with_mlx_lm

from paceline_services.errors import ConfigurationError


def load_tokenizer(folder: Path) -> Any:
    """mlx-lm's TokenizerWrapper: encodes, applies the chat template, knows the ends of sequences, makes streaming detokenizers.

    Raises ConfigurationError when the folder has no usable tokenizer.
    """
    try:
        return load_with_mlx_lm(folder, {"trust_remote_code": False}, _read_end_tokens(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigurationError(f"the tokenizer in {folder} cannot be loaded: {reason}") from error


def _read_end_tokens(folder: Path) -> list[int] | None:
    """The ends of sequences that the model's configuration knows beyond the tokenizer's: many models have several."""
    try:
        ends = load_config(folder).get("eos_token_id")
    except FileNotFoundError:
        return None
    found = ends if isinstance(ends, list) else [ends]
    return [end for end in found if isinstance(end, int)] or None
