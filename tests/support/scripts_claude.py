"""What heads answer in the tests of Claude's protocol, and what its clients ask."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    ToolCallDelta,
)
from support.head import Answer

THOUGHTS = ("Let me ", "see.")
WEATHER_TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city, now",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def say(*texts: str, reason: FinishReason = FinishReason.STOP, stop_text: str = "", num_cached: int = 0) -> Answer:
    """One token a text."""

    async def answer(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 7, 1)
        for number, text in enumerate(texts):
            yield ChoiceDelta(0, (number,), text, number)
        yield ChoiceFinished(0, reason, stop_text, len(texts))
        yield GenerationCompleted(7, len(texts), num_cached_tokens=num_cached)

    return answer


async def think_then_say(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """Thinks for two tokens, says one."""
    yield GenerationStarted(request.request_id, 7, 1)
    for number, text in enumerate(THOUGHTS):
        yield ChoiceDelta(0, (number,), "", number, reasoning_text=text)
    yield ChoiceDelta(0, (2,), "42", 2)
    yield ChoiceFinished(0, FinishReason.STOP, num_tokens=3)
    yield GenerationCompleted(7, 3, num_cached_tokens=2, num_reasoning_tokens=2)


def call_tools(*calls: tuple[str, Mapping[str, Any]], text: str = "", parts: int = 2) -> Answer:
    """Says a text, then calls tools, the arguments of each in so many parts."""

    async def answer(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 7, 1)
        deltas: list[dict[str, Any]] = [{"text": text}] if text else []
        deltas += [{"tool_calls": (part,)} for part in split_calls(calls, parts)]
        for number, fields in enumerate(deltas):
            yield ChoiceDelta(0, (number,), first_token_index=number, **({"text": ""} | fields))
        yield ChoiceFinished(0, FinishReason.TOOL_CALLS, num_tokens=len(deltas))
        yield GenerationCompleted(7, len(deltas))

    return answer


def split_calls(calls: Sequence[tuple[str, Mapping[str, Any]]], parts: int) -> Iterator[ToolCallDelta]:
    """The parts of every call."""
    for index, (name, arguments) in enumerate(calls):
        whole = json.dumps(arguments)
        size = -(-len(whole) // parts)
        for start in range(0, len(whole), size):
            names = {} if start else {"id": f"call_{index}", "name": name}
            yield ToolCallDelta(index, arguments_json=whole[start : start + size], **names)


async def call_weather_until_told(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """Asks for Oslo's weather, and says it once it was told."""
    assert request.conversation is not None
    told = [message for message in request.conversation.messages if message.role == "tool"]
    answer = say("It is ", told[-1].content) if told else call_tools(("get_weather", {"city": "Oslo"}))
    async for event in answer(request):
        yield event
