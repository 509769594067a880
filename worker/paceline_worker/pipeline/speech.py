"""What one choice says, from its tokens alone: thinking, answer and calls, in the order in which the model wrote them.

Stop texts are looked for in the answer's text only, not in thinking nor inside calls, and never across a mark. White space that begins a
part of the answer after a mark is layout, and not told.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from paceline_services.domain.generation import ToolCallDelta
from paceline_worker.engine.calls import CallParser, ParsedCall
from paceline_worker.engine.passages import Kind, Marks, Passage, PassageReader
from paceline_worker.engine.text import Detokenizer, StopTexts

_ORDER = (Kind.REASONING, Kind.TEXT, Kind.CALL)
"""Order of the parts within one delta (generation.proto)."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How the answers to one request are to be read. parser None: calls are not looked for.

    keeps_space: the text has a form that white space is part of. is_formed: so are letters that look like marks, once it began.
    hidden: tokens that are no text. prompt_end: the token before the answer, where the answer goes on with a text rather than begin one.
    """

    marks: Marks
    machine: Any
    begins: Kind = Kind.TEXT
    parser: CallParser | None = None
    is_single: bool = False
    keeps_space: bool = True
    is_formed: bool = False
    hidden: frozenset[int] = frozenset()
    prompt_end: int | None = None


@dataclass(slots=True)
class Told:
    """What one delta tells."""

    reasoning_text: str = ""
    text: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    def add(self, kind: Kind, said: str | ToolCallDelta) -> None:
        if isinstance(said, ToolCallDelta):
            self.tool_calls.append(said)
        elif kind is Kind.REASONING:
            self.reasoning_text += said
        else:
            self.text += said


class Speech:
    """Reads the tokens of one choice. name_call: the id of its call of that index."""

    def __init__(
        self, manner: Manner, detokenizer: Detokenizer, stop: Sequence[str], name_call: Callable[[int], str]
    ) -> None:
        self._manner = manner
        self._detokenizer = detokenizer
        self._stops = StopTexts(stop)
        self._name_call = name_call
        self._reader = PassageReader(manner.machine, manner.begins)
        self._said: deque[tuple[Kind, str | ToolCallDelta]] = deque()
        self._body = ""
        self._skips_space = not manner.keeps_space
        self.stop_text = ""
        self.num_calls = 0
        self.num_reasoning_tokens = 0
        self.after_mark: str | None = None
        """What the last token brought behind the last mark in it; None where it ended no mark."""
        if manner.prompt_end is not None:
            detokenizer.add_token(manner.prompt_end)
            _ = detokenizer.last_segment

    @property
    def kind(self) -> Kind:
        """What the next token belongs to."""
        return self._reader.kind

    @property
    def is_over(self) -> bool:
        """Whether a stop text came, or the only call that may be."""
        return bool(self.stop_text) or (self._manner.is_single and self.num_calls > 0)

    def add(self, token: int) -> None:
        """The choice goes on with this token."""
        before, self.after_mark = self.kind, None
        if token not in self._manner.hidden or before is Kind.CALL:
            self._detokenizer.add_token(token)
            self._read(self._detokenizer.last_segment)
        self.num_reasoning_tokens += Kind.REASONING in {before, self.kind}

    def finish(self, *, is_cut: bool) -> None:
        """Nothing follows. is_cut: something would have."""
        if not self.is_over:
            self._detokenizer.finalize()
            self._read(self._detokenizer.last_segment)
        if not self.is_over:
            self._take(self._reader.flush())
        if self.kind is Kind.CALL and not self.is_over:
            self._end_call(is_ended=False, is_cut=is_cut)
        if not self.stop_text:
            self._queue(Kind.TEXT, self._stops.release())

    def take(self) -> Told:
        """What was said and not taken yet, as much as one delta can tell in its order."""
        told, reached = Told(), 0
        while self._said and _ORDER.index(self._said[0][0]) >= reached:
            kind, said = self._said.popleft()
            reached = _ORDER.index(kind)
            told.add(kind, said)
        return told

    def take_all(self) -> list[Told]:
        """Everything that was said and not taken yet: at least one."""
        told = [self.take()]
        while self._said:
            told.append(self.take())
        return told

    def _read(self, text: str) -> None:
        passages = self._reader.add(text)
        for passage, following in pairwise(passages):
            self._take(passage)
            self._pass_mark(passage.kind, following.kind)
            if self.is_over:
                return
        self._take(passages[-1])
        if len(passages) > 1:
            self.after_mark = passages[-1].text + self._reader.held

    def _take(self, passage: Passage) -> None:
        match passage.kind:
            case Kind.CALL:
                self._body += passage.text
            case Kind.TEXT:
                self._say(self._trim(passage.text))
            case Kind.REASONING:
                self._queue(Kind.REASONING, self._trim(passage.text))
            case Kind.HEADER:
                pass

    def _pass_mark(self, before: Kind, after: Kind) -> None:
        if before is Kind.TEXT:
            self._queue(Kind.TEXT, self._stops.release())
        if before is Kind.CALL:
            self._end_call(is_ended=True, is_cut=False)
        self._skips_space = after is Kind.REASONING or not self._manner.keeps_space

    def _trim(self, text: str) -> str:
        if not self._skips_space:
            return text
        text = text.lstrip()
        self._skips_space = not text
        return text

    def _say(self, text: str) -> None:
        if text and self._manner.is_formed:
            text += self._reader.ignore_marks()
        piece = self._stops.add(text)
        self._queue(Kind.TEXT, piece.text)
        self.stop_text = piece.stop_text

    def _queue(self, kind: Kind, said: str | ToolCallDelta) -> None:
        if said:
            self._said.append((kind, said))

    def _end_call(self, *, is_ended: bool, is_cut: bool) -> None:
        body, self._body = self._body, ""
        parser = self._manner.parser
        calls = parser.parse(body) if parser and not is_cut else ()
        if not calls:
            self._say(self._manner.marks.spell_call(body, is_ended=is_ended))
        for call in calls[:1] if self._manner.is_single else calls:
            self._tell_call(call)

    def _tell_call(self, call: ParsedCall) -> None:
        index = self.num_calls
        self.num_calls += 1
        own = call.id or self._name_call(index)
        self._queue(Kind.CALL, ToolCallDelta(index, own, call.name, call.arguments_json))
