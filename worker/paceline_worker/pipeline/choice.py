"""One choice of one request on the head: draws its tokens, makes its text, knows when it ends.

No MLX, no clock, no I/O: logits in, events out.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerateRequest,
    TokenLogprob,
)
from paceline_worker.engine.sampling import Draw, Logits, log_softmax, sample
from paceline_worker.engine.text import TextStream
from paceline_worker.pipeline.vocabulary import Vocabulary


@dataclass(slots=True)
class Choice:
    """The state of one choice; rebuilt from prompt and tokens alone."""

    request: GenerateRequest
    index: int
    seed: int
    prompt: Sequence[int]
    max_tokens: int
    vocabulary: Vocabulary
    tokens: list[int] = field(default_factory=list)
    finished: ChoiceFinished | None = None
    _text: TextStream = field(init=False)

    def __post_init__(self) -> None:
        self._text = TextStream(self.vocabulary.make_detokenizer(), self.request.limits.stop)

    def accept_rows(self, rows: Logits, guesses: Sequence[int] = ()) -> list[ChoiceDelta | ChoiceFinished]:
        """Draw a token from each row of logits [1 + guesses, vocab], as long as it is the guessed one: the next row follows from it."""
        events: list[ChoiceDelta | ChoiceFinished] = []
        for index, logits in enumerate(rows):
            events += self.accept(logits)
            if self.finished or self.tokens[-1:] != list(guesses[index : index + 1]):
                break
        return events

    def accept(self, logits: Logits) -> list[ChoiceDelta | ChoiceFinished]:
        """Draw the next token from logits [vocab] and return what the client should hear of it."""
        draw = Draw(self.seed, self.index, len(self.tokens))
        token = sample(logits, self.request.sampling, self.prompt, self.tokens, draw)
        return self._take(token, (self._describe(token, logits),) if self.request.logprobs else ())

    def replay(self, tokens: Sequence[int]) -> None:
        """Become what the choice was after these tokens of an earlier call, whose text the client has. They may have ended it."""
        for token in tokens:
            if self.finished:
                return
            self._take(token, ())

    def _take(self, token: int, logprobs: tuple[TokenLogprob, ...]) -> list[ChoiceDelta | ChoiceFinished]:
        self.tokens.append(token)
        if self.vocabulary.is_end(token) and not self.request.limits.ignore_eos:
            return self._finish(token, logprobs, FinishReason.STOP, "")
        piece = self._text.add(token)
        if piece.stop_text:
            return self._finish(token, logprobs, FinishReason.STOP, piece.text, piece.stop_text)
        if len(self.tokens) >= self.max_tokens:
            return self._finish(token, logprobs, FinishReason.LENGTH, piece.text)
        return [ChoiceDelta(self.index, (token,), piece.text, len(self.tokens) - 1, logprobs)]

    def _finish(
        self, token: int, logprobs: tuple[TokenLogprob, ...], reason: FinishReason, text: str, stop_text: str = ""
    ) -> list[ChoiceDelta | ChoiceFinished]:
        if not stop_text:
            rest = self._text.finish()
            text, stop_text = text + rest.text, rest.stop_text
        self.finished = ChoiceFinished(
            self.index, FinishReason.STOP if stop_text else reason, stop_text, len(self.tokens)
        )
        return [ChoiceDelta(self.index, (token,), text, len(self.tokens) - 1, logprobs), self.finished]

    def _describe(self, token: int, logits: Logits) -> TokenLogprob:
        logprobs = log_softmax(logits)
        count = self.request.num_top_logprobs
        top = np.argpartition(-logprobs, count)[:count] if count else np.empty(0, np.int64)
        top = top[np.argsort(-logprobs[top], kind="stable")]
        alternatives = tuple(self._name(int(other), float(logprobs[other])) for other in top)
        return self._name(token, float(logprobs[token]), alternatives)

    def _name(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        content = self.vocabulary.token_bytes(token)
        return TokenLogprob(token, codecs.decode(content, "utf-8", "replace"), content, logprob, top)
