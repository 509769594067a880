"""Events of an answer add up to the whole of it."""

import pytest

from paceline_api_gateway.generation.answer import Answer
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerationCompleted,
    GenerationStarted,
    PromptEchoed,
    ToolCall,
    ToolCallDelta,
)
from paceline_services.errors import InternalError
from paceline_services.ids import RequestId


def test_texts_tokens_and_ends_are_kept_by_choice() -> None:
    answer = Answer.of(2)
    for event in (
        GenerationStarted(RequestId("r"), 3, 1),
        PromptEchoed("Say"),
        ChoiceDelta(1, (4,), "b", 0),
        ChoiceDelta(0, (5, 6), "", 0, reasoning_text="hm"),
        ChoiceDelta(0, (7,), "a", 2, reasoning_text="m"),
        ChoiceFinished(0, FinishReason.LENGTH, num_tokens=3),
        ChoiceFinished(1, FinishReason.STOP, num_tokens=1),
        GenerationCompleted(3, 4),
    ):
        answer.add(event)
    first, second = answer.choices
    assert (first.text, first.reasoning_text, first.token_ids) == ("a", "hmm", [5, 6, 7])
    assert (second.text, second.finish_reason) == ("b", FinishReason.STOP)
    assert answer.echoed == PromptEchoed("Say") and answer.usage.num_completion_tokens == 4


def test_parts_of_calls_make_whole_calls() -> None:
    answer = Answer.of(1)
    answer.add(ChoiceDelta(0, (1,), "", 0, tool_calls=(ToolCallDelta(0, "one", "look", '{"a":'),)))
    more = (ToolCallDelta(0, arguments_json=" 1}"), ToolCallDelta(1, "two", "find", "{}"))
    answer.add(ChoiceDelta(0, (2,), "", 1, tool_calls=more))
    assert answer.choices[0].tool_calls == [ToolCall("one", "look", '{"a": 1}'), ToolCall("two", "find", "{}")]


def test_answer_without_its_end_is_a_defect() -> None:
    answer = Answer.of(1)
    with pytest.raises(InternalError):
        _ = answer.usage
    with pytest.raises(InternalError):
        _ = answer.choices[0].finish_reason
