"""OpenAI's client and the Responses API of a whole cluster with the demo model."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from pydantic import BaseModel

from support.asking import MODEL_ID
from support.cluster import Cluster
from support.demo import demo_gguf

pytestmark = pytest.mark.timeout(600)

QUESTION = "Name three colours."
GREEDY: dict[str, Any] = {"model": MODEL_ID, "temperature": 0, "max_output_tokens": 24}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}


class Place(BaseModel):
    city: str
    is_capital: bool


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    home = tmp_path_factory.mktemp("responses")
    with (
        Cluster(home, workers=1, model=str(demo_gguf()), model_id=MODEL_ID) as cluster,
        OpenAI(base_url=f"{cluster.url}/v1", api_key="none", timeout=300, max_retries=0) as made,
    ):
        yield made


def test_whole_streamed_and_background_responses_say_what_chat_says(client: OpenAI) -> None:
    chat = client.chat.completions.create(
        model=MODEL_ID, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24
    )
    expected = chat.choices[0].message.content
    assert expected
    whole = client.responses.create(input=QUESTION, **GREEDY)
    assert whole.output_text == expected
    with client.responses.stream(input=QUESTION, **GREEDY) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(texts) == expected
    job = client.responses.create(input=QUESTION, background=True, **GREEDY)
    deadline = time.monotonic() + 120
    while job.status in {"queued", "in_progress"} and time.monotonic() < deadline:
        job = client.responses.retrieve(job.id)
    assert job.output_text == expected
    assert whole.usage is not None and chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens


def test_tokens_are_counted_as_they_are_computed(client: OpenAI) -> None:
    answered = client.responses.create(input=QUESTION, tools=[WEATHER], **GREEDY)
    counted = client.responses.input_tokens.count(model=MODEL_ID, input=QUESTION, tools=[WEATHER])
    assert answered.usage is not None and counted.input_tokens == answered.usage.input_tokens


def test_conversation_goes_on_as_if_it_had_been_sent_whole(client: OpenAI) -> None:
    first = client.responses.create(input=QUESTION, **GREEDY)
    second = client.responses.create(input="Name one more.", previous_response_id=first.id, **GREEDY)
    turns: list[Any] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Name one more."},
    ]
    assert client.responses.create(input=turns, store=False, **GREEDY).output_text == second.output_text


def test_output_has_the_form_that_was_asked_for(client: OpenAI) -> None:
    parsed = client.responses.parse(
        model=MODEL_ID, input="Where is the Eiffel tower?", text_format=Place, temperature=0, max_output_tokens=200
    )
    assert isinstance(parsed.output_parsed, Place)


def test_required_tool_is_called_and_answered(client: OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": "How is the weather in Oslo?"}]
    first = client.responses.create(
        model=MODEL_ID,
        input=items,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_output_tokens=100,
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert call.name == "get_weather" and set(json.loads(call.arguments)) == {"city"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "4 degrees, rain"}
    second = client.responses.create(
        input=[output], previous_response_id=first.id, tools=[WEATHER], tool_choice="none", **GREEDY
    )
    assert second.output_text
