"""From tokens to text that can be sent: whole characters only, and nothing that may turn out to be a stop text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Detokenizer(Protocol):
    """What mlx-lm's streaming detokenizers promise."""

    def add_token(self, token: int) -> None: ...
    def finalize(self) -> None: ...
    @property
    def last_segment(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became certain, and the stop text that ended it, if one did."""

    text: str
    stop_text: str = ""


class StopTexts:
    """Holds back the end of a growing text as long as a stop text may begin there."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._held = ""

    def add(self, segment: str) -> Piece:
        """The text that more of it made certain."""
        text = self._held + segment
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            at, stop = min(found)
            self._held = ""
            return Piece(text[:at], stop)
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return Piece(text[: len(text) - held])

    def release(self) -> str:
        """What was held back, where no stop text can go on any more."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a true beginning of stop."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
