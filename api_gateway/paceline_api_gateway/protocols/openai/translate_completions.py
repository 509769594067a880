"""POST /v1/completions: a canonical request for each prompt, and one answer made of all of theirs. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from paceline_api_gateway.protocols.openai.schema import CompletionRequest
from paceline_api_gateway.protocols.openai.translate_sampling import (
    choose_format,
    list_formats,
    parse_model,
    to_limits,
    to_sampling,
)
from paceline_api_gateway.protocols.openai.unsupported import refuse_unsupported
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    PromptEchoed,
    TokenIds,
)
from paceline_services.errors import InvalidRequestError

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


def to_generate_requests(body: CompletionRequest) -> list[GenerateRequest]:
    """One for each prompt; raises InvalidRequestError naming the parameter that cannot be honoured."""
    _refuse(body)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    request = GenerateRequest(
        model_id=parse_model(body.model),
        sampling=to_sampling(body),
        # Where only the prompt is asked for, one token is generated and dropped: 0 means no limit.
        limits=to_limits(body, max(1, max_tokens)),
        num_choices=body.n or 1,
        logprobs=body.logprobs is not None,
        num_top_logprobs=body.logprobs or 0,
        output_format=choose_format(dict(list_formats(body))),
        echo=bool(body.echo),
    )
    return [
        replace(request, text=one) if isinstance(one, str) else replace(request, token_ids=TokenIds(tuple(one)))
        for one in body.prompt
    ]


def _refuse(body: CompletionRequest) -> None:
    refuse_unsupported(body.model_extra or {})
    num_choices = body.n or 1
    if body.suffix:
        raise InvalidRequestError("suffix is not supported: leave it out", param="suffix")
    if body.best_of is not None and body.best_of != num_choices:
        raise InvalidRequestError(f"best_of must be n, which is {num_choices}: all choices are told", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequestError("max_tokens 0 is only allowed with echo", param="max_tokens")


class JoinedAnswers:
    """Makes one canonical answer of several prompts' answers: the choices of each follow those of the one before.

    An echoed prompt becomes the beginning of each of its choices; its first token has a log probability that is no number.
    """

    def __init__(self, requests: Sequence[GenerateRequest], *, has_answer: bool) -> None:
        self._requests = requests
        self._has_answer = has_answer
        self._num_choices = requests[0].num_choices
        self._has_started = False
        self._completed: list[GenerationCompleted] = []

    @property
    def num_choices(self) -> int:
        return self._num_choices * len(self._requests)

    def take(self, number: int, event: GenerationEvent) -> Iterator[GenerationEvent]:
        """What an event of the prompt with this number tells of the whole."""
        first = number * self._num_choices
        match event:
            case ChoiceDelta():
                if self._has_answer:
                    yield replace(event, choice_index=first + event.choice_index) if first else event
            case ChoiceFinished():
                reason = event.finish_reason if self._has_answer else FinishReason.LENGTH
                yield replace(event, choice_index=first + event.choice_index, finish_reason=reason)
            case PromptEchoed():
                yield from self._echo(first, self._requests[number], event)
            case GenerationCompleted():
                yield from self._complete(event)
            case GenerationStarted() if not self._has_started:
                self._has_started = True
                yield event

    def _echo(self, first: int, request: GenerateRequest, event: PromptEchoed) -> Iterator[ChoiceDelta]:
        logprobs = event.logprobs
        if logprobs:
            logprobs = (replace(logprobs[0], logprob=math.nan, top=()), *logprobs[1:])
        text = event.text if request.text is None else request.text
        for index in range(first, first + self._num_choices):
            yield ChoiceDelta(index, (), text, 0, logprobs)

    def _complete(self, event: GenerationCompleted) -> Iterator[GenerationCompleted]:
        self._completed.append(event)
        if len(self._completed) < len(self._requests):
            return
        ended = self._completed
        yield GenerationCompleted(
            num_prompt_tokens=sum(one.num_prompt_tokens for one in ended),
            num_completion_tokens=sum(one.num_completion_tokens for one in ended) if self._has_answer else 0,
            num_cached_tokens=sum(one.num_cached_tokens for one in ended),
            num_drafted_tokens=sum(one.num_drafted_tokens for one in ended),
            num_accepted_tokens=sum(one.num_accepted_tokens for one in ended),
        )
