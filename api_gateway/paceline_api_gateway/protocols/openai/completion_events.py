"""Canonical events -> chunks and bodies of completions, with log probabilities in the shape that they have there. Pure."""

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass

from paceline_api_gateway.generation.answer import Answer
from paceline_api_gateway.protocols.openai.wire import Envelope, Json, make_finite, to_usage, write_event, write_text
from paceline_services.domain.generation import ChoiceDelta, ChoiceFinished, GenerationCompleted, TokenLogprob

KIND = "text_completion"
_MARK = "\0"


@dataclass(frozen=True, slots=True)
class CompletionForm:
    """What a client asked to be told."""

    num_choices: int = 1
    has_usage: bool = False
    has_logprobs: bool = False
    has_token_ids: bool = False


class LegacyLogprobs:
    """Of one choice, in OpenAI's older shape: lists side by side. text_offset counts characters from the beginning of the choice's text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = 0

    def describe(self, logprobs: Sequence[TokenLogprob]) -> Json:
        """Those that follow the ones before."""
        return {
            "tokens": [_name(one) for one in logprobs],
            "token_logprobs": [_tell(one) for one in logprobs],
            "top_logprobs": [_list_alternatives(one) for one in logprobs],
            "text_offset": [self._pass(one) for one in logprobs],
        }

    def _pass(self, logprob: TokenLogprob) -> int:
        start = self._num_characters
        self._num_characters += len(self._decoder.decode(logprob.token_bytes))
        return start


def _name(logprob: TokenLogprob) -> str:
    """The token's text; of a part of a character its bytes, as OpenAI writes them."""
    try:
        return logprob.token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{one:02x}" for one in logprob.token_bytes)


def _tell(logprob: TokenLogprob) -> float | None:
    return None if math.isnan(logprob.logprob) else make_finite(logprob.logprob)


def _list_alternatives(logprob: TokenLogprob) -> dict[str, float] | None:
    """The most likely tokens and the one that was drawn."""
    if math.isnan(logprob.logprob):
        return None
    return {_name(one): make_finite(one.logprob) for one in (*logprob.top, logprob)}


class CompletionWriter:
    """Writes the chunks of one answer as server-sent events; see ChunkWriter."""

    def __init__(self, envelope: Envelope, form: CompletionForm) -> None:
        self._envelope = envelope
        self._form = form
        self._frames: dict[int, tuple[str, str]] = {}
        self._logprobs = [LegacyLogprobs() for _ in range(form.num_choices)]

    def begin(self) -> str:
        """Nothing: there are no roles."""
        return ""

    def write_delta(self, delta: ChoiceDelta) -> str:
        """A chunk; none where nothing is to be told."""
        index = delta.choice_index
        if self._form.has_token_ids or delta.logprobs:
            logprobs = self._logprobs[index].describe(delta.logprobs) if delta.logprobs else None
            return self._write(index, delta.text, logprobs, token_ids=delta.token_ids)
        if not delta.text:
            return ""
        frame = self._frames.get(index)
        if frame is None:
            before, after = self._write(index, _MARK).split(write_text(_MARK))
            frame = self._frames[index] = before, after
        return f"{frame[0]}{write_text(delta.text)}{frame[1]}"

    def finish(self, event: ChoiceFinished) -> str:
        return self._write(event.choice_index, "", finish_reason=event.finish_reason.value)

    def complete(self, event: GenerationCompleted) -> str:
        """The chunk with usage, where it was asked for."""
        if not self._form.has_usage:
            return ""
        return write_event(self._envelope.wrap(KIND, []) | {"usage": to_usage(event)})

    def _write(
        self,
        index: int,
        text: str,
        logprobs: Json | None = None,
        *,
        finish_reason: str | None = None,
        token_ids: Sequence[int] = (),
    ) -> str:
        choice: Json = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        if self._form.has_token_ids:
            choice["token_ids"] = token_ids
        body = self._envelope.wrap(KIND, [choice])
        return write_event(body | {"usage": None} if self._form.has_usage else body)


def to_response(answer: Answer, envelope: Envelope, form: CompletionForm) -> Json:
    """The whole answer as one body."""
    choices = []
    for index, choice in enumerate(answer.choices):
        described: Json = {
            "index": index,
            "text": choice.text,
            "logprobs": LegacyLogprobs().describe(choice.logprobs) if form.has_logprobs else None,
            "finish_reason": choice.finish_reason.value,
        }
        choices.append(described | ({"token_ids": choice.token_ids} if form.has_token_ids else {}))
    return envelope.wrap(KIND, choices) | {"usage": to_usage(answer.usage)}
