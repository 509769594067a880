"""Claude's official client with the demo model on a real cluster of two workers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from anthropic.types import Message
from pydantic import BaseModel

from support.asking import MODEL_ID
from support.cluster import Cluster
from support.demo import demo_gguf

pytestmark = pytest.mark.timeout(900)

QUESTION: Any = {
    "model": MODEL_ID,
    "extra_body": {"temperature": 0},  # which newer versions of the client have no word for
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anthropic]:
    home: Path = tmp_path_factory.mktemp("claude")
    with (
        Cluster(home, workers=2, model=str(demo_gguf()), model_id=MODEL_ID) as cluster,
        Anthropic(base_url=cluster.url, api_key="none", max_retries=0, timeout=300) as client,
    ):
        yield client


def read_text(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_answer_is_the_same_whole_and_streamed(client: Anthropic) -> None:
    whole = client.messages.create(**QUESTION, max_tokens=16)
    with client.messages.stream(**QUESTION, max_tokens=16) as stream:
        streamed = "".join(stream.text_stream)
    assert "Paris" in read_text(whole) and streamed == read_text(whole)


def test_counted_tokens_are_those_of_the_prompt(client: Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL_ID, messages=QUESTION["messages"], system="Be brief")
    usage = client.messages.create(**QUESTION, system="Be brief", max_tokens=1).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_answers_end_at_max_tokens_and_stop_sequences(client: Anthropic) -> None:
    assert client.messages.create(**QUESTION, max_tokens=2).stop_reason == "max_tokens"
    stopped = client.messages.create(**QUESTION, max_tokens=16, stop_sequences=["Paris"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    assert "Paris" not in read_text(stopped)


def test_prefilled_answer_goes_on_with_its_text(client: Anthropic) -> None:
    turns = [*QUESTION["messages"], {"role": "assistant", "content": "The capital of France is"}]
    answer = client.messages.create(**QUESTION | {"messages": turns}, max_tokens=4)
    assert "Paris" in read_text(answer)


def test_forced_tool_is_called_with_arguments_that_its_schema_accepts(client: Anthropic) -> None:
    answer = client.messages.create(**QUESTION, tools=[WEATHER], tool_choice={"type": "any"}, max_tokens=200)
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use" and calls
    assert all(call.name == "get_weather" and isinstance(call.input["city"], str) for call in calls)


def test_answer_has_the_form_of_its_schema(client: Anthropic) -> None:
    class Capital(BaseModel):
        city: str
        is_capital: bool

    parsed = client.messages.parse(**QUESTION, max_tokens=200, output_format=Capital)
    assert isinstance(parsed.parsed_output, Capital)
