"""Forms, calls and echoes of the real demo model, whose template knows no tools, over two stages in one process."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import jsonschema_rs
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    Conversation,
    FinishReason,
    GenerateRequest,
    GenerationEvent,
    Limits,
    Message,
    OutputFormat,
    PromptEchoed,
    Sampling,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
)
from paceline_worker.engine.sampling import log_softmax
from paceline_worker.model.tokenizer import load_tokenizer
from paceline_worker.pipeline.vocabulary import Vocabulary
from support.demo import demo_folder
from support.pipelines import MODEL_ID, Pipeline, open_pipeline

NUM_LAYERS, VOCAB_SIZE = 30, 49152
BICYCLE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "wheels": {"type": "integer", "minimum": 1, "maximum": 4},
        "colour": {"enum": ["red", "green", "blue"]},
        "parts": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "wheels", "colour", "parts"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
WEATHER = ToolDefinition("get_weather", "Weather of a city", json.dumps({**CITY, "additionalProperties": False}))


@pytest.fixture
async def pipeline() -> AsyncIterator[Pipeline]:
    folder = demo_folder()
    vocabulary = Vocabulary(load_tokenizer(folder), VOCAB_SIZE)
    async with open_pipeline(
        folder, vocabulary, num_layers=NUM_LAYERS, num_stages=2, context_length=2048, speculates=True
    ) as pipeline:
        yield pipeline


async def hear(pipeline: Pipeline, request: GenerateRequest) -> list[GenerationEvent]:
    return [event async for event in pipeline.head.generate(request)]


def say(text: str, *tools: ToolDefinition, choice: ToolChoice | None = None) -> GenerateRequest:
    conversation = Conversation((Message("user", text),), tools, choice)
    return GenerateRequest(MODEL_ID, conversation=conversation, limits=Limits(max_tokens=160))


async def test_answers_side_by_side_have_the_form(pipeline: Pipeline) -> None:
    formed = replace(say("Describe a bicycle as JSON."), output_format=OutputFormat(json_schema=json.dumps(BICYCLE)))
    requests = [replace(formed, sampling=Sampling(0.9 if seed else 0, seed=seed)) for seed in range(3)]
    for events in await asyncio.gather(*(hear(pipeline, request) for request in requests)):
        text = "".join(event.text for event in events if isinstance(event, ChoiceDelta))
        jsonschema_rs.validator_for(BICYCLE).validate(json.loads(text))


async def test_required_call_names_the_city_that_was_asked_about(pipeline: Pipeline) -> None:
    required = ToolChoice(ToolChoiceMode.REQUIRED, is_single=True)
    events = await hear(pipeline, say("What is the weather in Lisbon?", WEATHER, choice=required))
    calls = [call for event in events if isinstance(event, ChoiceDelta) for call in event.tool_calls]
    assert [call.name for call in calls] == ["get_weather"]
    assert "Lisbon" in json.loads(calls[0].arguments_json)["city"]
    ends = [event.finish_reason for event in events if isinstance(event, ChoiceFinished)]
    assert ends == [FinishReason.TOOL_CALLS]


async def test_echoed_prompt_has_the_log_probabilities_of_plain_mlx_lm(pipeline: Pipeline) -> None:
    text = "The capital of France is Paris, and the capital of Italy is Rome. " * 4
    request = GenerateRequest(MODEL_ID, text=text, echo=True, logprobs=True, limits=Limits(max_tokens=1))
    events = await hear(pipeline, request)
    echoed = next(event for event in events if isinstance(event, PromptEchoed))
    assert echoed.text == text

    def compute() -> list[float]:
        model, _ = load_model(demo_folder())
        tokens = [one.token_id for one in echoed.logprobs]
        logprobs = [log_softmax(row) for row in np.array(model(mx.array([tokens]))[0].astype(mx.float32))]
        return [0.0, *(float(logprobs[at][token]) for at, token in enumerate(tokens[1:]))]

    expected = await pipeline.compute.run(compute)
    assert [one.logprob for one in echoed.logprobs] == pytest.approx(expected, abs=0.02)
