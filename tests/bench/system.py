"""A system under measurement, seen from the benchmark: a child process, spoken to over pipes, pinned to its cores.

What a child answers is decided in mlx_process.py and llama_process.py. A child that cannot be had says why, and is left out.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

TESTS = Path(__file__).parents[1]
STOCK, EXACT, FAST, LLAMA = "stock MLX", "ours, exact", "ours, fast", "llama.cpp"
PRECISIONS = {STOCK: "stock", EXACT: "exact", FAST: "fast"}


class UnavailableError(Exception):
    """This system cannot be measured here; the message says why."""


def allowed_cores() -> list[int]:
    """The cores this process may use, lowest first."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pick_cores(num_threads: int) -> list[int]:
    """The cores for so many threads: the last ones, as the first serves most interrupts."""
    return allowed_cores()[-num_threads:]


def child_environment() -> dict[str, str]:
    """This process's environment, with the tests' modules to be found."""
    known = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *known])}


@dataclass(frozen=True, slots=True)
class Timing:
    """One timed answer."""

    prompt_tokens: int
    prefill_s: float
    token_s: tuple[float, ...]
    token_ids: tuple[int, ...]

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prompt_tokens / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float:
        """1 / median time of a token."""
        ordered = sorted(self.token_s)
        middle = len(ordered) // 2
        return 2 / (ordered[middle] + ordered[-middle - 1])

    @property
    def mean_decode_tokens_per_s(self) -> float:
        """Tokens / time: unlike the median it shows stalls."""
        return len(self.token_s) / sum(self.token_s)


class System:
    """One child process. Use as a context manager; raises UnavailableError on entry or when the child dies."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.loaded: dict[str, Any] = {}
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
        )
        try:
            self.loaded = self._read()
            if reason := self.loaded.get("unavailable"):
                raise UnavailableError(f"{self.name}: {reason}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process and self._process.stdin and self._process.stdout:
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process and self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        return self._read()

    def generate(self, prompt: Sequence[int], num_tokens: int, limit_s: float = 600) -> Timing:
        """Greedy text after prompt, timed; decoding ends early when limit_s have passed."""
        answer = self.ask({"ask": "generate", "prompt": list(prompt), "num_tokens": num_tokens, "limit_s": limit_s})
        return Timing(len(prompt), answer["prefill_s"], tuple(answer["token_s"]), tuple(answer["token_ids"]))

    def _read(self) -> dict[str, Any]:
        assert self._process and self._process.stdout
        if line := self._process.stdout.readline():
            return dict(json.loads(line))
        raise self._death()

    def _death(self) -> UnavailableError:
        assert self._process
        return UnavailableError(f"{self.name}: its process ended with code {self._process.wait()}")


def open_mlx(name: str, folder: Path, num_threads: int) -> System:
    """MLX with stock operations or ours; name is STOCK, EXACT or FAST."""
    command = [sys.executable, "-m", "bench.mlx_process", str(folder), PRECISIONS[name]]
    return System(name, [*command, str(num_threads), _join(pick_cores(num_threads))])


def open_llama(python: Path, gguf: Path, num_threads: int, weight_bytes: int) -> System:
    """llama.cpp in the virtual environment of python; weight_bytes is what the file's tensors take."""
    command = [str(python), "-m", "bench.llama_process", str(gguf), str(num_threads)]
    return System(LLAMA, [*command, _join(pick_cores(num_threads)), str(weight_bytes)])


def _join(cores: Sequence[int]) -> str:
    return ",".join(map(str, cores))
