"""A cluster under many requests: everybody's answer is the one they get alone, what is computed once is found again, and nothing is left.

One cluster of two workers with little room: 6 sequences run at once, 8 wait.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.asking import MODEL_ID
from support.cluster import Cluster, wait_until
from support.demo import demo_gguf
from support.prompts import PROMPTS

NUM_TOKENS = 24
ENVIRONMENT = {"PACELINE_MAX_RUNNING": "6", "PACELINE_MAX_WAITING": "8", "PACELINE_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        home: Path = tmp_path_factory.mktemp("many")
        with Cluster(home, workers=2, model=str(demo_gguf()), model_id=MODEL_ID) as started:
            yield started


def chat(cluster: Cluster, messages: list[dict[str, str]], key: str = "", **options: Any) -> httpx.Response:
    body = {"model": MODEL_ID, "messages": messages, "max_tokens": NUM_TOKENS, "temperature": 0} | options
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{cluster.url}/v1/chat/completions", json=body, headers=headers, timeout=120)


def ask(cluster: Cluster, prompt: str, **options: Any) -> dict[str, Any]:
    response = chat(cluster, [{"role": "user", "content": prompt}], return_token_ids=True, **options)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def read_load(cluster: Cluster) -> dict[str, Any]:
    load: dict[str, Any] = cluster.state()["instances"][0]["load"] or {}
    return load


@pytest.mark.timeout(300)
def test_answers_among_others_are_those_alone(cluster: Cluster) -> None:
    requests = [(prompt, {"seed": 5, "temperature": 0.7 * (number % 2)}) for number, prompt in enumerate(PROMPTS[:12])]
    alone = [ask(cluster, prompt, **options)["choices"] for prompt, options in requests]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda one: ask(cluster, one[0], **one[1])["choices"], requests))
    assert together == alone


@pytest.mark.timeout(300)
def test_second_turn_finds_the_first_and_says_so(cluster: Cluster) -> None:
    question = {"role": "user", "content": "Name three rivers of Africa, and say where each of them ends."}
    first = chat(cluster, [question]).json()
    answer = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    second = chat(cluster, [question, answer, {"role": "user", "content": "And one of Asia?"}]).json()
    found = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert found >= first["usage"]["prompt_tokens"]


@pytest.mark.timeout(300)
def test_more_than_fit_are_refused_well_formed_and_one_client_alone_is_not(cluster: Cluster) -> None:
    ready = threading.Barrier(41)

    def burst(number: int) -> httpx.Response:
        ready.wait()
        return chat(cluster, [{"role": "user", "content": f"Count from {number} on."}], key="many", ignore_eos=True)

    with ThreadPoolExecutor(41) as pool:
        many = [pool.submit(burst, number) for number in range(40)]
        ready.wait()
        wait_until(lambda: read_load(cluster).get("num_waiting", 0) > 0, "some wait")
        modest = chat(cluster, [{"role": "user", "content": "Hello"}], key="one")
        answers = [one.result() for one in many]
    assert modest.status_code == 200, "a burst of another client takes nobody's turn"
    assert {answer.status_code for answer in answers} == {200, 429}
    assert sum(answer.status_code == 200 for answer in answers) >= 6
    for refused in (answer for answer in answers if answer.status_code == 429):
        assert int(refused.headers["retry-after"]) >= 1
        error = refused.json()["error"]
        assert error["type"] and "in" in error["message"] and set(error) >= {"message", "type", "param", "code"}
    wait_until(lambda: read_load(cluster)["num_running"] + read_load(cluster)["num_waiting"] == 0, "all are answered")
    assert read_load(cluster)["kv_running_tokens"] == 0
    assert read_load(cluster)["num_refused"] > 0


@pytest.mark.timeout(300)
def test_clients_that_leave_free_their_places(cluster: Cluster) -> None:
    body = {
        "model": MODEL_ID,
        "messages": [{"role": "user", "content": "Tell me everything."}],
        "max_tokens": 4000,
        "ignore_eos": True,
        "stream": True,
        "n": 6,
    }
    with httpx.stream("POST", f"{cluster.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        while "content" not in next(lines):
            pass
        wait_until(lambda: read_load(cluster)["num_running"] == 6, "all six run")
    wait_until(lambda: read_load(cluster)["num_running"] == 0, "none runs any more")
    assert read_load(cluster)["kv_running_tokens"] == 0


@pytest.mark.timeout(300)
def test_what_can_never_fit_is_refused_at_once(cluster: Cluster) -> None:
    response = chat(cluster, [{"role": "user", "content": "word " * 9000}])
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
