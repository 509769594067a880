"""Turns a GGUF file into an MLX folder: python -m paceline_worker.model.import_gguf SOURCE.gguf FOLDER [NAME CONTENT]...

Q4_0, Q4_1, Q8_0 and unquantised tensors keep their exact values; other types are dequantised and quantised again, with a warning that
names the loss. Tensors are converted one by one, so memory stays at one output file's worth. The folder appears whole or not at all.
Prints "progress DONE TOTAL" lines (bytes) for the agent.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import numpy.typing as npt

from paceline_services.errors import ConfigurationError, PacelineError
from paceline_worker.model.gguf_blocks import (
    GROUP_SIZE,
    PackedWeight,
    unpack_q4_0,
    unpack_q4_1,
    unpack_q8_0,
    unpermute_rows,
)
from paceline_worker.model.gguf_config import make_config, rename
from paceline_worker.model.gguf_tokenizer import write_tokenizer

Progress = Callable[[int, int], None]
Array = npt.NDArray[Any]

MAX_FILE_BYTES = 2 << 30
_EXACT = {"Q4_0": unpack_q4_0, "Q4_1": unpack_q4_1, "Q8_0": unpack_q8_0}
_PLAIN = {"F32", "F16", "BF16"}


@dataclass(slots=True)
class _Output:
    """Writes tensors into files of bounded size and remembers how each module was quantised."""

    folder: Path
    pending: dict[str, mx.array] = field(default_factory=dict)
    pending_bytes: int = 0
    index: dict[str, str] = field(default_factory=dict)
    quantization: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, name: str, tensor: mx.array) -> None:
        self.pending[name] = tensor
        self.pending_bytes += tensor.nbytes
        if self.pending_bytes >= MAX_FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self.pending:
            return
        file = f"model-{len(set(self.index.values())) + 1:05d}.safetensors"
        mx.save_safetensors(str(self.folder / file), self.pending, metadata={"format": "mlx"})
        self.index |= dict.fromkeys(self.pending, file)
        self.pending, self.pending_bytes = {}, 0


def import_gguf(source: Path, folder: Path, on_progress: Progress, extra: Mapping[str, str] | None = None) -> None:
    """Import source into folder, which must not exist; extra are further files to put there. Raises ConfigurationError."""
    if folder.exists():
        raise ConfigurationError(f"{folder} exists already: choose another folder or remove it")
    reader, metadata = _open(source)
    names = {tensor.name for tensor in reader.tensors}
    config = make_config(metadata, is_tied="output.weight" not in names)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        output = _Output(work)
        _convert_tensors(reader, config, output, on_progress)
        _write_config(config, output)
        write_tokenizer(metadata, work)
        for name, content in (extra or {}).items():
            (work / name).write_text(content)
        work.chmod(0o755)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _open(source: Path) -> tuple[gguf.GGUFReader, dict[str, Any]]:
    try:
        with source.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ConfigurationError(f"{source} is not a GGUF file: it begins with {magic!r}")
        reader = gguf.GGUFReader(source)
        metadata = {name: part.contents() for name, part in reader.fields.items()}
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error.strerror or error}") from error
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{source} is truncated or damaged: download it again ({error})") from error
    size = source.stat().st_size
    end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    if not reader.tensors or end > size:
        raise ConfigurationError(f"{source} is truncated: it has {size} of {end} bytes; download it again")
    return reader, metadata


def _convert_tensors(reader: gguf.GGUFReader, config: dict[str, Any], output: _Output, on_progress: Progress) -> None:
    total = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    done = 0
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            raise ConfigurationError(
                "this GGUF file has scaled rope frequencies, which cannot be imported: use the MLX version"
            )
        name = rename(tensor.name, config)
        for part, array in _convert(tensor, name.module, output):
            rows = unpermute_rows(array, name.permuted_heads) if name.permuted_heads else array
            suffix = name.kind if part == "weight" else part
            output.add(f"{name.module}.{suffix}", _to_mlx(rows, tensor.tensor_type.name if part == "weight" else ""))
        done += int(tensor.n_bytes)
        on_progress(done, total)
    output.flush()


def _convert(tensor: gguf.ReaderTensor, module: str, output: _Output) -> Iterator[tuple[str, Array]]:
    """The parts of one tensor in MLX's layout: weight, and where it is quantised scales and biases."""
    kind = tensor.tensor_type.name
    shape = tuple(int(extent) for extent in reversed(tensor.shape))
    if kind in _PLAIN:
        yield "weight", np.asarray(tensor.data).view(np.uint16 if kind == "BF16" else tensor.data.dtype).reshape(shape)
        return
    packed = (
        _EXACT[kind](np.asarray(tensor.data).reshape(-1), shape[0]) if kind in _EXACT else _requantize(tensor, shape)
    )
    output.quantization[module] = {"group_size": GROUP_SIZE, "bits": packed.bits}
    yield "weight", packed.codes
    yield "scales", packed.scales
    yield "biases", packed.biases


def _requantize(tensor: gguf.ReaderTensor, shape: tuple[int, ...]) -> PackedWeight:
    exact = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
    bits = 4 if int(tensor.n_bytes) * 8 / exact.size < 5.5 else 8
    codes, scales, biases = mx.quantize(mx.array(exact), GROUP_SIZE, bits)
    scales, biases = scales.astype(mx.float16), biases.astype(mx.float16)
    kept = np.array(mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), GROUP_SIZE, bits))
    loss = float(np.sqrt(np.mean((kept - exact) ** 2)) / max(float(np.sqrt(np.mean(exact**2))), 1e-12))
    kind = tensor.tensor_type.name
    print(
        f"paceline: warning: {tensor.name} is {kind}, quantised again to {bits} bits: {loss:.2%} rms error",
        file=sys.stderr,
    )
    return PackedWeight(np.array(codes), np.array(scales), np.array(biases), bits)


def _to_mlx(array: Array, kind: str) -> mx.array:
    tensor = mx.array(array)
    return tensor.view(mx.bfloat16) if kind == "BF16" else tensor


def _write_config(config: dict[str, Any], output: _Output) -> None:
    if output.quantization:
        bits = [entry["bits"] for entry in output.quantization.values()]
        usual = max(set(bits), key=bits.count)
        special = {name: entry for name, entry in output.quantization.items() if entry["bits"] != usual}
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": usual, **special}
    (output.folder / "config.json").write_text(json.dumps(config, indent=2))
    index = {"metadata": {}, "weight_map": output.index}
    (output.folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> int:
    if len(sys.argv) < 3 or len(sys.argv) % 2 == 0:
        print("paceline: usage: import_gguf SOURCE.gguf FOLDER [NAME CONTENT]...", file=sys.stderr)
        return 1
    source, folder, extra = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    try:
        files = dict(zip(extra[::2], extra[1::2], strict=True))
        import_gguf(source, folder, lambda done, total: print(f"progress {done} {total}", flush=True), files)
    except PacelineError as error:
        print(f"paceline: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"paceline: {folder} cannot be written: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
