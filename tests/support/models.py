"""Tiny random models of many families, as MLX folders with a tokenizer: real mlx-lm modules, random weights."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from support.architectures import TINY_CONFIGS, VOCAB_SIZE

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# The families that most tests take.
_USUAL = ("llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "phi3", "mixtral", "gpt_oss", "deepseek_v3")
FAMILIES: dict[str, dict[str, Any]] = {family: TINY_CONFIGS[family] for family in _USUAL}
# Families whose checkpoints have no LM head, by which mlx-lm sees that it is tied to the embedding.
_WITHOUT_HEAD = ("gemma3_text", "gemma3", "recurrent_gemma")


def make_tiny_model(
    family: str, folder: Path, *, seed: int = 1, dtype: mx.Dtype = mx.float32, **changed: Any
) -> dict[str, Any]:
    """Write a random model of any family of TINY_CONFIGS; changed overrides its config. Returns the config."""
    folder.mkdir(parents=True)
    config = {**TINY_CONFIGS[family], **changed}
    mx.random.seed(seed)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(deepcopy(config)))
    weights = {name: weight.astype(dtype) if _is_float(weight) else weight for name, weight in _vary(model)}
    if family in _WITHOUT_HEAD:
        weights = {name: weight for name, weight in weights.items() if not name.endswith("lm_head.weight")}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config))
    write_tiny_tokenizer(folder)
    return config


def _vary(model: nn.Module) -> Iterator[tuple[str, mx.array]]:
    """The parameters of a new model, changed such that every one matters and positions differ.

    Matrices become larger than usual: otherwise every position gives the same token and a wrong mask goes unseen. Embeddings do not:
    with a tied head, each token would give itself. What starts as all zeros or ones (norms, gains, biases) becomes random about that:
    otherwise one in another's place goes unseen.
    """
    embeddings = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    for name, weight in tree_flatten(model.parameters()):
        if name.endswith(".signs"):  # of a Hadamard pack: nothing else may stand there
            yield name, mx.where(mx.random.bernoulli(shape=weight.shape), 1.0, -1.0)
        elif not _is_float(weight):
            yield name, mx.random.randint(0, 2**31 - 1, weight.shape).astype(weight.dtype)
        else:
            is_constant = bool(mx.all(weight == weight.reshape(-1)[0]))
            varied = weight + 0.1 * mx.random.normal(weight.shape) if is_constant else weight
            yield name, varied * 3 if weight.ndim > 1 and name not in embeddings else varied


def _is_float(weight: mx.array) -> bool:
    return bool(mx.issubdtype(weight.dtype, mx.floating))


def write_tiny_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of VOCAB_SIZE tokens with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["riders take turns at the front of a paceline, and together they go faster"] * 4, trainer
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": _CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
