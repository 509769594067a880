"""What the clients of a trial ask: eight streams and one whole answer, of every kind whose answer is the same each time. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from support.fleet import MODEL_ID

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One request, told apart by its name."""

    name: str
    body: Json


_PROMPTS = (
    "Tell a story of a rider who was the last at the top.",
    "Explain why the sky is blue in the day and red in the evening.",
    "Write a Python function that implements binary search.",
    "List ten things that one needs for a week in the mountains.",
    "Describe how bread is made, step by step.",
    "What did people trade along the Silk Road? Name goods and places.",
    "Give advice to somebody who buys a first bicycle.",
    "How does a telescope work, and who built the first ones?",
)
# The ways to ask: what is computed anew after a failure has to be rebuilt from tokens for each of them.
_WAYS: dict[str, Json] = {
    "greedy": {"temperature": 0, "max_tokens": 120},
    "greedy, penalties": {
        **{"temperature": 0, "max_tokens": 100},
        **{"repetition_penalty": 1.15, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    },
    "seeded": {"temperature": 0.8, "seed": 7, "max_tokens": 110},
    "seeded, penalties": {
        **{"temperature": 1.0, "top_p": 0.9, "seed": 11, "max_tokens": 90},
        **{"repetition_penalty": 1.1, "frequency_penalty": 0.5},
    },
    "two choices": {"temperature": 0.7, "top_k": 40, "seed": 5, "n": 2, "max_tokens": 60},
    "stop texts": {"temperature": 0.6, "seed": 3, "stop": ["\n\n\n", "zebra", "in conclusion"], "max_tokens": 110},
    "greedy, long": {"temperature": 0, "max_tokens": 150},
    "seeded, bias": {"temperature": 0.9, "min_p": 0.05, "seed": 2**40 + 1, "logit_bias": {"253": 2}, "max_tokens": 100},
    "not streamed": {"temperature": 0.5, "seed": 23, "max_tokens": 100, "stream": False, "stream_options": None},
}
NUM_SETS = 3


def make_questions(number: int) -> tuple[Question, ...]:
    """The questions of one of NUM_SETS sets: the same ways to ask, other prompts for each."""
    return tuple(
        _make(f"{way} ({number})", _PROMPTS[(place + 3 * number) % len(_PROMPTS)], options)
        for place, (way, options) in enumerate(_WAYS.items())
    )


def shorten(questions: Sequence[Question], max_tokens: int) -> tuple[Question, ...]:
    """The same questions with shorter answers."""
    return tuple(replace(one, body=one.body | {"max_tokens": max_tokens}) for one in questions)


def _make(name: str, prompt: str, options: Json) -> Question:
    body = {
        "model": MODEL_ID,
        "messages": [{"role": "user", "content": prompt}],
        "ignore_eos": "stop" not in options,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Question(name, body | options)
