"""Which log probabilities of an answer are those of its content. Pure.

A head tells one for each token, whatever the token is part of. OpenAI's clients know those of the content alone: not of thinking, of tool
calls, or of their marks. Tokens that come without text belong to what comes next, and at the end of an answer to its content.
"""

from collections.abc import Sequence

from paceline_services.domain.generation import ChoiceDelta, TokenLogprob


class ContentLogprobs:
    """Of one choice, delta by delta."""

    def __init__(self) -> None:
        self._waiting: list[TokenLogprob] = []
        self._is_in_content = True

    def take(self, delta: ChoiceDelta) -> list[TokenLogprob]:
        """Those that are certain to be the content's with this delta, and were not before."""
        self._waiting.extend(delta.logprobs)
        if delta.text:
            told = self._waiting if self._is_in_content else _find_end(self._waiting, delta.text)
            self._waiting, self._is_in_content = [], True
            return list(told)
        if delta.reasoning_text or delta.tool_calls:
            self._waiting, self._is_in_content = [], False
        return []

    def end(self) -> list[TokenLogprob]:
        """Those of the last tokens, such as the end of the sequence."""
        return self._waiting if self._is_in_content else []


def _find_end(logprobs: Sequence[TokenLogprob], text: str) -> Sequence[TokenLogprob]:
    """The last of them that text is made of: a mark is before it."""
    num_characters = 0
    for number in range(len(logprobs) - 1, -1, -1):
        num_characters += len(logprobs[number].text)
        if num_characters >= len(text):
            return logprobs[number:]
    return logprobs
