"""The cluster's first promise: 1, 2 or 3 workers give the tokens of plain mlx-lm, greedy or seeded.

Here with few tokens, for every change; tests/truth has the whole of it.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.asking import ask_reference, collect_answers
from support.prompts import PROMPTS

CHOSEN = PROMPTS[:3]
NUM_TOKENS = 12


@pytest.mark.timeout(900)
def test_any_number_of_workers_gives_the_tokens_of_plain_mlx_lm(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        reference = pool.submit(ask_reference, CHOSEN, NUM_TOKENS)
        answers = list(pool.map(lambda n: collect_answers(tmp_path / f"w{n}", n, CHOSEN, NUM_TOKENS), (1, 2, 3)))
    assert [answer.greedy for answer in answers] == [reference.result()[0]] * 3
    assert [answer.seeded for answer in answers] == [answers[0].seeded] * 3
    assert answers[0].seeded != answers[0].greedy
