"""A child of the benchmark: MLX with stock operations or with Paceline's kernels, loaded by the worker's own loader.

python -m bench.mlx_process FOLDER stock|exact|fast THREADS CORES. Answers "generate" requests (prompt, num_tokens, limit_s) and
"logits" requests (tokens, is_start, file): the latter writes the logits of every position, float32 [tokens, vocab], to a file.
"""

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.serving import Answer, Logits, pin, serve, time_generation

PREFILL_CHUNK = 512


def take_kernels(precision: str, num_threads: int) -> str:
    """Put Paceline's kernels under mx in this process and return what they compute with. Raises RuntimeError when they are not used."""
    import paceline_kernels

    report = paceline_kernels.use_kernels(precision=precision, num_threads=num_threads)
    if not report.in_use:
        raise RuntimeError(report.reason)
    return report.instruction_set


class MlxSystem:
    """A whole model as a single stage."""

    def __init__(self, folder: Path) -> None:
        from paceline_worker.model.ranges import ShardRange
        from paceline_worker.model.shard import load_shard

        num_layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
        loaded = load_shard(folder, ShardRange(0, 1, 0, num_layers), lambda _: None)
        self.loaded_bytes = loaded.loaded_bytes
        self._stage = loaded.model
        self._cache = self._stage.make_cache()

    @property
    def unread_bytes(self) -> int:
        """Bytes of weights that decoding a token does not touch: an embedding table that is not the LM head too (its one row is)."""
        model = self._stage._model
        if not hasattr(model, "lm_head"):
            return 0
        table = next(module for name, module in model.named_modules() if name.endswith("embed_tokens"))
        sizes = [weight.nbytes * (len(weight) - 1) // len(weight) for weight in table.parameters().values()]
        return sum(sizes)

    def answer(self, request: Answer) -> Answer:
        if request["ask"] == "logits":
            return self._write_logits(request)
        import mlx.core as mx

        self._cache = self._stage.make_cache()
        timed = time_generation(request, self._prefill, lambda token: self._forward([token]))
        self._cache = self._stage.make_cache()
        mx.clear_cache()
        return timed

    def _prefill(self, prompt: Sequence[int]) -> Logits:
        import mlx.core as mx

        from paceline_worker.model.stage import Part

        # As the worker does it: the last token is a step of its own, so logits of the others are never computed.
        for start in range(0, len(prompt) - 1, PREFILL_CHUNK):
            chunk = prompt[start : min(start + PREFILL_CHUNK, len(prompt) - 1)]
            mx.eval(self._stage.forward(mx.array(chunk, mx.int32), [Part(self._cache, len(chunk))]))
        return self._forward(prompt[-1:])

    def _forward(self, tokens: Sequence[int]) -> Logits:
        import mlx.core as mx

        from paceline_worker.model.stage import Part

        part = Part(self._cache, len(tokens), num_logits=1)
        return np.array(self._stage.forward(mx.array(tokens, mx.int32), [part]).reshape(-1), np.float32)

    def _write_logits(self, request: Answer) -> Answer:
        import mlx.core as mx

        from paceline_worker.model.stage import Part

        if request["is_start"]:
            self._cache = self._stage.make_cache()
            mx.clear_cache()
        tokens = request["tokens"]
        logits = self._stage.forward(
            mx.array(tokens, mx.int32), [Part(self._cache, len(tokens), num_logits=len(tokens))]
        )
        np.array(logits, np.float32).tofile(request["file"])
        return {"vocab": logits.shape[-1]}


def load(folder: Path, precision: str, num_threads: int) -> tuple[Answer, Any]:
    kernels = "" if precision == "stock" else take_kernels(precision, num_threads)
    system = MlxSystem(folder)
    loaded = {
        "kernels": kernels,
        "loaded_bytes": system.loaded_bytes,
        "bytes_per_token": system.loaded_bytes - system.unread_bytes,
    }
    return loaded, system.answer


def main() -> None:
    folder, precision, threads, cores = sys.argv[1:]
    pin(cores)
    serve(functools.partial(load, Path(folder), precision, int(threads)))


if __name__ == "__main__":
    main()
