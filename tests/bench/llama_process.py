"""A child of the benchmark: llama.cpp through llama-cpp-python's low-level eval, in the virtual environment that peers.py made.

python -m bench.llama_process FILE.gguf THREADS CORES WEIGHT_BYTES. Answers "generate" requests (prompt, num_tokens, limit_s).
"""

import functools
import sys
from typing import Any

import numpy as np

from bench.serving import Answer, Logits, pin, serve, time_generation

CONTEXT, BATCH = 2048, 512


class LlamaSystem:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: str, num_threads: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._llama = llama_cpp.Llama(
            path,
            n_ctx=CONTEXT,
            n_batch=BATCH,
            n_ubatch=BATCH,
            n_threads=num_threads,
            n_threads_batch=num_threads,
            verbose=False,
        )
        self.description = llama_cpp.llama_print_system_info().decode()

    def answer(self, request: Answer) -> Answer:
        self._llama.reset()
        return time_generation(request, self._eval, lambda token: self._eval([token]))

    def _eval(self, tokens: list[int]) -> Logits:
        self._llama.eval(tokens)
        logits = self._library.llama_get_logits_ith(self._llama.ctx, -1)
        return np.ctypeslib.as_array(logits, shape=(self._llama.n_vocab(),))


def load(path: str, num_threads: int, weight_bytes: int) -> tuple[Answer, Any]:
    system = LlamaSystem(path, num_threads)
    return {"kernels": system.description, "bytes_per_token": weight_bytes}, system.answer


def main() -> None:
    path, threads, cores, weight_bytes = sys.argv[1:]
    pin(cores)
    serve(functools.partial(load, path, int(threads), int(weight_bytes)))


if __name__ == "__main__":
    main()
