"""A model's card from its config.json and the headers of its safetensors files: what placement needs, without loading anything."""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from paceline_services.domain.models import ModelCard
from paceline_services.errors import ConfigurationError
from paceline_services.ids import ModelId

# What the families of mlx-lm call their layers, the tables that are looked up by token and position, and the LM head.
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_LATER_LAYER = re.compile(r"(?:^|\.)kv_reuse_layers\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed|embed_in|embed_tokens\w*|\w*embeddings?|embd|wte|wpe)\.")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output|ff_out)(?:\.|$)")
# Of models that see and hear; mlx-lm runs what they have for text.
_NOT_TEXT = re.compile(r"(?:^|\.)(?:vision|visual|audio|multi_modal|mm_projector|embed_vision|embed_audio|aligner)")
_HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "hidden_dim", "n_embed", "model_dim")
_NUM_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads")
_NUM_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "U64": 8,
    "I32": 4,
    "U32": 4,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
}
_WIDENED = {"F16", "BF16"}
MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor in a file's header."""

    dtype: str
    shape: tuple[int, ...]
    end: int

    def loaded_bytes(self, compute_bytes: int) -> int:
        """Bytes in memory, once half-precision values have the compute type's size."""
        size = compute_bytes if self.dtype in _WIDENED else _SIZES.get(self.dtype, 1)
        return prod(self.shape) * size


def read_card(folder: Path, model_id: ModelId, *, compute_bytes: int = 4) -> ModelCard:
    """The card of the MLX model in folder; compute_bytes is the size of unpacked values in memory (4 on CPUs).

    Raises ConfigurationError when the folder is not a whole model.
    """
    config = read_config(folder)
    text = config.get("text_config") or config
    tensors = {name: tensor for name, tensor in read_tensors(folder).items() if not _NOT_TEXT.search(name)}
    sizes = _sum_by_part(tensors, compute_bytes)
    num_layers = 1 + max((part for part in sizes if isinstance(part, int)), default=-1)
    if not num_layers:
        raise ConfigurationError(
            f"{folder} has no layers among its tensors: it is not a language model that can be placed"
        )
    embedding, head = sizes.get("embedding", 0), sizes.get("head", 0)
    values = _count_values_by_part(tensors, config)
    try:
        kv_values = _kv_values(text)
        context_length = int(text.get("max_position_embeddings") or 2048)
        hidden_size = _read_number(text, *_HIDDEN_SIZE)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ConfigurationError(f"{folder / 'config.json'} has sizes that are no numbers: {error}") from error
    return ModelCard(
        model_id=model_id,
        model_type=str(config.get("model_type", "")),
        num_layers=num_layers,
        layer_bytes=tuple(sizes.get(layer, 0) for layer in range(num_layers)),
        embedding_bytes=embedding,
        head_bytes=head + (0 if "lm_head" in sizes else embedding),
        kv_bytes_per_token_per_layer=kv_values * compute_bytes,
        context_length=context_length,
        hidden_size=hidden_size,
        quantization=_describe_quantization(config),
        layer_values=tuple(values.get(layer, 0) for layer in range(num_layers)),
        head_values=values.get("head", 0) + (0 if "lm_head" in sizes else values.get("embedding", 0)),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder; raises ConfigurationError when there is none or it is unusable."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} does not exist or is not a folder")
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigurationError(f"{folder} has no config.json: it is not a model folder") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ConfigurationError(f"{path} names no model_type: it is not the config of a model")
    return config


def read_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the folder's model*.safetensors files, from their headers; checks that no file is missing or cut off."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ConfigurationError(
            f"{folder} has no weights (no model*.safetensors): download or convert the model again"
        )
    _check_index(folder, {file.name for file in files})
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        tensors |= _read_header(file)
    return tensors


def _read_header(file: Path) -> dict[str, TensorEntry]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ConfigurationError(f"{file} is truncated or no safetensors file: download it again")
        try:
            header = json.loads(stream.read(length))
            entries = {
                name: TensorEntry(entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1])
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigurationError(f"{file} has a damaged header: download it again") from error
    end = 8 + length + max((entry.end for entry in entries.values()), default=0)
    if end > size:
        raise ConfigurationError(f"{file} is truncated: it has {size} of {end} bytes; download it again")
    return entries


def _check_index(folder: Path, files: set[str]) -> None:
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return
    try:
        wanted = set(json.loads(path.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    if missing := sorted(wanted - files):
        raise ConfigurationError(
            f"{folder} lacks {missing[0]}" + (f" and {len(missing) - 1} more files" if len(missing) > 1 else "")
        )


def _sum_by_part(tensors: Mapping[str, TensorEntry], compute_bytes: int) -> dict[int | str, int]:
    """Bytes by layer number, "embedding" and "head" (all the rest); "lm_head" is there when the head is not tied."""
    sizes: dict[int | str, int] = {}
    first_later = _find_later_layers(tensors)
    for name, tensor in tensors.items():
        part = _find_part(name, first_later)
        if part == "head" and _HEAD.search(name):
            sizes.setdefault("lm_head", 0)
        sizes[part] = sizes.get(part, 0) + tensor.loaded_bytes(compute_bytes)
    return sizes


def _count_values_by_part(tensors: Mapping[str, TensorEntry], config: Mapping[str, Any]) -> dict[int | str, int]:
    """Weights of matrices by part: of packed ones as many as their scales stand for, vectors left out."""
    quantization = config.get("quantization") or {}
    group_size = int(quantization.get("group_size") or 1)
    counts: dict[int | str, int] = {}
    first_later = _find_later_layers(tensors)
    for name, tensor in tensors.items():
        kind = name.rpartition(".")[2]
        is_packed = kind == "weight" and f"{name.removesuffix('weight')}scales" in tensors
        if len(tensor.shape) < 2 or kind == "biases" or is_packed:
            continue
        part = _find_part(name, first_later)
        counts[part] = counts.get(part, 0) + prod(tensor.shape) * (group_size if kind == "scales" else 1)
    return counts


def _find_later_layers(names: Iterable[str]) -> int:
    """The number of the first layer of a second list of them."""
    return 1 + max((int(match[1]) for name in names if (match := _LAYER.search(name))), default=-1)


def _find_part(name: str, first_later: int) -> int | str:
    if match := _LAYER.search(name):
        return int(match[1])
    if match := _LATER_LAYER.search(name):
        return first_later + int(match[1])
    return "embedding" if _EMBEDDING.search(name) else "head"


def _read_number(config: Mapping[str, Any], *names: str) -> int:
    """The first of these names that the config has a number for; 0 when it has none."""
    return next((int(config[name]) for name in names if config.get(name)), 0)


def _kv_values(config: Mapping[str, Any]) -> int:
    """Values that one token adds to one layer's KV cache."""
    if config.get("kv_lora_rank"):
        return int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)
    heads = _read_number(config, *_NUM_HEADS) or 1
    head_dim = int(config.get("head_dim") or _read_number(config, *_HIDDEN_SIZE) // heads)
    return 2 * (_read_number(config, *_NUM_KV_HEADS) or heads) * head_dim


def _describe_quantization(config: Mapping[str, Any]) -> str:
    quantization = config.get("quantization") or {}
    if bits := quantization.get("bits"):
        return f"{bits}bit"
    return str(config.get("torch_dtype") or config.get("dtype") or "")
