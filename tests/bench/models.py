"""The models part: a model of 1 billion weights, as small ones hide the memory's bandwidth, and a mixture of experts."""

from bench.kernel_tables import NAMES, make_kernel_marks, make_speed_table, make_thread_table
from bench.machine import describe_machine
from bench.made_models import make_1b, make_moe
from bench.measuring import Effort, Measurement, Subject, open_lineup
from bench.rounds import Case, decode
from bench.system import EXACT, FAST, STOCK
from bench.tables import Mark, Section, list_reasons, lowest, make_marks, make_table, show

FULL_1B = Effort(rounds=3, stock_rounds=1, prompts=(64, 512), stock_prompts=(64,), num_tokens=32)
QUICK_1B = Effort(rounds=1, stock_rounds=1, prompts=(64,), stock_prompts=(64,), num_tokens=16, threads=(1,))
FULL_MOE = Effort(rounds=5, stock_rounds=5, prompts=(64,), stock_prompts=(64,), num_tokens=64, threads=(1,))
QUICK_MOE = Effort(rounds=2, stock_rounds=2, prompts=(64,), stock_prompts=(64,), num_tokens=16, threads=(1,))
MOE_GOAL = 5.0


def run_models(*, is_quick: bool) -> Section:
    large = _measure(make_1b(), NAMES, QUICK_1B if is_quick else FULL_1B)
    experts = _measure(make_moe(), (STOCK, EXACT, FAST), QUICK_MOE if is_quick else FULL_MOE)
    parts = [describe_machine(), *_describe_1b(large), *_describe_moe(experts)]
    values = {"1b": large.quiet.to_json(), "moe": experts.quiet.to_json()}
    return Section("\n\n".join(parts), values)


def _measure(subject: Subject, names: tuple[str, ...], effort: Effort) -> Measurement:
    with open_lineup(subject, names, effort.threads) as lineup:
        measurement = Measurement(subject, effort, lineup)
        measurement.warm_up()
        measurement.measure()
        return measurement


def _describe_1b(measurement: Measurement) -> list[str]:
    effort = measurement.effort
    lengths = " and ".join(map(str, effort.prompts))
    stock_lengths = " and ".join(map(str, effort.stock_prompts))
    return [
        f"### {measurement.subject.title}",
        "Llama with hidden 2048, 16 layers, 32 heads over 8 key-value heads of 64, feed-forward 8192, 32,000 tokens (tied), random "
        f"weights in Q4_1, the same everywhere; prompts of {lengths} tokens (stock MLX {stock_lengths}), up to {effort.num_tokens} "
        f"tokens decoded; {effort.rounds} interleaved rounds (stock MLX in {effort.stock_rounds}).",
        *list_reasons(measurement.lineup.reasons),
        make_marks(make_kernel_marks(measurement.quiet, effort)),
        "Each mark is the worst of the prompt lengths that both were asked.",
        make_speed_table(measurement.quiet, effort),
        *([make_thread_table(measurement.quiet, effort)] if len(effort.threads) > 1 else []),
    ]


def _describe_moe(measurement: Measurement) -> list[str]:
    effort, ledger = measurement.effort, measurement.quiet
    rows, ratios = [], {}
    for name in (STOCK, EXACT, FAST):
        case = Case(name, 1, effort.prompts[0])
        ratios[name] = ledger.ratio(case, case._replace(system=STOCK), decode)
        if ledger.has(case):
            rows.append([name, show(ledger.median(case, decode)), show(ratios[name], 2)])
    return [
        f"### {measurement.subject.title}",
        f"The tests' tiny Qwen3-MoE times ten: hidden 640, 4 layers, 16 experts of 320 of which 4 are used, groups of 64; prompt of "
        f"{effort.prompts[0]} tokens, {effort.num_tokens} decoded, 1 thread, {effort.rounds} interleaved rounds.",
        *list_reasons(measurement.lineup.reasons),
        make_marks([Mark("exact decode / stock MLX, 1 thread", MOE_GOAL, lowest([ratios[EXACT]]))]),
        make_table(["system", "decode tokens/s", "x stock"], rows),
    ]
