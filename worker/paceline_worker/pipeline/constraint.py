"""Which grammar holds where in one choice. Thinking is free; the answer has one form; calls may have one of their own.

Rebuilt from the choice's tokens like all of its state: a token is taken when it was drawn, so guesses that were wrong leave nothing.
"""

from dataclasses import dataclass

import numpy as np

from paceline_worker.engine.grammar import Grammar, Indices, Matcher
from paceline_worker.engine.passages import Kind

_FREE = frozenset({Kind.REASONING, Kind.HEADER})


@dataclass(frozen=True, slots=True)
class Rules:
    """The grammars of one request.

    answer: of everything that is no thinking. call: of what follows a call's first mark; is_last: nothing follows such a call.
    think_start: the token by which the model may begin to think before its answer; None where it has none, or must not.
    """

    answer: Grammar | None = None
    call: Grammar | None = None
    is_last: bool = False
    think_start: int | None = None


class Constraint:
    """Where one choice is in its grammars. begins: what its first token belongs to."""

    def __init__(self, rules: Rules, begins: Kind) -> None:
        self._rules = rules
        self._matcher: Matcher | None = None
        self._may_think = rules.think_start is not None
        self.is_complete = False
        if rules.answer and begins not in _FREE:
            self._matcher = rules.answer.start()

    @property
    def is_active(self) -> bool:
        """Whether the next token is constrained."""
        return self._matcher is not None

    def list_allowed(self, vocab_size: int) -> Indices | None:
        """The tokens that may come next; None: all. Raises InvalidRequestError where the grammar turns out to be too much."""
        if self._matcher is None:
            return None
        allowed = self._matcher.list_allowed(vocab_size)
        if self._may_think and self._rules.think_start is not None:
            return np.union1d(allowed, [self._rules.think_start])
        return allowed

    def take(self, token: int) -> None:
        """The choice goes on with this token."""
        if self._matcher is None:
            return
        if self._may_think and token == self._rules.think_start:
            self._matcher = None
            return
        self._may_think = False
        self._matcher.take(token)
        self._end_if_complete()

    def enter(self, kind: Kind, after_mark: str) -> None:
        """The token before ended a mark: what follows is of this kind, and began already with after_mark."""
        grammar = None
        if self._rules.answer:
            if self._matcher is None and kind not in _FREE:
                grammar = self._rules.answer
        elif kind is Kind.CALL:
            grammar = self._rules.call
        if grammar is not None:
            matcher = grammar.start()
            if matcher.take_text(after_mark.lstrip() if kind is Kind.TEXT else after_mark):
                self._matcher = matcher
                self._end_if_complete()

    def _end_if_complete(self) -> None:
        if self._matcher is None or not self._matcher.is_complete:
            return
        self.is_complete = self._rules.answer is not None or self._rules.is_last
        if not self.is_complete:
            self._matcher = None
