"""How a system under measurement answers: one process, one JSON request a line in, one JSON answer a line out.

Imported by the children alone, one of which runs in another virtual environment: standard library and numpy only.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Answer = dict[str, Any]
Logits = npt.NDArray[np.float32]
FEWEST_TOKENS = 4


def pin(cores: str) -> None:
    """Keep this process and every thread it starts on the comma-separated cores; call before anything starts threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


def serve(load: Callable[[], tuple[Answer, Callable[[Answer], Answer]]]) -> None:
    """Load, say what was loaded (or why not, under "unavailable"), then answer every line of standard input until it ends.

    Standard output belongs to the answers: whatever a library prints goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        loaded, answer = load()
    except Exception as error:  # whatever goes wrong while loading is the reason to leave this system out
        say({"unavailable": f"{type(error).__name__}: {error}"})
        return
    say(loaded)
    for line in sys.stdin:
        say(answer(json.loads(line)))


def time_generation(request: Answer, prefill: Callable[[list[int]], Logits], step: Callable[[int], Logits]) -> Answer:
    """Prefill the request's prompt and decode num_tokens greedily, one at a time: seconds and token ids.

    prefill and step return the last position's logits [vocab]. Choosing the token (numpy's argmax) is part of the time. Decoding
    ends early, but not before FEWEST_TOKENS, when limit_s have passed.
    """
    started = time.perf_counter()
    tokens = [int(prefill(request["prompt"]).argmax())]
    prefill_s = time.perf_counter() - started
    token_s: list[float] = []
    while len(token_s) < request["num_tokens"]:
        before = time.perf_counter()
        tokens.append(int(step(tokens[-1]).argmax()))
        token_s.append(time.perf_counter() - before)
        if sum(token_s) > request["limit_s"] and len(token_s) >= FEWEST_TOKENS:
            break
    return {"prefill_s": prefill_s, "token_s": token_s, "token_ids": tokens}
