"""One choice of one request on the head: draws its tokens, and knows when it ends.

What it says is made of its tokens by speech.py, what it may say is told by constraint.py. No MLX, no clock, no I/O: logits in, events out.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerateRequest,
    TokenLogprob,
)
from paceline_worker.engine.passages import Kind
from paceline_worker.engine.sampling import Draw, Logits, log_softmax, sample
from paceline_worker.pipeline.constraint import Constraint
from paceline_worker.pipeline.prompt import Prompt
from paceline_worker.pipeline.speech import Speech, Told
from paceline_worker.pipeline.vocabulary import Vocabulary

Events = list[ChoiceDelta | ChoiceFinished]


@dataclass(slots=True)
class Choice:
    """The state of one choice; rebuilt from prompt and tokens alone."""

    request: GenerateRequest
    index: int
    seed: int
    prompt: Prompt
    max_tokens: int
    vocabulary: Vocabulary
    tokens: list[int] = field(default_factory=list)
    finished: ChoiceFinished | None = None
    _speech: Speech = field(init=False)
    _constraint: Constraint = field(init=False)
    _forced: tuple[int, ...] = ()
    """Tokens that come next whatever the logits say."""

    def __post_init__(self) -> None:
        manner = self.prompt.manner
        detokenizer = self.vocabulary.make_detokenizer()
        self._speech = Speech(manner, detokenizer, self.request.limits.stop, self._name_call)
        self._constraint = Constraint(self.prompt.rules, manner.begins)

    @property
    def num_reasoning_tokens(self) -> int:
        return self._speech.num_reasoning_tokens

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar says what the next token may be."""
        return self._constraint.is_active

    def accept_rows(self, rows: Logits, guesses: Sequence[int] = ()) -> Events:
        """Draw a token from each row of logits [1 + guesses, vocab], as long as it is the guessed one: the next row follows from it.

        Raises InvalidRequestError when the form that was asked for turns out to be too much.
        """
        events: Events = []
        for index, logits in enumerate(rows):
            events += self.accept(logits)
            if self.finished or self.tokens[-1:] != list(guesses[index : index + 1]):
                break
        return events

    def accept(self, logits: Logits) -> Events:
        """Draw the next token from logits [vocab] and return what the client should hear of it."""
        token = self._draw(logits)
        return self._take(token, (self._describe(token, logits),) if self.request.logprobs else ())

    def replay(self, tokens: Sequence[int]) -> None:
        """Become what the choice was after these tokens of an earlier call, whose text the client has. They may have ended it.

        Raises InvalidRequestError when they do not have the form that was asked for.
        """
        for token in tokens:
            if self.finished:
                return
            self._take(token, ())

    def _draw(self, logits: Logits) -> int:
        if self._forced:
            return self._forced[0]
        allowed = self._constraint.list_allowed(len(logits))
        draw = Draw(self.seed, self.index, len(self.tokens), allowed)
        return sample(logits, self.request.sampling, self.prompt.tokens, self.tokens, draw)

    def _take(self, token: int, logprobs: tuple[TokenLogprob, ...]) -> Events:
        self.tokens.append(token)
        may_go_on = self.request.limits.ignore_eos and not self._constraint.is_active
        if self.vocabulary.is_end(token) and not may_go_on:
            return self._finish(token, logprobs, FinishReason.STOP)
        self._constraint.take(token)
        self._speech.add(token)
        if self._speech.after_mark is not None:
            self._constraint.enter(self._speech.kind, self._speech.after_mark)
        self._bound_thinking(token)
        if self._speech.is_over or self._constraint.is_complete:
            return self._finish(token, logprobs, FinishReason.STOP)
        if len(self.tokens) >= self.max_tokens:
            return self._finish(token, logprobs, FinishReason.LENGTH)
        return [self._tell(self._speech.take(), (token,), logprobs)]

    def _bound_thinking(self, token: int) -> None:
        """After as many tokens of thinking as there may be, those that end it follow."""
        if self._forced:
            self._forced = self._forced[1:] if token == self._forced[0] else ()
        most = self.request.reasoning.max_tokens if self.request.reasoning else 0
        is_enough = most and self._speech.num_reasoning_tokens >= most and self._speech.kind is Kind.REASONING
        if is_enough and not self._forced:
            self._forced = self.prompt.think_end

    def _finish(self, token: int, logprobs: tuple[TokenLogprob, ...], reason: FinishReason) -> Events:
        self._speech.finish(is_cut=reason is FinishReason.LENGTH)
        stop_text = self._speech.stop_text
        if stop_text:
            reason = FinishReason.STOP
        if reason is FinishReason.STOP and self._speech.num_calls:
            reason = FinishReason.TOOL_CALLS
        self.finished = ChoiceFinished(self.index, reason, stop_text, len(self.tokens))
        first, *others = self._speech.take_all()
        rest = [self._tell(told, (), ()) for told in others]
        return [self._tell(first, (token,), logprobs), *rest, self.finished]

    def _tell(self, told: Told, tokens: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> ChoiceDelta:
        return ChoiceDelta(
            self.index,
            tokens,
            told.text,
            len(self.tokens) - len(tokens),
            logprobs,
            told.reasoning_text,
            tuple(told.tool_calls),
        )

    def _name_call(self, index: int) -> str:
        """The same on every head, and another in every turn of a conversation."""
        place = np.array([self.seed, self.index, index], np.uint64).tobytes()
        tokens = np.array(self.prompt.tokens, np.uint32).tobytes()
        return f"call_{blake2b(place + tokens, digest_size=12).hexdigest()}"

    def _describe(self, token: int, logits: Logits) -> TokenLogprob:
        return describe(token, logits, self.request.num_top_logprobs, self.vocabulary)


def describe(token: int, logits: Logits, num_top: int, vocabulary: Vocabulary) -> TokenLogprob:
    """A token's log probability in logits [vocab], and the most likely ones."""
    logprobs = log_softmax(logits)
    top = np.argpartition(-logprobs, num_top)[:num_top] if num_top else np.empty(0, np.int64)
    top = top[np.argsort(-logprobs[top], kind="stable")]
    alternatives = tuple(name_token(int(other), float(logprobs[other]), vocabulary) for other in top)
    return name_token(token, float(logprobs[token]), vocabulary, alternatives)


def name_token(token: int, logprob: float, vocabulary: Vocabulary, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    """A token with its bytes."""
    content = vocabulary.token_bytes(token)
    return TokenLogprob(token, codecs.decode(content, "utf-8", "replace"), content, logprob, top)
