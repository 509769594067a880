"""Clients of trials: all at once, each on a gateway of its own choice, and what they do when the connection to it dies.

A client gives every question an Idempotency-Key. Where the connection dies it asks another gateway for the whole answer again, as any
client with retries does; an error that comes over a living connection is the answer, but a 503 of a gateway that just started.
"""

import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from fault.answers import Answer
from fault.questions import Question

SILENCE_S = 45.0
"""An answer that brings nothing for so long is lost."""
IMPATIENCE_S = 5.0
"""A client that suspects its gateway waits only so long before it asks another one."""
CONNECT_TIMEOUT_S = 2.0
MAX_RETRIES = 12
RETRY_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who is asked, and how patiently. silence_s: with is_impatient, after it another gateway is asked; otherwise the answer is lost."""

    urls: tuple[str, ...]
    is_impatient: bool = False

    @property
    def silence_s(self) -> float:
        return IMPATIENCE_S if self.is_impatient else SILENCE_S

    def begin(self, questions: Sequence[Question], rng: random.Random) -> "Asked":
        """Ask everything at once; returns when all are on their way."""
        pool = ThreadPoolExecutor(len(questions), thread_name_prefix="client")
        starts = [rng.randrange(len(self.urls)) for _ in questions]
        keys = [f"trial-{rng.getrandbits(64):016x}" for _ in questions]
        answers = [
            pool.submit(self._ask, question, start, key)
            for question, start, key in zip(questions, starts, keys, strict=True)
        ]
        pool.shutdown(wait=False)
        return Asked(tuple(answers))

    def _ask(self, question: Question, start: int, key: str) -> Answer:
        answer = Answer(sent=time.monotonic())
        for turn in range(MAX_RETRIES):
            url = self.urls[(start + turn) % len(self.urls)]
            try:
                self._follow(url, question, key, answer)
                return answer
            except (httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.NetworkError, httpx.ConnectTimeout) as error:
                if isinstance(error, httpx.ReadTimeout) and not self.is_impatient:
                    answer.failure = f"nothing came for {self.silence_s:.0f} s"
                    return answer
                answer.ask_again()
                time.sleep(RETRY_PAUSE_S)
        answer.failure = f"no gateway answered {MAX_RETRIES} times"
        return answer

    def _follow(self, url: str, question: Question, key: str, answer: Answer) -> None:
        """Read one response to its end. Raises httpx's errors of connections."""
        timeout = httpx.Timeout(self.silence_s, connect=CONNECT_TIMEOUT_S)
        with (
            httpx.Client(timeout=timeout, trust_env=False) as client,
            client.stream(
                "POST", url + "/v1/chat/completions", json=question.body, headers={"Idempotency-Key": key}
            ) as response,
        ):
            if response.status_code == 503 and answer.num_retries:
                raise httpx.NetworkError("the gateway asked in place of a dead one does not serve yet")
            if response.status_code != 200:
                answer.failure = f"status {response.status_code}: {response.read().decode(errors='replace')[:300]}"
                return
            if not question.body["stream"]:
                answer.note_whole(json.loads(response.read()), time.monotonic())
                return
            for line in response.iter_lines():
                answer.note_line(line, time.monotonic())
        if not answer.is_done and not answer.failure:
            answer.failure = "the stream ended without its last event"


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions on their way."""

    futures: tuple["Future[Answer]", ...]

    @property
    def is_done(self) -> bool:
        return all(future.done() for future in self.futures)

    def wait(self) -> list[Answer]:
        """Every answer, whole or not, in the order of the questions."""
        return [future.result() for future in self.futures]


def ask_all(urls: Sequence[str], questions: Sequence[Question], rng: random.Random) -> list[Answer]:
    return Crowd(tuple(urls)).begin(questions, rng).wait()
