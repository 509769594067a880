"""The tables and marks of measured systems, for whichever model."""

from dataclasses import dataclass

from bench.measuring import Effort
from bench.rounds import Case, Figure, Ledger, decode, mean_decode, prefill
from bench.system import EXACT, FAST, LLAMA, STOCK
from bench.tables import Mark, lowest, make_table, show

NAMES = (STOCK, EXACT, FAST, LLAMA)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What decoding reads per token (bytes, by system), and GB/s of one thread's streaming read."""

    bytes_per_token: dict[str, int]
    read_gb_per_s: float


def make_speed_table(ledger: Ledger, effort: Effort) -> str:
    columns = ["prompt", "threads", "system", "decode tokens/s", "x llama.cpp", "x stock"]
    rows = []
    for prompt in effort.prompts:
        for threads in effort.threads:
            cases = [Case(name, threads, prompt) for name in NAMES]
            rows += [_speed_row(ledger, case) for case in cases if ledger.has(case)]
    return make_table([*columns, "prefill tokens/s", "x llama.cpp", "x stock"], rows)


def _speed_row(ledger: Ledger, case: Case) -> list[str]:
    row = [str(case.prompt_tokens), str(case.num_threads), case.system]
    for read in (decode, prefill):
        row.append(show(ledger.median(case, read)))
        row += [show(ledger.ratio(case, case._replace(system=base), read), 2) for base in (LLAMA, STOCK)]
    return row


def make_thread_table(ledger: Ledger, effort: Effort) -> str:
    rows = []
    for prompt in effort.prompts:
        for name in NAMES:
            one, two = Case(name, 1, prompt), Case(name, 2, prompt)
            if ledger.has(one, two):
                rows.append([str(prompt), name, *(show(ledger.ratio(two, one, read), 2) for read in (decode, prefill))])
    return make_table(["prompt", "system", "decode, 2 / 1", "prefill, 2 / 1"], rows)


def make_busy_table(ledger: Ledger) -> str:
    rows = []
    for busy in [case for case in ledger.timings if case.is_busy]:
        quiet = busy._replace(is_busy=False)
        row = [busy.system, str(busy.prompt_tokens)]
        for read in (mean_decode, prefill):
            row += [
                show(ledger.median(quiet, read)),
                show(ledger.median(busy, read)),
                show(ledger.ratio(busy, quiet, read), 3),
            ]
        rows.append(row)
    columns = ["system", "prompt", "decode alone", "decode busy", "ratio", "prefill alone", "prefill busy", "ratio"]
    return make_table(columns, rows)


def make_bandwidth_table(ledger: Ledger, effort: Effort, bandwidth: Bandwidth) -> str:
    """Share = bytes per token * tokens per second / measured read bandwidth."""
    rows = []
    for name, size in bandwidth.bytes_per_token.items():
        speed = ledger.median(Case(name, 1, effort.prompts[0]), decode)
        if speed is not None:
            rate = size * speed / 1e9
            rows.append([name, show(size / 1e6), show(speed), show(rate, 2), f"{rate / bandwidth.read_gb_per_s:.0%}"])
    table = make_table(["system", "MB per token", "decode tokens/s", "GB/s", "share of the bandwidth"], rows)
    formula = (
        f"One thread streams through a large array at {bandwidth.read_gb_per_s:.1f} GB/s (median of three times). MB per token: the "
        "weights in memory (in the file for llama.cpp) less the rows of an embedding table that is not the LM head too; the demo "
        "model's is, so all of them are read. KV cache and activations are not counted. Share = MB per token x tokens/s / bandwidth."
    )
    return f"{table}\n\n{formula}"


def make_kernel_marks(ledger: Ledger, effort: Effort) -> list[Mark]:
    """What the kernels were built to reach on one thread, and on two against one."""

    def worst(name: str, base: str, read: Figure) -> float | None:
        measured = effort.stock_prompts if base == STOCK else effort.prompts
        return lowest([ledger.ratio(Case(name, 1, prompt), Case(base, 1, prompt), read) for prompt in measured])

    def scaling(name: str) -> float | None:
        return lowest([ledger.ratio(Case(name, 2, prompt), Case(name, 1, prompt), decode) for prompt in effort.prompts])

    marks = [
        Mark("exact decode / llama.cpp, 1 thread", 1.3, worst(EXACT, LLAMA, decode)),
        Mark("exact prefill / llama.cpp, 1 thread", 3.0, worst(EXACT, LLAMA, prefill)),
        Mark("fast decode / llama.cpp, 1 thread", 1.0, worst(FAST, LLAMA, decode)),
        Mark("exact decode / stock MLX, 1 thread", 7.0, worst(EXACT, STOCK, decode)),
        Mark("exact prefill / stock MLX, 1 thread", 35.0, worst(EXACT, STOCK, prefill)),
    ]
    if len(effort.threads) > 1:
        marks += [Mark(f"{name.split()[1]} decode, 2 threads / 1", 1.6, scaling(name)) for name in (EXACT, FAST)]
    return marks


def make_busy_marks(ledger: Ledger, effort: Effort) -> list[Mark]:
    def kept(name: str) -> float | None:
        alone = Case(name, 2, min(effort.prompts))
        return ledger.ratio(alone._replace(is_busy=True), alone, mean_decode)

    return [
        Mark(f"{name.split()[1]} decode beside a busy process / alone, 2 threads", 0.5, kept(name))
        for name in (EXACT, FAST)
    ]
