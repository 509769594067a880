"""Which part of what a model writes is thinking, which the answer and which a call of a tool.

The state machine is mlx-lm's (TextStateMachine, matched on text and not on tokens, as a mark's last letter may lie in a token with what
follows). Here is only what it is told of a model: its marks, which Marks holds in the words that mlx-lm's tokenizers have for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mlx_lm.generate import TextStateMachine, make_text_state_machine


class Kind(StrEnum):
    """What a passage is, by mlx-lm's names of the states. HEADER: between the parts of a message, never told."""

    TEXT = "normal"
    REASONING = "reasoning"
    CALL = "tool"
    HEADER = "header"


@dataclass(frozen=True, slots=True)
class Marks:
    """The texts by which a model begins and ends its thinking and its calls. None: it has none of that."""

    think_start: str | None = None
    think_end: str | None = None
    tool_call_start: str | None = None
    tool_call_end: str | None = None
    structural_markers: Sequence[str] = ()
    response_transitions: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    @property
    def has_thinking(self) -> bool:
        return self.think_start is not None

    @property
    def has_tool_calling(self) -> bool:
        return self.tool_call_start is not None

    def spell_call(self, body: str, *, is_ended: bool) -> str:
        """A call as the model wrote it."""
        return f"{self.tool_call_start or ''}{body}{(self.tool_call_end or '') if is_ended else ''}"

    @property
    def all_texts(self) -> tuple[str, ...]:
        edges = (mark for edges in self.response_transitions.values() for mark, _ in edges)
        own = (self.think_start, self.think_end, self.tool_call_start, self.tool_call_end)
        return tuple(mark for mark in (*own, *self.structural_markers, *edges) if mark)


def make_machine(marks: Marks) -> TextStateMachine:
    """The state machine for a model's marks; it has no state of its own."""
    return make_text_state_machine(marks)


@dataclass(frozen=True, slots=True)
class Passage:
    kind: Kind
    text: str


class PassageReader:
    """Parts one text as it grows. What may be the beginning of a mark is held back."""

    def __init__(self, machine: TextStateMachine, begins: Kind) -> None:
        self._state: Any = machine.make_state(begins.value)

    @property
    def kind(self) -> Kind:
        """What would follow now."""
        return Kind(self._state[0])

    @property
    def held(self) -> str:
        """Text that may be the beginning of a mark."""
        return str(self._state[3])

    def add(self, text: str) -> list[Passage]:
        """The passages that this text adds to, in order: a mark was read between each and the next. Marks are not part of them."""
        self._state, passages = TextStateMachine.split(self._state, text)
        return [Passage(Kind(name), part) for name, part in passages]

    def ignore_marks(self) -> str:
        """Everything that follows is the answer. Returns what was held back."""
        held = self.held
        self._state = TextStateMachine().make_state(Kind.TEXT.value)
        return held

    def flush(self) -> Passage:
        """What was held back, where nothing follows any more."""
        self._state, rest, name = TextStateMachine.flush(self._state)
        return Passage(Kind(name), rest)
