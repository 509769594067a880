"""Ollama's official client with the demo model on a real cluster of two workers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ollama import Client

from support.asking import MODEL_ID
from support.cluster import Cluster
from support.demo import demo_gguf

pytestmark = pytest.mark.timeout(900)

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "num_predict": 16}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home: Path = tmp_path_factory.mktemp("ollama")
    with (
        Cluster(home, workers=2, model=str(demo_gguf()), model_id=MODEL_ID) as cluster,
        Client(cluster.url, timeout=300) as opened,
    ):
        yield opened


def test_answer_is_the_same_whole_and_streamed(client: Client) -> None:
    whole = client.chat(MODEL_ID, MESSAGES, options=GREEDY)
    parts = list(client.chat(f"{MODEL_ID}:latest", MESSAGES, options=GREEDY, stream=True))
    assert "Paris" in (whole.message.content or "")
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count and (parts[-1].eval_duration or 0) > 1000


def test_same_seed_gives_the_same_text(client: Client) -> None:
    texts = [
        client.generate(MODEL_ID, "Once upon a time", options={"seed": 7, "num_predict": 8}).response for _ in "ab"
    ]
    assert texts[0] == texts[1] != ""


def test_raw_prompt_is_gone_on_with(client: Client) -> None:
    answer = client.generate(MODEL_ID, "The capital of France is", raw=True, options=GREEDY)
    assert "Paris" in answer.response and answer.done_reason == "length"


def test_answer_has_the_form_of_its_schema(client: Client) -> None:
    answer = client.chat(MODEL_ID, MESSAGES, format=SCHEMA, options={"temperature": 0, "num_predict": 100})
    assert list(json.loads(answer.message.content or "")) == ["city"]


def test_log_probabilities_come_with_every_token(client: Client) -> None:
    answer = client.chat(
        MODEL_ID, MESSAGES, logprobs=True, top_logprobs=2, options={"temperature": 0, "num_predict": 4}
    )
    assert answer.logprobs is not None and len(answer.logprobs) == answer.eval_count == 4


def test_model_is_listed_shown_and_running(client: Client) -> None:
    assert [model.model for model in client.list().models] == [f"{MODEL_ID}:latest"]
    (running,) = client.ps().models
    assert running.size and running.context_length
    shown = client.show(MODEL_ID)
    assert shown.details is not None and shown.details.family == "llama" and shown.details.parameter_size == "134.48M"
    assert client.pull(MODEL_ID).status == "success"
    assert client.generate(MODEL_ID, "").done_reason == "load"
