"""Harmony, in which gpt-oss writes: every message names its channel, and calls of tools are messages to them. mlx-lm has no parser for it.

Source: OpenAI's description of the format (github.com/openai/harmony, docs/format.md).
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from paceline_worker.engine.call_formats import CallForm
from paceline_worker.engine.passages import Kind

_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
_CALL = re.compile(r"\s*([\w.-]+).*?<\|message\|>(.*)", re.DOTALL)
_NEXT = ("<|end|>", Kind.HEADER.value)
TRANSITIONS: Mapping[str, Sequence[tuple[str, str]]] = {
    Kind.HEADER.value: [
        ("<|channel|>analysis<|message|>", Kind.REASONING.value),
        ("<|message|>", Kind.TEXT.value),  # of every other channel
        (" to=functions.", Kind.CALL.value),
    ],
    Kind.REASONING.value: [_NEXT],
    Kind.TEXT.value: [_NEXT],
    Kind.CALL.value: [_NEXT],
}
"""As in mlx-lm's response formats. A call ends with <|call|>, the answer with <|return|>: both are ends of sequence."""


def speaks_harmony(vocabulary: Collection[str]) -> bool:
    """Whether a vocabulary has the tokens of the format."""
    return all(token in vocabulary for token in _TOKENS)


def _parse(body: str, _tools: Any) -> Mapping[str, Any]:
    found = _CALL.fullmatch(body)
    if found is None:
        raise ValueError("a call needs a name and a message")
    return {"name": found[1], "arguments": json.loads(found[2] or "{}")}


HARMONY = CallForm("harmony", " to=functions.", "", _parse)
