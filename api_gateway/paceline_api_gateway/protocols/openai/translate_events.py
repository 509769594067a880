"""From events of a generation to OpenAI's answers, whole or in chunks. Pure: what is needed of time and chance comes in the Envelope.

Every generated token has its entry in logprobs and token_ids, the end-of-sequence token too, as in vLLM, so that their number is that
of usage.completion_tokens; content has the visible text only.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    TokenLogprob,
)
from paceline_services.errors import InternalError

from paceline_api_gateway.protocols.openai.schema import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChoiceBody,
    ChoiceLogprobs,
    ChunkChoice,
    DeltaBody,
    PromptTokensDetails,
    TokenLogprobBody,
    TopLogprob,
    Usage,
)

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have; OpenAI's own value."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every part of one answer repeats, and what the client asked to see. created is in seconds since 1970."""

    id: str
    created: int
    model: str
    num_choices: int = 1
    logprobs: bool = False
    token_ids: bool = False
    usage: bool = False


def make_envelope(body: ChatCompletionRequest, answer_id: str, created: int) -> Envelope:
    """The envelope of a request's answer."""
    return Envelope(
        answer_id,
        created,
        body.model,
        num_choices=body.n or 1,
        logprobs=bool(body.logprobs),
        token_ids=bool(body.return_token_ids),
        usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def to_chunks(event: GenerationEvent, envelope: Envelope) -> Iterator[ChatCompletionChunk]:
    """Chunks that tell of one event: each choice's role first, then its text, its finish reason, and usage at the very end."""
    if isinstance(event, GenerationStarted):
        for index in range(envelope.num_choices):
            yield _chunk(envelope, _chunk_choice(index, DeltaBody(role="assistant", content="")))
    elif isinstance(event, ChoiceDelta):
        if event.text or envelope.logprobs or envelope.token_ids:
            yield _chunk(envelope, _delta_choice(event, envelope))
    elif isinstance(event, ChoiceFinished):
        yield _chunk(envelope, _chunk_choice(event.choice_index, DeltaBody(), event.finish_reason.value))
    elif envelope.usage:
        yield _chunk(envelope, usage=_to_usage(event))


def to_completion(events: Iterable[GenerationEvent], envelope: Envelope) -> ChatCompletion:
    """The whole answer from all of a request's events. Raises InternalError when some are missing."""
    choices = [_Choice() for _ in range(envelope.num_choices)]
    completed: GenerationCompleted | None = None
    for event in events:
        if isinstance(event, ChoiceDelta):
            choices[event.choice_index].add(event)
        elif isinstance(event, ChoiceFinished):
            choices[event.choice_index].finish_reason = event.finish_reason.value
        elif isinstance(event, GenerationCompleted):
            completed = event
    if completed is None:
        raise InternalError("the head's answer has no end")
    return ChatCompletion(
        id=envelope.id,
        created=envelope.created,
        model=envelope.model,
        choices=[choice.to_body(index, envelope) for index, choice in enumerate(choices)],
        usage=_to_usage(completed),
    )


@dataclass(slots=True)
class _Choice:
    """A choice as it grows."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""

    def add(self, delta: ChoiceDelta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs

    def to_body(self, index: int, envelope: Envelope) -> ChoiceBody:
        if not self.finish_reason:
            raise InternalError(f"the head's answer leaves choice {index} unfinished")
        body = ChoiceBody(
            index=index,
            message=AnswerMessage(content="".join(self.texts)),
            logprobs=_to_logprobs(self.logprobs) if envelope.logprobs else None,
            finish_reason=self.finish_reason,
        )
        return body.model_copy(update={"token_ids": self.token_ids}) if envelope.token_ids else body


def _chunk(envelope: Envelope, *choices: ChunkChoice, usage: Usage | None = None) -> ChatCompletionChunk:
    chunk = ChatCompletionChunk(
        id=envelope.id,
        object="chat.completion.chunk",
        created=envelope.created,
        model=envelope.model,
        choices=list(choices),
        system_fingerprint=None,
    )
    return chunk.model_copy(update={"usage": usage}) if envelope.usage else chunk


def _chunk_choice(index: int, delta: DeltaBody, finish_reason: str | None = None) -> ChunkChoice:
    return ChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=finish_reason)


def _delta_choice(event: ChoiceDelta, envelope: Envelope) -> ChunkChoice:
    choice = _chunk_choice(event.choice_index, DeltaBody(content=event.text))
    update: dict[str, object] = {}
    if envelope.logprobs:
        update["logprobs"] = _to_logprobs(event.logprobs)
    if envelope.token_ids:
        update["token_ids"] = list(event.token_ids)
    return choice.model_copy(update=update)


def _to_usage(completed: GenerationCompleted) -> Usage:
    prompt, answer = completed.num_prompt_tokens, completed.num_completion_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=answer,
        total_tokens=prompt + answer,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=completed.num_cached_tokens),
    )


def _to_logprobs(logprobs: Sequence[TokenLogprob]) -> ChoiceLogprobs:
    return ChoiceLogprobs(
        content=[
            TokenLogprobBody(**_spell(one), top_logprobs=[TopLogprob(**_spell(other)) for other in one.top])
            for one in logprobs
        ]
    )
