"""What a client was given of one answer, so that another head can go on with it where one was lost. Pure.

Gateway and heads agree by token index: a head is told the tokens that were delivered (ChoiceProgress) and goes on behind them. What it
tells again all the same, as an older head does that knows no progress, is left out here. Text belongs to the tokens that it came with:
the text up to a token is the same however often and in whatever portions it is told.
"""

from dataclasses import dataclass, field, replace

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    ChoiceProgress,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    PromptEchoed,
)
from paceline_services.errors import UnavailableError


@dataclass(slots=True)
class _Choice:
    """What was delivered of one choice."""

    token_ids: list[int] = field(default_factory=list)
    text_lengths: dict[int, int] = field(default_factory=lambda: {0: 0})
    """Characters delivered with so many tokens, wherever a delta ended."""
    finished: ChoiceFinished | None = None


class Progress:
    """How far one answer has come, over however many heads."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._choices = [_Choice() for _ in range(request.num_choices or 1)]
        self._started: GenerationStarted | None = None
        self._is_echoed = False

    @property
    def has_begun(self) -> bool:
        """Whether a head has told its seed: from then on the answer is fixed."""
        return self._started is not None

    @property
    def is_finished(self) -> bool:
        """Whether every choice was delivered whole."""
        return all(choice.finished for choice in self._choices)

    @property
    def num_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self._choices)

    @property
    def finish_reasons(self) -> list[str]:
        return [choice.finished.finish_reason.value for choice in self._choices if choice.finished]

    def take(self, event: GenerationEvent) -> GenerationEvent | None:
        """The event, or its part, that is new to the client; None where nothing is.

        Raises UnavailableError for an event that does not follow from those before: its head cannot go on with this answer.
        """
        match event:
            case ChoiceDelta():  # first, as nearly all are
                return self._take_delta(event)
            case ChoiceFinished():
                return self._take_finished(event)
            case GenerationStarted():
                return self._take_started(event)
            case PromptEchoed():
                return self._take_echoed(event)
            case GenerationCompleted():
                return self._take_completed(event)

    def make_request(self) -> GenerateRequest:
        """What to ask the next head: the request itself until a head has begun, then what is missing of the answer."""
        if self._started is None:
            return self._request
        delivered = tuple(ChoiceProgress(tuple(one.token_ids), one.finished is not None) for one in self._choices)
        has_any = any(one.token_ids or one.is_finished for one in delivered)
        sampling = replace(self._request.sampling, seed=self._started.seed)
        echo = self._request.echo and not self._is_echoed
        return replace(self._request, sampling=sampling, progress=delivered if has_any else (), echo=echo)

    def complete(self) -> GenerationCompleted:
        """The last event of an answer that was delivered whole, but for this."""
        num_prompt_tokens = self._started.num_prompt_tokens if self._started else 0
        return GenerationCompleted(num_prompt_tokens, self.num_tokens)

    def _take_started(self, event: GenerationStarted) -> GenerationStarted | None:
        if self._started is not None:
            return None
        self._started = event
        return event

    def _take_echoed(self, event: PromptEchoed) -> PromptEchoed | None:
        if self._is_echoed:
            return None
        self._is_echoed = True
        return event

    def _take_delta(self, delta: ChoiceDelta) -> ChoiceDelta | None:
        choice = self._find_choice(delta.choice_index)
        known, first = len(choice.token_ids), delta.first_token_index
        if first != known:
            if first > known:
                raise _misfit(f"token {first} of a choice came after {known} tokens")
            rest = _cut(delta, choice)
            if rest is None:
                return None
            delta = rest
        if choice.finished:
            raise _misfit("tokens came after the end of a choice")
        text_length = choice.text_lengths[known] + len(delta.text)
        choice.token_ids.extend(delta.token_ids)
        choice.text_lengths[len(choice.token_ids)] = text_length
        return delta

    def _take_finished(self, event: ChoiceFinished) -> ChoiceFinished | None:
        choice = self._find_choice(event.choice_index)
        if choice.finished:
            return None
        if event.num_tokens > len(choice.token_ids):
            raise _misfit(f"a choice of {event.num_tokens} tokens ended after {len(choice.token_ids)}")
        choice.finished = event
        return event

    def _take_completed(self, event: GenerationCompleted) -> GenerationCompleted:
        if not self.is_finished:
            raise _misfit("an answer ended before its choices did")
        return replace(event, num_completion_tokens=self.num_tokens)

    def _find_choice(self, index: int) -> _Choice:
        if index >= len(self._choices):
            raise _misfit(f"choice {index} of {len(self._choices)} came")
        return self._choices[index]


def _cut(delta: ChoiceDelta, choice: _Choice) -> ChoiceDelta | None:
    """The part of a delta behind the tokens that were delivered; None when there is none."""
    known, first = choice.token_ids, delta.first_token_index
    num_known = len(known) - first
    repeated = delta.token_ids[:num_known]
    if repeated != tuple(known[first : first + len(repeated)]):
        raise _misfit("other tokens came than were delivered")
    if len(delta.token_ids) <= num_known:
        return None
    if delta.reasoning_text or delta.tool_calls or first not in choice.text_lengths:
        raise _misfit("text came from amid what was delivered at once")
    num_characters = choice.text_lengths[len(known)] - choice.text_lengths[first]
    return replace(
        delta,
        token_ids=delta.token_ids[num_known:],
        text=delta.text[num_characters:],
        first_token_index=len(known),
        logprobs=delta.logprobs[num_known:],
    )


def _misfit(message: str) -> UnavailableError:
    return UnavailableError(f"the head's answer has a gap: {message}", reason="INSTANCE_BROKEN")
