"""The cluster's first promise: 1, 2 or 3 workers give the tokens of plain mlx-lm, greedy or seeded.

Here with few tokens, for every change; tests/truth has the whole of it.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from support.cluster import Cluster
from support.demo import demo_folder, demo_gguf
from support.prompts import PROMPTS

MODEL_ID = "smollm2-135m-instruct"
REFERENCE = Path(__file__).parents[1] / "support" / "reference.py"
CHOSEN = PROMPTS[:3]
NUM_TOKENS = 12


def ask_cluster(cluster: Cluster, prompt: str, num_tokens: int, **sampling: float) -> list[int]:
    body = {
        "model": MODEL_ID,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": num_tokens,
        "return_token_ids": True,
        **({"temperature": 0} | sampling),
    }
    response = httpx.post(f"{cluster.url}/v1/chat/completions", json=body, timeout=600)
    assert response.status_code == 200, response.text
    token_ids: list[int] = response.json()["choices"][0]["token_ids"]
    return token_ids


def ask_reference(prompts: tuple[str, ...], num_tokens: int) -> list[list[int]]:
    requests = [{"messages": [{"role": "user", "content": prompt}], "max_tokens": num_tokens} for prompt in prompts]
    lines = "\n".join(json.dumps(request) for request in requests)
    command = [sys.executable, str(REFERENCE), str(demo_folder())]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=1200)
    return [json.loads(line)["token_ids"] for line in done.stdout.splitlines()]


def collect_answers(home: Path, workers: int, prompts: tuple[str, ...], num_tokens: int) -> dict[str, list[list[int]]]:
    """Greedy and seeded answers of one cluster to every prompt."""
    cluster = Cluster(home=home, workers=workers, model=str(demo_gguf()), model_id=MODEL_ID)
    cluster.start()
    try:
        shards = cluster.state()["instances"][0]["shards"]
        assert len(shards) == workers
        assert len({shard["pid"] for shard in shards}) == workers
        greedy = [ask_cluster(cluster, prompt, num_tokens) for prompt in prompts]
        seeded = [ask_cluster(cluster, prompt, num_tokens, temperature=0.8, seed=7) for prompt in prompts]
        return {"greedy": greedy, "seeded": seeded}
    finally:
        cluster.stop()


@pytest.mark.timeout(900)
def test_any_number_of_workers_gives_the_tokens_of_plain_mlx_lm(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        reference = pool.submit(ask_reference, CHOSEN, NUM_TOKENS)
        answers = list(pool.map(lambda n: collect_answers(tmp_path / f"w{n}", n, CHOSEN, NUM_TOKENS), (1, 2, 3)))
    assert [answer["greedy"] for answer in answers] == [reference.result()] * 3
    assert answers[1]["seeded"] == answers[0]["seeded"]
    assert answers[2]["seeded"] == answers[0]["seeded"]
    assert answers[0]["seeded"] != answers[0]["greedy"]
