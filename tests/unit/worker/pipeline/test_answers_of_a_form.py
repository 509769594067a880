"""Forms, calls and echoes on a whole pipeline: in company, with guesses, over changes of the stages, and from one head to another."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    ChoiceProgress,
    Conversation,
    FinishReason,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    Limits,
    Message,
    OutputFormat,
    PromptEchoed,
    Sampling,
    TokenIds,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
)
from paceline_services.errors import InvalidRequestError
from paceline_worker.model.tokenizer import load_tokenizer
from paceline_worker.pipeline.scheduler import SchedulerLimits
from paceline_worker.pipeline.vocabulary import Vocabulary
from support.models import VOCAB_SIZE, make_tiny_model
from support.pipelines import MODEL_ID, Pipeline, open_pipeline

PROMPT = TokenIds(tuple(range(3, 43)))
FREE = GenerateRequest(
    MODEL_ID, token_ids=PROMPT, sampling=Sampling(1.0, seed=11), limits=Limits(max_tokens=30, ignore_eos=True)
)
SCHEMA = {
    "type": "object",
    "properties": {
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 3, "maxItems": 6}
    },
    "required": ["colours"],
    "additionalProperties": False,
}
FORMED = replace(FREE, output_format=OutputFormat(json_schema=json.dumps(SCHEMA)), limits=Limits(max_tokens=120))
TOOL = ToolDefinition("paint", "", json.dumps({**SCHEMA, "additionalProperties": False}))
CALLED = replace(
    FORMED,
    token_ids=None,
    output_format=None,
    conversation=Conversation(
        (Message("user", "Paint."),), (TOOL,), ToolChoice(ToolChoiceMode.REQUIRED, is_single=True)
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path, seed=3)
    return path


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> Vocabulary:
    return Vocabulary(load_tokenizer(folder), VOCAB_SIZE)


@pytest.fixture(params=[False, True], ids=["plain", "guessing"])
async def pipeline(folder: Path, vocabulary: Vocabulary, request: pytest.FixtureRequest) -> AsyncIterator[Pipeline]:
    limits = SchedulerLimits(chunk_tokens=7)
    async with open_pipeline(
        folder, vocabulary, num_layers=4, num_stages=2, limits=limits, speculates=request.param, context_length=2048
    ) as pipeline:
        yield pipeline


async def hear(pipeline: Pipeline, request: GenerateRequest) -> list[GenerationEvent]:
    return [event async for event in pipeline.head.generate(request)]


def read(events: Sequence[GenerationEvent]) -> tuple[str, str, list[int], FinishReason | None]:
    """Text, arguments of calls, tokens and the reason of the end of a single choice."""
    deltas = [event for event in events if isinstance(event, ChoiceDelta)]
    ends = [event.finish_reason for event in events if isinstance(event, ChoiceFinished)]
    arguments = "".join(call.arguments_json for delta in deltas for call in delta.tool_calls)
    tokens = [token for delta in deltas for token in delta.token_ids]
    return "".join(delta.text for delta in deltas), arguments, tokens, ends[0] if ends else None


async def test_form_is_kept_in_company_and_the_company_is_not_touched(pipeline: Pipeline) -> None:
    requests = [
        FREE,
        FORMED,
        CALLED,
        replace(FREE, sampling=Sampling(1.0, seed=12)),
        replace(FORMED, sampling=Sampling()),
    ]
    alone = [read(await hear(pipeline, request)) for request in requests]
    together = [read(events) for events in await asyncio.gather(*(hear(pipeline, request) for request in requests))]
    assert together == alone
    for text, reason in ((alone[1][0], alone[1][3]), (alone[4][0], alone[4][3])):
        assert len(json.loads(text)["colours"]) >= 3 and reason is FinishReason.STOP
    assert json.loads(alone[2][1])["colours"] and alone[2][0] == "" and alone[2][3] is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("asked", [FORMED, CALLED], ids=["form", "call"])
async def test_answer_of_a_form_goes_on_from_its_tokens(pipeline: Pipeline, asked: GenerateRequest) -> None:
    whole = await hear(pipeline, asked)
    started = whole[0]
    assert isinstance(started, GenerationStarted)
    for cut in range(2, len(whole) - 2, 7):
        tokens = tuple(read(whole[:cut])[2])
        rest = await hear(pipeline, replace(asked, progress=(ChoiceProgress(tokens),)))
        deltas = [event for event in [*whole[:cut], *rest] if isinstance(event, ChoiceDelta)]
        assert read(deltas)[:3] == read(whole)[:3]
        ids = [call.id for event in deltas for call in event.tool_calls]
        assert ids == [call.id for event in whole if isinstance(event, ChoiceDelta) for call in event.tool_calls]


async def test_form_is_kept_over_a_change_of_the_stages(pipeline: Pipeline) -> None:
    expected = read(await hear(pipeline, FORMED))
    events: list[GenerationEvent] = []
    num_moves = 0
    async for event in pipeline.head.generate(FORMED):
        events.append(event)
        if len(read(events)[2]) >= 8 and not num_moves:
            num_moves += 1
            await pipeline.move(3)
    assert read(events) == expected and num_moves == 1


async def test_form_that_cannot_be_kept_is_refused_before_it_costs_anything(pipeline: Pipeline) -> None:
    wrong = replace(FREE, output_format=OutputFormat(json_schema='{"type": "object", "not": {}}'))
    with pytest.raises(InvalidRequestError, match="not") as refusal:
        await hear(pipeline, wrong)
    assert refusal.value.reason == "INVALID_OUTPUT_FORMAT"
    assert pipeline.scheduler.num_running == 0


async def test_prompt_is_told_after_the_beginning(pipeline: Pipeline, vocabulary: Vocabulary) -> None:
    started, echoed, *rest = await hear(pipeline, replace(FREE, echo=True))
    assert isinstance(started, GenerationStarted)
    assert echoed == PromptEchoed(vocabulary.decode(PROMPT.ids))
    assert read(rest)[2] == read(await hear(pipeline, FREE))[2]


SCORED = replace(
    FREE, sampling=Sampling(), logprobs=True, num_top_logprobs=2, limits=Limits(max_tokens=20, ignore_eos=True)
)


async def test_prompts_tokens_have_the_log_probabilities_that_they_would_be_drawn_with(pipeline: Pipeline) -> None:
    answer = [event for event in await hear(pipeline, SCORED) if isinstance(event, ChoiceDelta)]
    tokens = [token for delta in answer for token in delta.token_ids]
    expected = [one for delta in answer for one in delta.logprobs]
    longer = TokenIds((*PROMPT.ids, *tokens))
    asked = replace(SCORED, token_ids=longer, echo=True, limits=Limits(max_tokens=1), num_choices=2)
    _, echoed, *rest = await hear(pipeline, asked)
    assert isinstance(echoed, PromptEchoed) and len(echoed.logprobs) == len(longer.ids)
    assert [one.token_id for one in echoed.logprobs] == list(longer.ids)
    assert (echoed.logprobs[0].logprob, echoed.logprobs[0].top) == (0, ())
    for found, drawn in zip(echoed.logprobs[len(PROMPT.ids) :], expected, strict=True):
        assert found.logprob == pytest.approx(drawn.logprob, abs=1e-3)
        assert [one.token_id for one in found.top] == [one.token_id for one in drawn.top]
    completed = rest[-1]
    assert isinstance(completed, GenerationCompleted) and completed.num_completion_tokens == 2
    again = [event for event in await hear(pipeline, asked) if isinstance(event, PromptEchoed)]
    assert [one.logprob for one in again[0].logprobs] == pytest.approx(
        [one.logprob for one in echoed.logprobs], abs=1e-3
    )
