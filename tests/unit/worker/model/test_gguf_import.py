"""Importing GGUF files: values stay exact where they can, losses are told, and bad files leave one line and no folder."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from paceline_services.errors import ConfigurationError
from paceline_worker.model.gguf_blocks import unpermute_rows
from paceline_worker.model.import_gguf import import_gguf
from paceline_worker.model.ranges import ShardRange
from paceline_worker.model.shard import load_shard
from paceline_worker.model.stage import Part
from paceline_worker.model.tokenizer import load_tokenizer
from support.gguf_files import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    NUM_LAYERS,
    make_vocabulary,
    make_weights,
    name_in_gguf,
    write_gguf,
)

QUERY = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


def ignore(done: int, total: int) -> None:
    """A progress callback for tests of other things."""


def load_tensors(file: Path) -> dict[str, mx.array]:
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    return tensors


def run_import(source: Path, folder: Path) -> dict[str, mx.array]:
    """Import and read the tensors back."""
    import_gguf(source, folder, ignore)
    tensors: dict[str, mx.array] = {}
    for file in folder.glob("model*.safetensors"):
        tensors |= load_tensors(file)
    return tensors


def dequantize(tensors: dict[str, mx.array], module: str, folder: Path) -> npt.NDArray[np.float32]:
    """Values of a module as MLX computes with them, in float32."""
    if f"{module}.scales" not in tensors:
        return np.array(tensors[f"{module}.weight"].astype(mx.float32))
    quantization = json.loads((folder / "config.json").read_text())["quantization"]
    entry = quantization.get(module, quantization)
    scales, biases = (tensors[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
    return np.array(mx.dequantize(tensors[f"{module}.weight"], scales, biases, entry["group_size"], entry["bits"]))


def read_source(path: Path, module: str) -> npt.NDArray[np.float32]:
    """Values that the gguf package reads from the file, in the order of rows that mlx-lm uses for llama."""
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name_in_gguf(f"{module}.weight"))
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape)))
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(module.rpartition(".")[2])
    return np.asarray(unpermute_rows(values, heads) if heads else values, np.float32)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "F32"])
def test_values_are_exactly_those_of_the_file(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_gguf(tmp_path / "m.gguf", make_weights("llama"), kind=kind)
    tensors = run_import(source, tmp_path / "m")
    for module in (QUERY, QUERY.replace("q_proj", "k_proj"), DOWN, "model.embed_tokens"):
        assert np.array_equal(dequantize(tensors, module, tmp_path / "m"), read_source(source, module)), module
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_packed_tensors_are_those_that_mlx_itself_reads(kind: str, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", make_weights("llama"), kind=kind)
    tensors, read = run_import(source, tmp_path / "m"), load_tensors(source)
    for part in ("weight", "scales", "biases"):
        name = name_in_gguf(f"{DOWN}.weight").removesuffix("weight") + part
        assert mx.array_equal(tensors[f"{DOWN}.{part}"], read[name]), part


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_every_tensor_comes_back_under_its_name(architecture: str, is_tied: bool, tmp_path: Path) -> None:
    weights = make_weights(architecture, is_tied=is_tied)
    tensors = run_import(write_gguf(tmp_path / "m.gguf", weights, architecture=architecture), tmp_path / "m")
    assert tensors.keys() == weights.keys()
    for name, weight in weights.items():
        assert np.array_equal(np.array(tensors[name]), weight), name


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_imported_model_loads_and_runs(architecture: str, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", make_weights(architecture), architecture=architecture, kind="Q8_0")
    import_gguf(source, tmp_path / "m", ignore)
    model = load_shard(tmp_path / "m", ShardRange(0, 1, 0, NUM_LAYERS), lambda part: None).model
    logits = model.forward(mx.array([3, 4, 5]), [Part(model.make_cache(), 3, num_logits=1)])
    assert logits.shape == (1, len(make_vocabulary()))
    assert bool(mx.isfinite(logits).all())


def test_config_is_that_of_the_metadata(tmp_path: Path) -> None:
    import_gguf(write_gguf(tmp_path / "m.gguf", make_weights("llama"), kind="Q4_1"), tmp_path / "m", ignore)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert (config["num_hidden_layers"], config["hidden_size"]) == (NUM_LAYERS, HIDDEN)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (HEADS, KV_HEADS)
    assert config["max_position_embeddings"] == 256
    assert config["tie_word_embeddings"] is True
    assert config["eos_token_id"] == 2
    assert config["quantization"] == {"group_size": 32, "bits": 4}


@pytest.mark.parametrize(("kind", "bits", "limit"), [("Q4_K", 4, 0.1), ("Q5_0", 8, 0.01), ("Q6_K", 8, 0.01)])
def test_other_types_are_quantised_again_and_the_loss_is_told(
    kind: str, bits: int, limit: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_gguf(tmp_path / "m.gguf", make_weights("llama"), kind=kind)
    tensors = run_import(source, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["quantization"]["bits"] == bits
    expected, kept = read_source(source, DOWN), dequantize(tensors, DOWN, tmp_path / "m")
    loss = float(np.sqrt(np.mean((kept - expected) ** 2)) / np.sqrt(np.mean(expected**2)))
    assert 0 < loss < limit
    warnings = [line for line in capsys.readouterr().err.splitlines() if name_in_gguf(f"{DOWN}.weight") in line]
    assert len(warnings) == 1
    assert f"{loss:.2%} rms error" in warnings[0]


def test_progress_grows_to_the_bytes_of_all_tensors(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", make_weights("llama"), kind="Q8_0")
    told: list[tuple[int, int]] = []
    import_gguf(source, tmp_path / "m", lambda done, total: told.append((done, total)))
    total = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(source).tensors)
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_tokenizer_gives_the_files_ids_and_template(tmp_path: Path) -> None:
    import_gguf(write_gguf(tmp_path / "m.gguf", make_weights("llama")), tmp_path / "m", ignore)
    tokenizer = load_tokenizer(tmp_path / "m")
    vocabulary = make_vocabulary()
    assert tokenizer.encode("<|im_start|> t!") == [1, vocabulary.index("Ġt"), vocabulary.index("!")]
    assert set(tokenizer.eos_token_ids) == {2}
    text = "Grüße, 12345 naïve — 日本語 \n\t 🙂 don't"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "t"}], tokenize=False)
    assert prompt == "<|im_start|>t<|im_end|>"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architecture": "mamba"}, r"'mamba'.*supported: llama, qwen2, qwen3"),
        ({"tokenizer": "llama"}, "cannot be rebuilt exactly"),
        ({"division": "nosuch"}, "'nosuch'.*cannot be rebuilt exactly"),
        ({"extra": [("llama.rope.scaling.type", "yarn")]}, "rope scaling 'yarn'"),
    ],
)
def test_what_cannot_be_imported_right_is_refused(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", make_weights("llama"), **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=reason) as refused:
        import_gguf(source, tmp_path / "out" / "m", ignore)
    assert "\n" not in refused.value.message
    assert not any((tmp_path / "out").glob("*"))


def test_file_cut_off_anywhere_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", make_weights("llama"), kind="Q8_0").read_bytes()
    cut = tmp_path / "cut.gguf"
    for part in range(40):
        cut.write_bytes(whole[: len(whole) * part // 40])
        with pytest.raises(ConfigurationError, match=r"not a GGUF|truncated") as refused:
            import_gguf(cut, tmp_path / "out" / "m", ignore)
        assert "\n" not in refused.value.message
        assert not any((tmp_path / "out").glob("*"))


def test_text_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", make_weights("llama")).read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole.replace(b"smollm", b"\xff\xfeollm", 1))
    with pytest.raises(ConfigurationError, match="truncated or damaged") as refused:
        import_gguf(tmp_path / "m.gguf", tmp_path / "out", ignore)
    assert "\n" not in refused.value.message


def test_folder_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigurationError, match="exists already"):
        import_gguf(write_gguf(tmp_path / "m.gguf", make_weights("llama")), tmp_path / "out", ignore)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip archive", b"<html>not found</html>"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"m\.gguf is not a GGUF file"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "m", ignore)


def test_command_tells_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 a zip archive")
    command = [sys.executable, "-m", "paceline_worker.model.import_gguf", str(tmp_path / "m.gguf"), str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"paceline: {tmp_path / 'm.gguf'} is not a GGUF file")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "m").exists()
