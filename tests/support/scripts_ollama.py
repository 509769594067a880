"""What heads answer in the tests of Ollama's protocol."""

import json
from collections.abc import AsyncIterator, Mapping
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
from support.head import Answer, describe_token


async def think_then_say(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """Thinks for a token, says one; tells their log probabilities where asked."""
    yield GenerationStarted(request.request_id, 7, 1)
    for number, (thought, text) in enumerate([("Hm.", ""), ("", "42")]):
        token = describe_token(number, thought or text, request.num_top_logprobs)
        yield ChoiceDelta(0, (number,), text, number, (token,) if request.logprobs else (), reasoning_text=thought)
    yield ChoiceFinished(0, FinishReason.STOP, num_tokens=2)
    yield GenerationCompleted(
        7, 2, num_cached_tokens=2, time_to_first_token_ms=2.0, total_duration_ms=5.0, num_reasoning_tokens=1
    )


def call_tools(*calls: tuple[str, Mapping[str, Any]], cut: int | None = None) -> Answer:
    """Calls tools, the arguments of each in two parts; the answer may be cut off behind so many characters of the last one's arguments."""

    async def answer(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 7, 1)
        for index, (name, arguments) in enumerate(calls):
            text = json.dumps(arguments) if arguments else ""
            text = text[:cut] if index == len(calls) - 1 else text
            half = len(text) // 2
            begun = ToolCallDelta(index, f"call_{index}", name, text[:half])
            rest = ToolCallDelta(index, arguments_json=text[half:])
            for number, part in enumerate((begun, rest), 2 * index):
                yield ChoiceDelta(0, (number,), "", number, tool_calls=(part,))
        reason = FinishReason.TOOL_CALLS if cut is None else FinishReason.LENGTH
        yield ChoiceFinished(0, reason, num_tokens=2 * len(calls))
        yield GenerationCompleted(7, 2 * len(calls))

    return answer


async def call_adder_until_told(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """Asks for the sum of 2 and 3, and says it once it was told."""
    assert request.conversation is not None
    last = request.conversation.messages[-1]
    if last.role != "tool":
        async for event in call_tools(("add", {"a": 2, "b": 3}))(request):
            yield event
        return
    yield GenerationStarted(request.request_id, 9, 1)
    yield ChoiceDelta(0, (1,), f"It is {last.content}", 0)
    yield ChoiceFinished(0, FinishReason.STOP, num_tokens=1)
    yield GenerationCompleted(9, 1)
