"""What scripted heads say to requests of the Responses API: thoughts, words, calls of tools; answers that are cut, slow or broken."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    TokenLogprob,
    ToolCallDelta,
)
from paceline_services.errors import InternalError
from support.head import NUM_PROMPT_TOKENS, Answer, describe_token

CALL_ID = "call_0123456789abcdef01234567"


def say(
    *words: str,
    thoughts: Sequence[str] = (),
    calls: Sequence[tuple[str, dict[str, object]]] = (),
    finish: FinishReason | None = None,
) -> Answer:
    """Thoughts, words and calls in that order, one token each."""
    reason = finish or (FinishReason.TOOL_CALLS if calls else FinishReason.STOP)

    async def answer(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, NUM_PROMPT_TOKENS, 0)
        number = 0
        for thought in thoughts:
            yield ChoiceDelta(0, (number,), "", number, _describe(request, number, thought), reasoning_text=thought)
            number += 1
        for word in words:
            yield ChoiceDelta(0, (number,), word, number, _describe(request, number, word))
            number += 1
        for index, (name, arguments) in enumerate(calls):
            call_id = f"{CALL_ID[:-1]}{index}"
            first, rest = json.dumps(arguments)[:5], json.dumps(arguments)[5:]
            yield ChoiceDelta(0, (number,), "", number, tool_calls=(ToolCallDelta(index, call_id, name, first),))
            yield ChoiceDelta(0, (number + 1,), "", number + 1, tool_calls=(ToolCallDelta(index, "", "", rest),))
            number += 2
        yield ChoiceFinished(0, reason, num_tokens=number)
        yield GenerationCompleted(
            NUM_PROMPT_TOKENS, number, num_cached_tokens=2, num_reasoning_tokens=len(tuple(thoughts))
        )

    return answer


def call_then_tell(name: str, arguments: dict[str, object], *words: str) -> Answer:
    """Calls a tool; once its output is in the conversation, tells the words."""

    def answer(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        assert request.conversation is not None
        is_told = any(message.role == "tool" for message in request.conversation.messages)
        return (say(*words) if is_told else say(calls=[(name, arguments)]))(request)

    return answer


def wait_for(begun: asyncio.Event, *words: str) -> Answer:
    """Begins, then says the words when the event is set."""

    async def answer(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, NUM_PROMPT_TOKENS, 0)
        await begun.wait()
        async for event in say(*words)(request):
            if not isinstance(event, GenerationStarted):
                yield event

    return answer


def break_after(*words: str) -> Answer:
    """Says the words, then has a defect."""

    async def answer(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        async for event in say(*words)(request):
            if isinstance(event, ChoiceFinished):
                raise InternalError("the head has a defect", reason="DEFECT")
            yield event

    return answer


def _describe(request: GenerateRequest, number: int, text: str) -> tuple[TokenLogprob, ...]:
    return (describe_token(number, text, request.num_top_logprobs),) if request.logprobs else ()


def answer_any(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """Calls the first tool until its output is there, obeys a format, thinks where it shall, and breaks when it is told to."""
    assert request.conversation is not None
    last, tools = request.conversation.messages[-1], request.conversation.tools
    thoughts = ("Let me ", "think.") if request.reasoning and request.reasoning.is_enabled else ()
    if last.content == "break":
        return break_after("Hel", "lo")(request)
    if request.output_format is not None:
        return say('{"km": 3,', ' "town": "Ivrea"}', thoughts=thoughts)(request)
    if tools and last.role == "user":
        return say(thoughts=thoughts, calls=[(tools[0].name, {"city": "Turin"})])(request)
    return say("Hel", "lo ", last.role, thoughts=thoughts)(request)
