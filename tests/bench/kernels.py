"""The kernels part: the demo model in stock MLX, in our kernels (exact and fast) and in llama.cpp, all with the same weights."""

import statistics

from bench.kernel_tables import (
    NAMES,
    Bandwidth,
    make_bandwidth_table,
    make_busy_marks,
    make_busy_table,
    make_kernel_marks,
    make_speed_table,
    make_thread_table,
)
from bench.machine import describe_machine, measure_bandwidth
from bench.measuring import Effort, Measurement, Subject, open_lineup
from bench.tables import Section, list_reasons, make_marks
from support.demo import demo_folder, demo_gguf

FULL = Effort(rounds=7, stock_rounds=2, prompts=(64, 512), stock_prompts=(64, 512), num_tokens=64)
QUICK = Effort(rounds=2, stock_rounds=1, prompts=(64, 512), stock_prompts=(64, 512), num_tokens=32)
VOCAB_SIZE = 49152


def run_kernels(*, is_quick: bool) -> Section:
    effort = QUICK if is_quick else FULL
    subject = Subject("SmolLM2-135M Q4_1", demo_folder(), VOCAB_SIZE, demo_gguf())
    with open_lineup(subject, NAMES, effort.threads) as lineup:
        measurement = Measurement(subject, effort, lineup)
        measurement.warm_up()
        speeds = [measure_bandwidth()]
        measurement.measure()
        speeds.append(measure_bandwidth())
        measurement.measure_busy(effort.rounds)
        speeds.append(measure_bandwidth())
        sizes = {system.name: system.loaded["bytes_per_token"] for system, _ in lineup.systems}
        bandwidth = Bandwidth(sizes, statistics.median(speeds))
        return render(measurement, bandwidth)


def render(measurement: Measurement, bandwidth: Bandwidth) -> Section:
    quiet, effort = measurement.quiet, measurement.effort
    marks = make_kernel_marks(quiet, effort) + make_busy_marks(measurement.busy, effort)
    parts = [
        describe_machine(),
        describe_method(effort),
        *list_reasons(measurement.lineup.reasons),
        make_marks(marks),
        "Each mark is the worst of the prompt lengths.",
        make_speed_table(quiet, effort),
        "Two threads against one:",
        make_thread_table(quiet, effort),
        "Two threads beside a foreign process that keeps one of the two cores busy, against the same alone (tokens / time, as "
        "medians hide stalls):",
        make_busy_table(measurement.busy),
        "Decode on one thread against the memory's bandwidth:",
        make_bandwidth_table(quiet, effort, bandwidth),
    ]
    values = {"quiet": quiet.to_json(), "busy": measurement.busy.to_json(), "read_gb_per_s": bandwidth.read_gb_per_s}
    return Section("\n\n".join(parts), values)


def describe_method(effort: Effort) -> str:
    return (
        f"SmolLM2-135M-Instruct, the same Q4_1 weights (8-bit embeddings) everywhere, prompts of {' and '.join(map(str, effort.prompts))} "
        f"tokens, {effort.num_tokens} tokens decoded greedily; one process per system and number of threads, pinned to as many cores. "
        f"{effort.rounds} interleaved rounds (stock MLX in {effort.stock_rounds}); figures are medians, ratios medians of the ratios "
        "of each round. Decode is 1 / median time of a token, prefill the prompt's tokens / time to the first token, both with the "
        "greedy choice. MLX runs as a worker's stage does, in float32; llama.cpp with this machine's instruction sets but AMX."
    )
