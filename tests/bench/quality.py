"""The quality part: how far the kernels' logits are from stock MLX's, on text that the repository carries.

Stock and each kernel run in processes of their own (kernels hold for a whole process) and go through the text in lockstep: the
logits of one chunk at a time lie in files, are compared, and are overwritten by the next chunk's.
"""

import functools
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.divergence import Divergence
from bench.machine import describe_machine
from bench.rounds import Lineup, say
from bench.system import EXACT, FAST, STOCK, System, allowed_cores, open_mlx
from bench.tables import ABSENT, Section, list_reasons, make_table
from support.demo import demo_folder

CORPUS = Path(__file__).with_name("corpus.txt")
WINDOW, CHUNK = 1024, 128
GREEDY_TOKENS, GREEDY_PROMPT = 64, 64


@dataclass(frozen=True, slots=True)
class Amount:
    """How much text: tokens through prefill and through decode, and prompts whose greedy text is compared."""

    prefill_tokens: int
    decode_tokens: int
    prompts: int


FULL, QUICK = Amount(1 << 30, WINDOW, 4), Amount(256, 32, 1)
Result = dict[tuple[str, str], Divergence]


def run_quality(*, is_quick: bool) -> Section:
    folder, amount = demo_folder(), QUICK if is_quick else FULL
    tokens = read_corpus(folder)
    with ExitStack() as stack:
        lineup = Lineup(stack)
        threads = min(2, len(allowed_cores()))
        for name in (STOCK, EXACT, FAST):
            lineup.enter(functools.partial(open_mlx, name, folder, threads), threads)
        systems = [system for system, _ in lineup.systems]
        result: Result = {}
        for path, text in (("prefill", tokens[: amount.prefill_tokens]), ("decode", tokens[: amount.decode_tokens])):
            for name, divergence in compare(systems, text, CHUNK if path == "prefill" else 1).items():
                result[path, name] = divergence
        prompts = [tokens[start : start + GREEDY_PROMPT] for start in pick_starts(len(tokens), amount.prompts)]
        greedy = compare_greedy(systems, prompts)
        return render(result, greedy, len(tokens), lineup.reasons)


def read_corpus(folder: Path) -> list[int]:
    """The text's token ids, by the model's own tokenizer."""
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(CORPUS.read_text()).ids)


def pick_starts(num_tokens: int, count: int) -> list[int]:
    """Where the prompts of greedy texts begin: spread over the corpus."""
    return [index * (num_tokens - GREEDY_PROMPT) // count for index in range(count)]


def compare(systems: Sequence[System], tokens: Sequence[int], chunk_tokens: int) -> dict[str, Divergence]:
    """Teacher forcing, chunk by chunk, in windows that each begin with empty caches; one Divergence per system's name."""
    found = {system.name: Divergence() for system in systems}
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(tokens) - 1, WINDOW):
            window = tokens[start : start + WINDOW]
            for offset in range(0, len(window), chunk_tokens):
                chunk = window[offset : offset + chunk_tokens]
                logits = [_read_logits(system, chunk, Path(folder), is_start=offset == 0) for system in systems]
                followers = np.array(window[offset + 1 : offset + 1 + len(chunk)])
                for system, mine in zip(systems, logits, strict=True):
                    found[system.name].add(logits[0][: len(followers)], mine[: len(followers)], followers)
            say(f"quality, chunks of {chunk_tokens}: {start + len(window)} of {len(tokens)} tokens")
    return found


def _read_logits(system: System, chunk: Sequence[int], folder: Path, *, is_start: bool) -> npt.NDArray[np.float32]:
    """The system's logits [tokens, vocab] after each token of the chunk, mapped from its file."""
    file = folder / f"{system.name}.f32"
    request = {"ask": "logits", "tokens": list(chunk), "is_start": is_start, "file": str(file)}
    vocab_size = int(system.ask(request)["vocab"])
    return np.memmap(file, np.float32, "r", shape=(len(chunk), vocab_size))


def compare_greedy(systems: Sequence[System], prompts: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """For every system and prompt, how many greedy tokens are stock's before the first that is not."""
    found: dict[str, list[int]] = {system.name: [] for system in systems}
    for prompt in prompts:
        texts = [system.generate(prompt, GREEDY_TOKENS - 1).token_ids for system in systems]
        for system, text in zip(systems, texts, strict=True):
            same = (index for index, (mine, stock) in enumerate(zip(text, texts[0], strict=True)) if mine != stock)
            found[system.name].append(next(same, len(text)))
        say(f"quality, greedy text: {len(next(iter(found.values())))} of {len(prompts)} prompts")
    return found


def render(result: Result, greedy: dict[str, list[int]], corpus_tokens: int, reasons: Sequence[str]) -> Section:
    rows = [
        [path, name, str(one.num_tokens), f"{one.perplexity:.4f}", *_compare_with_stock(name, one)]
        for (path, name), one in result.items()
    ]
    same = [[name, ", ".join(map(str, counts))] for name, counts in greedy.items() if name != STOCK]
    parts = [
        describe_machine(),
        f"SmolLM2-135M-Instruct on tests/bench/corpus.txt ({corpus_tokens} tokens), teacher forcing in windows of {WINDOW} tokens: "
        f"through prefill in chunks of {CHUNK}, and through decode token by token. KL is the mean of KL(stock MLX || system) per "
        "token in nats; top-1 is how often both have the same most probable token. Stock MLX computes in float32.",
        *list_reasons(reasons),
        make_table(["path", "system", "tokens", "perplexity", "mean KL", "largest KL", "top-1"], rows),
        f"How many of {GREEDY_TOKENS} greedy tokens are stock MLX's before the first that is not, after prompts of "
        f"{GREEDY_PROMPT} tokens from that text:",
        make_table(["system", "equal tokens, by prompt"], same),
    ]
    values = {"divergence": [{"path": path, "system": name, **one.to_json()} for (path, name), one in result.items()]}
    return Section("\n\n".join(parts), {**values, "greedy": greedy})


def _compare_with_stock(name: str, one: Divergence) -> list[str]:
    if name == STOCK:
        return [ABSENT] * 3
    return [f"{one.mean_kl:.2e}", f"{one.largest_kl:.2e}", f"{one.top1_agreement:.2%}"]
