"""A whole answer, gathered from its events. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    PromptEchoed,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)
from paceline_services.errors import InternalError


@dataclass(slots=True)
class ChoiceAnswer:
    """One choice as far as it has come."""

    text: str = ""
    reasoning_text: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: ChoiceFinished | None = None

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended; raises InternalError when it has not."""
        if self.finished is None:
            raise InternalError("the head ended an answer before all of its choices")
        return self.finished.finish_reason

    def add(self, delta: ChoiceDelta) -> None:
        self.text += delta.text
        self.reasoning_text += delta.reasoning_text
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self._add_calls(delta.tool_calls)

    def _add_calls(self, deltas: Iterable[ToolCallDelta]) -> None:
        for delta in deltas:
            if delta.index == len(self.tool_calls):
                self.tool_calls.append(ToolCall(delta.id, delta.name, delta.arguments_json))
                continue
            call = self.tool_calls[delta.index]
            self.tool_calls[delta.index] = replace(call, arguments_json=call.arguments_json + delta.arguments_json)


@dataclass(slots=True)
class Answer:
    """Every choice, and what was told of the whole."""

    choices: list[ChoiceAnswer]
    started: GenerationStarted | None = None
    echoed: PromptEchoed | None = None
    completed: GenerationCompleted | None = None

    @classmethod
    def of(cls, num_choices: int) -> "Answer":
        return cls([ChoiceAnswer() for _ in range(num_choices)])

    @property
    def usage(self) -> GenerationCompleted:
        """Its last event; raises InternalError when there was none."""
        if self.completed is None:
            raise InternalError("the head ended an answer without its last event")
        return self.completed

    def add(self, event: GenerationEvent) -> None:
        match event:
            case ChoiceDelta():
                self.choices[event.choice_index].add(event)
            case ChoiceFinished():
                self.choices[event.choice_index].finished = event
            case GenerationStarted():
                self.started = event
            case PromptEchoed():
                self.echoed = event
            case GenerationCompleted():
                self.completed = event
