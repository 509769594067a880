"""Asks clusters and plain mlx-lm the same prompts, for the tests that compare their tokens."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.cluster import Cluster
from support.demo import demo_folder, demo_gguf

MODEL_ID = "smollm2-135m-instruct"
SEEDED: dict[str, Any] = {"temperature": 0.8, "seed": 7}
REFERENCE = Path(__file__).with_name("reference.py")


@dataclass(frozen=True)
class Answers:
    """Token ids of one cluster's answers, one list per prompt."""

    greedy: list[list[int]]
    seeded: list[list[int]]


def ask_reference(prompts: Sequence[str], num_tokens: int) -> tuple[list[list[int]], list[int]]:
    """Greedy token ids of plain mlx-lm, and the number of tokens of each prompt."""
    requests = [{"messages": [{"role": "user", "content": prompt}], "max_tokens": num_tokens} for prompt in prompts]
    command = [sys.executable, str(REFERENCE), str(demo_folder())]
    lines = "\n".join(json.dumps(request) for request in requests)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=3600)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [answer["token_ids"] for answer in answers], [answer["prompt_tokens"] for answer in answers]


def collect_answers(home: Path, workers: int, prompts: Sequence[str], num_tokens: int) -> Answers:
    """Greedy and seeded answers of a cluster of so many workers, each with its own layers in its own process."""
    with Cluster(home, workers=workers, model=str(demo_gguf()), model_id=MODEL_ID) as cluster:
        shards = cluster.state()["instances"][0]["shards"]
        assert len({shard["pid"] for shard in shards}) == len(shards) == workers
        return Answers(
            [_ask(cluster, prompt, num_tokens) for prompt in prompts],
            [_ask(cluster, prompt, num_tokens, **SEEDED) for prompt in prompts],
        )


def _ask(cluster: Cluster, prompt: str, num_tokens: int, **sampling: Any) -> list[int]:
    response = cluster.chat(MODEL_ID, prompt, max_tokens=num_tokens, return_token_ids=True, **sampling)
    assert response.status_code == 200, response.text
    token_ids: list[int] = response.json()["choices"][0]["token_ids"]
    return token_ids
