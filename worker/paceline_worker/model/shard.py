"""Loads one stage of a model: mlx-lm's own model code with only this stage's layers behind it.

How a model is cut, for every family at once: the list of layers keeps its length, so that all that goes by a layer's index
(patterns of sliding windows, layer_types, the cache that a mask is made from) stays right. Layers of other stages become Skipped,
which hands its input on; on later stages the embedding becomes HandIn, which hands in the activation; on earlier ones the final norm
becomes identity. Only the tensors of held parts are read: mlx-lm's lazy load reads a tensor when it is evaluated, nothing else ever is.
What a stage of the same model that was loaded before holds already is not read either: the new one takes its arrays over, and is joined
and tried out as if it had read them, so that it is the same stage to the last bit.

Families for which that was not shown are refused rather than run wrong.
"""

import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.utils import load_model

from paceline_kernels import are_kernels_in_use, speed_up_layers
from paceline_services.errors import ConfigurationError
from paceline_worker.model.stage import ShardRange, StageModel
from paceline_worker.model.tensor.division import divide
from paceline_worker.model.tensor.files import TensorFiles
from paceline_worker.model.tensor.linears import SummedLinear, SummedQuantizedLinear
from paceline_worker.weights.card import read_config
from paceline_worker.weights.tensor_sizes import find_tensor_sizes

