"""Model truth on the real demo model: six prompts, 64 tokens, 1, 2 and 3 workers against plain mlx-lm. Long: `make truth`.

Writes docs/truth.md, so that what was found can be read without running it again.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.asking import Answers, ask_reference, collect_answers
from support.prompts import PROMPTS

PAGE = Path(__file__).parents[2] / "docs" / "truth.md"
NUM_TOKENS = 64
WORKERS = (1, 2, 3)


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_six_prompts_give_the_same_tokens_everywhere(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        reference = pool.submit(ask_reference, PROMPTS, NUM_TOKENS)
        answers = list(pool.map(lambda n: collect_answers(tmp_path / f"w{n}", n, PROMPTS, NUM_TOKENS), WORKERS))
    expected, lengths = reference.result()
    PAGE.write_text(render(expected, lengths, answers))
    assert [answer.greedy for answer in answers] == [expected] * len(WORKERS)
    assert [answer.seeded for answer in answers] == [answers[0].seeded] * len(WORKERS)


def render(expected: list[list[int]], lengths: list[int], answers: list[Answers]) -> str:
    versions = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, importlib.metadata as m; print(json.dumps([m.version('mlx'), m.version('mlx-lm')]))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    mlx, mlx_lm = json.loads(versions.stdout)
    rows = [
        f"| {number + 1} | {lengths[number]} | {len(expected[number])} "
        + "".join(f"| {'same' if answer.greedy[number] == expected[number] else 'DIFFERENT'} " for answer in answers)
        + f"| {'same' if len({tuple(answer.seeded[number]) for answer in answers}) == 1 else 'DIFFERENT'} |"
        for number in range(len(expected))
    ]
    return "\n".join(
        [
            "# Model truth on the demo model",
            "",
            f"Written by `make truth`. SmolLM2-135M-Instruct, mlx {mlx}, mlx-lm {mlx_lm}, CPU. Greedy token ids of 1, 2 and 3 workers",
            "against plain mlx-lm in one process; with seed 7 and temperature 0.8, of 1, 2 and 3 workers against one another.",
            "",
            "| prompt | prompt tokens | answer tokens | 1 worker | 2 workers | 3 workers | seeded, 1 = 2 = 3 |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
