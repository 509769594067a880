"""Transcripts of what a gateway sends, in tests/golden: compared byte for byte, but for what differs from run to run."""

import os
import re
from pathlib import Path

RECORDING = "PACELINE_RECORD"
"""Set in the environment, transcripts are written rather than compared; git shows what has changed."""
GOLDEN = Path(__file__).parents[1] / "golden"
_CHANGING = (
    (re.compile(r"msg_[0-9a-f]{24}"), "msg_ID"),
    (re.compile(r"req-[0-9a-f]{16}"), "req-ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"), "TIME"),
    (re.compile(r'"((?:total|load|prompt_eval|eval)_duration)":\d+'), r'"\1":NS'),
    (re.compile(r'"(chatcmpl|cmpl)-[0-9a-f]{24}"'), r'"\1-0"'),
    (re.compile(r'"created":[1-9]\d{9}'), '"created":0'),
    (re.compile(r'"fp_[0-9a-f]{10}"'), '"fp_0"'),
)


def check_golden(name: str, text: str) -> None:
    """The text is the recorded one."""
    for pattern, word in _CHANGING:
        text = pattern.sub(word, text)
    path = GOLDEN / name
    if os.environ.get(RECORDING):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{name} changed; record it anew with {RECORDING}=1 where that is meant"
