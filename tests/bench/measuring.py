"""Measures a model in the systems that can run it: opens them, asks them in turn, alone and beside a foreign busy process."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import busy_core
from bench.peers import find_llama
from bench.rounds import Case, Ledger, Lineup, in_turn, say
from bench.system import LLAMA, STOCK, System, Timing, UnavailableError, allowed_cores, open_llama, open_mlx

DECODE_LIMIT_S = 20.0  # of one answer: a system that is 100 times slower than another shows that in a few tokens


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure: as an MLX folder, and as the GGUF file with the same weights where there is one."""

    title: str
    folder: Path
    vocab_size: int
    gguf: Path | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is asked. Stock MLX is slow, so it may take part in fewer rounds and prompt lengths."""

    rounds: int
    stock_rounds: int
    prompts: tuple[int, ...]
    stock_prompts: tuple[int, ...]
    num_tokens: int
    threads: tuple[int, ...] = (1, 2)

    def includes(self, name: str, prompt_tokens: int, number: int) -> bool:
        return name != STOCK or (number < self.stock_rounds and prompt_tokens in self.stock_prompts)


def make_prompt(num_tokens: int, vocab_size: int) -> list[int]:
    """Token ids without meaning, the same on every run."""
    return [1, *(3 + (index * 7919) % min(40000, vocab_size - 3) for index in range(num_tokens - 1))]


def count_weight_bytes(gguf: Path) -> int:
    """Bytes of all tensors of a GGUF file, minus those of an embedding table that is not the LM head too."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(gguf).tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


@contextmanager
def open_lineup(subject: Subject, names: tuple[str, ...], threads: tuple[int, ...]) -> Iterator[Lineup]:
    """Every named system once per number of threads, each pinned to as many cores."""
    with ExitStack() as stack:
        lineup = Lineup(stack)
        for num_threads in threads:
            if num_threads > len(allowed_cores()):
                lineup.give_up(UnavailableError(f"{num_threads} threads: only {len(allowed_cores())} cores are usable"))
                continue
            for name in names:
                _enter(lineup, subject, name, num_threads)
        yield lineup


def _enter(lineup: Lineup, subject: Subject, name: str, num_threads: int) -> None:
    def open_system() -> System:
        if name != LLAMA:
            return open_mlx(name, subject.folder, num_threads)
        if subject.gguf is None:
            raise UnavailableError(f"llama.cpp: {subject.title} is not made as a GGUF file")
        return open_llama(find_llama(), subject.gguf, num_threads, count_weight_bytes(subject.gguf))

    lineup.enter(open_system, num_threads)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The timings of a subject in a lineup; those beside a busy process have a ledger of their own, with quiet ones next to them."""

    subject: Subject
    effort: Effort
    lineup: Lineup
    quiet: Ledger = field(default_factory=Ledger)
    busy: Ledger = field(default_factory=Ledger)

    def warm_up(self) -> None:
        """Everything once: first calls compile, allocate and start threads. Of stock MLX, which is slow, a short prompt."""
        for system, _ in list(self.lineup.systems):
            for prompt_tokens in (4,) if system.name == STOCK else self.effort.prompts:
                self._generate(system, prompt_tokens, 4)

    def measure(self) -> None:
        """The quiet rounds."""
        for number in range(self.effort.rounds):
            for prompt_tokens in self.effort.prompts:
                for system, num_threads in in_turn(list(self.lineup.systems), number):
                    if self.effort.includes(system.name, prompt_tokens, number):
                        case = Case(system.name, num_threads, prompt_tokens)
                        self._record(self.quiet, case, number, system)
            say(f"{self.subject.title}: round {number + 1} of {self.effort.rounds} done")

    def measure_busy(self, rounds: int) -> None:
        """All but stock MLX at the most threads and the shortest prompt, alone and beside a busy process, in turn."""
        most, prompt_tokens = max(self.effort.threads), min(self.effort.prompts)
        taking_part = [system for system, threads in self.lineup.systems if threads == most and system.name != STOCK]
        for number in range(rounds):
            for system in in_turn(taking_part, number):
                for is_busy in (False, True):
                    with busy_core() if is_busy else nullcontext():
                        self._record(self.busy, Case(system.name, most, prompt_tokens, is_busy), number, system)
            say(f"{self.subject.title}: round {number + 1} of {rounds} beside a busy process done")

    def _record(self, ledger: Ledger, case: Case, number: int, system: System) -> None:
        if timing := self._generate(system, case.prompt_tokens, self.effort.num_tokens):
            ledger.add(case, number, timing)

    def _generate(self, system: System, prompt_tokens: int, num_tokens: int) -> Timing | None:
        prompt = make_prompt(prompt_tokens, self.subject.vocab_size)
        try:
            return system.generate(prompt, num_tokens, DECODE_LIMIT_S)
        except UnavailableError as error:
            self.lineup.drop(system, error)
            return None
