"""GGUF's vocabulary -> the files of a Hugging Face fast tokenizer.

Byte-level BPE vocabularies only ("gpt2" in GGUF's terms: Llama 3, Qwen, SmolLM ...). How text is divided before BPE is not in the file,
only a name for it; the patterns below are those of the models' own tokenizer.json files. An unknown name is refused, never guessed:
a wrong division gives wrong tokens without any error.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from paceline_services.errors import ConfigurationError

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {"llama-bpe": _WORDS % "{1,3}", "llama3": _WORDS % "{1,3}", "qwen2": _WORDS % ""}
_DIGIT_WISE = {"smollm"}
_PLAIN = {"gpt-2", "default"}

_CONTROL, _USER_DEFINED = 3, 4


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json. Raises ConfigurationError for a vocabulary that is not supported."""
    tokenizer = make_tokenizer(metadata)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": int(metadata.get(f"{metadata['general.architecture']}.context_length", 1 << 30)),
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (token := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[f"{role}_token"] = tokens[int(token)]
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def make_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer itself; raises ConfigurationError for a vocabulary that is not supported."""
    kind, division = metadata.get("tokenizer.ggml.model"), str(metadata.get("tokenizer.ggml.pre", "default"))
    if kind != "gpt2" or division not in {*_PATTERNS, *_DIGIT_WISE, *_PLAIN}:
        raise ConfigurationError(
            f"the GGUF file's tokenizer ({kind!r}, divided as {division!r}) cannot be rebuilt exactly: use the model's MLX version instead"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(tokens)}, merges, ignore_merges=division.startswith("llama")
        )
    )
    tokenizer.pre_tokenizer = _make_division(division)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    for token, token_kind in zip(tokens, kinds, strict=False):
        if token_kind in {_CONTROL, _USER_DEFINED}:
            tokenizer.add_tokens([AddedToken(token, special=token_kind == _CONTROL, normalized=False)])
    if (
        metadata.get("tokenizer.ggml.add_bos_token")
        and (bos := metadata.get("tokenizer.ggml.bos_token_id")) is not None
    ):
        name = tokens[int(bos)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, int(bos))]
        )
    return tokenizer


def _make_division(name: str) -> pre_tokenizers.PreTokenizer:
    if name in _DIGIT_WISE:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if name in _PLAIN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERNS[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
