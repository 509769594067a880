"""An answer that another call goes on with is the answer that one call gives: same tokens, same text, told once."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    ChoiceProgress,
    FinishReason,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    Limits,
    Sampling,
    TokenIds,
)
from paceline_services.errors import InvalidRequestError
from paceline_worker.model.tokenizer import load_tokenizer
from paceline_worker.pipeline.scheduler import SchedulerLimits
from paceline_worker.pipeline.vocabulary import Vocabulary
from support.models import VOCAB_SIZE, make_tiny_model
from support.pipelines import MODEL_ID, Pipeline, ask, open_pipeline

GREEDY = GenerateRequest(
    MODEL_ID, token_ids=TokenIds(tuple(range(3, 33))), limits=Limits(max_tokens=40, ignore_eos=True)
)
DRAWN = replace(
    GREEDY,
    sampling=Sampling(1.0, top_k=50, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, seed=11),
)
SEVERAL = replace(DRAWN, num_choices=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path, seed=3)
    return path


@pytest.fixture
async def pipeline(folder: Path) -> AsyncIterator[Pipeline]:
    vocabulary = Vocabulary(load_tokenizer(folder), VOCAB_SIZE)
    limits = SchedulerLimits(chunk_tokens=7)
    async with open_pipeline(
        folder, vocabulary, num_layers=4, num_stages=2, limits=limits, speculates=True
    ) as pipeline:
        yield pipeline


async def hear(pipeline: Pipeline, request: GenerateRequest) -> list[GenerationEvent]:
    return [event async for event in pipeline.head.generate(request)]


def read_progress(events: Sequence[GenerationEvent], num_choices: int) -> tuple[ChoiceProgress, ...]:
    """What a client knows that has heard these events."""
    tokens: list[list[int]] = [[] for _ in range(num_choices)]
    ended = [False] * num_choices
    for event in events:
        if isinstance(event, ChoiceDelta):
            assert event.first_token_index == len(tokens[event.choice_index])
            tokens[event.choice_index].extend(event.token_ids)
        elif isinstance(event, ChoiceFinished):
            ended[event.choice_index] = True
    return tuple(ChoiceProgress(tuple(ids), end) for ids, end in zip(tokens, ended, strict=True))


def tell(events: Sequence[GenerationEvent], num_choices: int) -> list[tuple[list[int], str, list[ChoiceFinished]]]:
    """What the events say of every choice."""
    told: list[tuple[list[int], str, list[ChoiceFinished]]] = [([], "", []) for _ in range(num_choices)]
    for event in events:
        if isinstance(event, ChoiceDelta):
            tokens, text, ends = told[event.choice_index]
            told[event.choice_index] = ([*tokens, *event.token_ids], text + event.text, ends)
        elif isinstance(event, ChoiceFinished):
            told[event.choice_index][2].append(event)
    return told


@pytest.mark.parametrize("request_", [GREEDY, DRAWN, SEVERAL], ids=["greedy", "drawn", "several"])
async def test_answer_cut_anywhere_goes_on_as_if_it_had_not_been(pipeline: Pipeline, request_: GenerateRequest) -> None:
    whole = await hear(pipeline, request_)
    for cut in range(1, len(whole), 5):
        progress = read_progress(whole[:cut], request_.num_choices)
        rest = await hear(pipeline, replace(request_, progress=progress))
        assert isinstance(rest[0], GenerationStarted)
        assert tell([*whole[:cut], *rest], request_.num_choices) == tell(whole, request_.num_choices)
        ended = rest[-1]
        assert isinstance(ended, GenerationCompleted)
        assert ended.num_completion_tokens == 40 * request_.num_choices


async def test_stop_text_that_began_before_the_cut_ends_the_answer_after_it(pipeline: Pipeline) -> None:
    text = (await ask(pipeline.head, DRAWN)).texts[0]
    stop = text[len(text) // 2 :][:6]
    stopped = replace(DRAWN, limits=Limits(max_tokens=40, ignore_eos=True, stop=(stop,)))
    whole = await hear(pipeline, stopped)
    for cut in range(1, len(whole)):
        rest = await hear(pipeline, replace(stopped, progress=read_progress(whole[:cut], 1)))
        assert tell([*whole[:cut], *rest], 1) == tell(whole, 1)
    assert tell(whole, 1)[0][2][0].stop_text == stop


async def test_end_that_was_reached_but_not_heard_is_told(pipeline: Pipeline) -> None:
    whole = await hear(pipeline, GREEDY)
    progress = ChoiceProgress(tuple(tell(whole, 1)[0][0]))
    started, finished, completed = await hear(pipeline, replace(GREEDY, progress=(progress,)))
    assert isinstance(started, GenerationStarted)
    assert finished == ChoiceFinished(0, FinishReason.LENGTH, num_tokens=40)
    assert isinstance(completed, GenerationCompleted)
    heard = replace(GREEDY, progress=(replace(progress, is_finished=True),))
    assert [type(event) for event in await hear(pipeline, heard)] == [GenerationStarted, GenerationCompleted]


@pytest.mark.parametrize(
    "wrong",
    [
        replace(SEVERAL, progress=(ChoiceProgress((1,)),)),
        replace(DRAWN, sampling=Sampling(1.0), progress=(ChoiceProgress((1,)),)),
        replace(GREEDY, progress=(ChoiceProgress((VOCAB_SIZE,)),)),
    ],
    ids=["one of three choices", "no seed", "no such token"],
)
async def test_progress_that_cannot_be_is_refused(pipeline: Pipeline, wrong: GenerateRequest) -> None:
    with pytest.raises(InvalidRequestError):
        await hear(pipeline, wrong)