# mlx-lm's model files whose division is tested to the last bit (tests/truth/test_families.py). Any other could be run wrong without
# an error: granite, for one, scales what the embedding gives, and every stage would do so again.
DIVISIBLE = frozenset(
    {"llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "phi3", "mixtral", "deepseek_v3", "gpt_oss"}
)

# Modules whose weights the CPU kernels read in half precision. Whatever else is in half precision becomes float32.
READ_IN_HALF = frozenset(
    {
        *(nn.Linear, nn.QuantizedLinear, SummedLinear, SummedQuantizedLinear),
        *(nn.Embedding, nn.QuantizedEmbedding, SwitchLinear, QuantizedSwitchLinear),
    }
)

EMBEDDING, LAYERS, NORM = "embed_tokens", "layers", "norm"


class _Absent:
    """Keeps a module out of the parameters of the one that stands in for it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


class Skipped(nn.Module):
    """Stands where another stage's layer was: hands its input on. Attributes that a loop over layers asks for are the layer's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.absent = _Absent(layer)

    def __call__(self, x: mx.array, *_: Any, **__: Any) -> mx.array:
        return x

    def __getattr__(self, name: str) -> Any:
        if name == "absent" or name in self:
            return super().__getattr__(name)
        return getattr(self["absent"].module if "absent" in self else self.__dict__["absent"].module, name)


class HandIn(nn.Module):
    """Stands where the embedding was on later stages: its input is the activation already. Tied models still use it as LM head."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def __call__(self, activation: mx.array) -> mx.array:
        return activation

    def as_linear(self, x: mx.array) -> mx.array:
        return self.embedding.as_linear(x)


@dataclass(frozen=True, slots=True)
class LoadedShard:
    """A stage in memory, the bytes of its parameters there, and the bytes of the tensors that were read for it.

    weights: its parameters by the names that they have in the whole model.
    """

    model: StageModel
    shard: ShardRange
    loaded_bytes: int
    read_bytes: int
    weights: dict[str, mx.array]

    def give_up(self) -> dict[str, mx.array]:
        """The weights, which nothing here holds any more; the stage cannot be run again."""
        self.model.give_up()
        weights = dict(self.weights)
        self.weights.clear()
        return weights


def load_shard(
    folder: Path,
    shard: ShardRange,
    on_progress: Callable[[float], None],
    *,
    kv_bits: int = 0,
    held: LoadedShard | None = None,
    group: mx.distributed.Group | None = None,
) -> LoadedShard:
    """Load a stage from an MLX folder. on_progress is called with the part done, 0 to 1. kv_bits: those of its KV caches; 0: not quantised.

    held: a stage of the same model and kv_bits, which is given up for this one. What both have is not read again; what this one has not is
    freed before anything is read.

    group: the ranks that share the stage; this one gets its part of every layer, of the embedding and of the LM head, and no held stage.

    On CPUs everything that is not packed becomes float32: MLX's float16 path is 40 times slower there. Where the CPU kernels are in use
    they read half-precision weights and scales as they are, and the layers' steps are joined.
    Raises ConfigurationError when the folder is no usable model, the family cannot be cut, or the layers not be divided over so many ranks.
    """
    if held is not None and held.shard.has_same_parts(shard):
        on_progress(1.0)
        return replace(held, shard=shard, read_bytes=0)
    model, files = _load_lazily(folder, group)
    trunk = find_trunk(model, folder)
    num_layers = len(trunk[LAYERS])
    if not 0 <= shard.start_layer < shard.end_layer <= num_layers:
        raise ConfigurationError(
            f"layers {shard.start_layer} to {shard.end_layer} were asked of a model with {num_layers}"
        )
    names = {id(module): name for name, module in model.named_modules()}
    _cut(model, trunk, shard, folder)
    parts = [module for module in (trunk.get(EMBEDDING), *trunk[LAYERS], trunk.get(NORM), model) if module is not None]
    read_bytes = files.count_read_bytes(model)
    if held is not None:
        read_bytes -= _take_over(model, names, held.give_up())
        gc.collect()  # classes of joined layers are in cycles, and hold what is to be freed
    for index, part in enumerate(parts):
        files.read_into(part)
        _materialize(part)
        on_progress((index + 1) / len(parts))
    weights = {name: module[key] for name, module, key in _list_weights(model, names)}
    example = _make_example(model, shard)
    speed_up_layers(trunk, example)
    loaded_bytes = _count_bytes(model)
    stage = StageModel(model, trunk, shard, kv_bits)
    stage.try_out(example[0])
    mx.clear_cache()
    return LoadedShard(stage, shard, loaded_bytes, read_bytes, weights)


def find_trunk(model: nn.Module, folder: Path) -> nn.Module:
    """The module that holds embedding, layers and final norm; raises ConfigurationError when there is not exactly one."""
    found = [
        module for _, module in model.named_modules() if isinstance(module.get(LAYERS), list) and EMBEDDING in module
    ]
    if len(found) != 1 or NORM not in found[0]:
        raise ConfigurationError(
            f"{folder.name}: models of type {_model_type(model)} cannot be divided into stages yet"
        )
    return found[0]


def _load_lazily(folder: Path, group: mx.distributed.Group | None) -> tuple[Any, TensorFiles]:
    """The model, divided over the group where there is one, and the files that its tensors are to be read from."""
    if group is not None:
        _check_size(folder, group.size())
    try:
        files = TensorFiles(folder)
        model = load_model(folder, lazy=True, get_model_classes=files.get_classes)[0]
        if group is not None:
            divide(model, files, group)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{folder} is not a complete MLX model: {error}") from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigurationError(f"the model in {folder} cannot be loaded: {reason}") from error
    return model, files


def _check_size(folder: Path, size: int) -> None:
    found = find_tensor_sizes(read_config(folder))
    if size not in found.sizes:
        raise ConfigurationError(f"{folder.name} cannot be divided over {size} ranks: {found.refusal}")


def _cut(model: nn.Module, trunk: nn.Module, shard: ShardRange, folder: Path) -> None:
    if shard.num_stages == 1:
        return
    if type(trunk).__module__.rpartition(".")[2] not in DIVISIBLE:
        raise ConfigurationError(
            f"{folder.name}: models of type {_model_type(model)} cannot be divided into stages yet "
            f"(those that can: {', '.join(sorted(DIVISIBLE))}); run it on one node"
        )
    trunk.layers = [layer if shard.holds(index) else Skipped(layer) for index, layer in enumerate(trunk[LAYERS])]
    if not shard.is_first:
        _neutralize_embedding_scale(trunk)
        trunk.embed_tokens = HandIn(trunk[EMBEDDING])
        if not (shard.is_last and _is_tied(model)):
            trunk.embed_tokens.embedding = _Absent(trunk.embed_tokens.embedding)
    if not shard.is_last:
        trunk.norm = nn.Identity()
        for name in [name for name in _owner(model, trunk).children() if _owner(model, trunk)[name] is not trunk]:
            _owner(model, trunk).pop(name)


def _neutralize_embedding_scale(trunk: nn.Module) -> None:
    """Gemma multiplies what the embedding returns by sqrt(args.hidden_size); an activation has been through that already."""
    args = getattr(trunk, "args", None)
    if "gemma" in type(trunk).__module__ and args is not None:
        trunk.args = copy(args)
        trunk.args.hidden_size = 1


def _owner(model: nn.Module, trunk: nn.Module) -> nn.Module:
    """The module that has the trunk and the LM head as children."""
    return next(
        module for _, module in model.named_modules() if any(child is trunk for child in module.children().values())
    )


def _is_tied(model: nn.Module) -> bool:
    return not any(name.split(".")[-1] == "lm_head" for name, _ in model.named_modules())


def _list_weights(model: nn.Module, names: Mapping[int, str]) -> Iterator[tuple[str, nn.Module, str]]:
    """Every parameter of a cut model: its name in the whole one, and where it is. names: those of the whole one's modules, by identity."""
    for _, module in model.named_modules():
        for key, value in module.items():
            if isinstance(value, mx.array) and not key.startswith("_"):
                yield f"{names[id(module)]}.{key}", module, key


def _take_over(model: nn.Module, names: Mapping[int, str], held: Mapping[str, mx.array]) -> int:
    """Put in what is held; returns how many bytes of the model's own tensors need not be read for it."""
    num_bytes = 0
    for name, module, key in list(_list_weights(model, names)):
        if name in held:
            num_bytes += module[key].nbytes
            module[key] = held[name]
    return num_bytes


def _count_bytes(model: nn.Module) -> int:
    return sum(weight.nbytes for _, weight in tree_flatten(model.parameters()))


def _materialize(module: nn.Module) -> None:
    """Read the module's tensors and convert them, giving the half-precision copies back."""
    if mx.default_device() == mx.cpu:
        keeps_half = READ_IN_HALF if are_kernels_in_use() else frozenset()
        for _, part in module.named_modules():
            _widen(part, {"weight", "scales", "biases"} if type(part) in keeps_half else set())
    mx.eval(module.parameters())


def _widen(module: nn.Module, kept: Collection[str]) -> None:
    """Convert the module's own half-precision tensors, but for those whose names are kept, to float32."""
    for name, weight in module.items():
        if isinstance(weight, mx.array) and name not in kept and weight.dtype in {mx.float16, mx.bfloat16}:
            module[name] = weight.astype(mx.float32)


def _make_example(model: nn.Module, shard: ShardRange) -> mx.array:
    """An input of the stage: three tokens, or their activations."""
    if shard.is_first:
        return mx.array([[0, 1, 2]])
    return mx.random.normal((1, 3, model.args.hidden_size), key=mx.random.key(0))


def _model_type(model: nn.Module) -> str:
    return str(getattr(model, "model_type", type(model).__module__.rpartition(".")[2]))
