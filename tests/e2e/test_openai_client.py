"""OpenAI's client against a whole cluster with the demo model: what it is promised holds with a real head too."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from support.asking import MODEL_ID
from support.cluster import Cluster
from support.demo import demo_gguf

pytestmark = pytest.mark.timeout(600)

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name three colours."}]
GREEDY: dict[str, Any] = {"model": MODEL_ID, "temperature": 0, "max_tokens": 24}


class GetWeather(BaseModel):
    """How warm it is in a city."""

    city: str


class Place(BaseModel):
    city: str
    is_capital: bool


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("openai"), workers=2, model=str(demo_gguf()), model_id=MODEL_ID) as started:
        yield started


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{cluster.url}/v1", api_key="none", timeout=300, max_retries=0) as made:
        yield made


def test_stream_and_whole_answer_are_the_same(client: OpenAI) -> None:
    whole = client.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=2, **GREEDY)
    assert whole.choices[0].logprobs is not None and whole.choices[0].logprobs.content is not None and whole.usage
    options: Any = GREEDY | {"logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(messages=HELLO, stream=True, **options))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(one.delta.content or "" for one in choices) == whole.choices[0].message.content != ""
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    told = [logprob for one in choices if one.logprobs for logprob in one.logprobs.content or ()]
    assert [one.token for one in told] == [one.token for one in whole.choices[0].logprobs.content]
    assert len(told) == whole.usage.completion_tokens
    assert all(one.token == one.top_logprobs[0].token for one in told)


def test_prompts_side_by_side_are_answered_as_alone(client: OpenAI) -> None:
    prompts = ["Once upon a time", "The capital of France is", "One, two, three,"]
    alone = [client.completions.create(prompt=one, **GREEDY).choices[0].text for one in prompts]
    together = client.completions.create(prompt=prompts, **GREEDY)
    assert [one.text for one in together.choices] == alone
    assert together.usage is not None and together.usage.completion_tokens <= 3 * 24


def test_stop_text_and_limit_end_an_answer(client: OpenAI) -> None:
    text = client.completions.create(prompt="One, two, three,", **GREEDY).choices[0].text
    stop = text[4:6]
    stopped = client.completions.create(prompt="One, two, three,", stop=stop, **GREEDY).choices[0]
    assert stopped.text == text[: text.index(stop)] and stopped.finish_reason == "stop"
    limited = client.completions.create(prompt="One, two, three,", **GREEDY | {"max_tokens": 3})
    assert limited.choices[0].finish_reason == "length"
    assert limited.usage is not None and limited.usage.completion_tokens == 3


def test_what_cannot_be_is_the_clients_own_exception(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(messages=HELLO, model="nope")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt="word " * 9000, **GREEDY)
    assert caught.value.code == "context_length_exceeded"


def test_echoed_prompt_has_its_log_probabilities(client: OpenAI) -> None:
    answer = client.completions.create(
        prompt="The capital of France is", echo=True, logprobs=1, **GREEDY | {"max_tokens": 0}
    )
    (choice,) = answer.choices
    assert choice.text == "The capital of France is" and choice.logprobs is not None
    logprobs = choice.logprobs.token_logprobs
    assert logprobs is not None and logprobs[0] is None and all(one <= 0 for one in logprobs[1:])
    assert choice.logprobs.tokens is not None and "".join(choice.logprobs.tokens) == choice.text
    assert answer.usage is not None and answer.usage.completion_tokens == 0


def test_answer_is_parsed_into_the_model_that_was_asked_for(client: OpenAI) -> None:
    options: Any = GREEDY | {"max_tokens": 64}
    answer = client.chat.completions.parse(messages=HELLO, response_format=Place, **options)
    assert isinstance(answer.choices[0].message.parsed, Place)
    with client.chat.completions.stream(messages=HELLO, response_format=Place, **options) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


def test_choice_and_json_mode_hold(client: OpenAI) -> None:
    choosing: Any = GREEDY | {"extra_body": {"guided_choice": ["red", "blue"]}}
    chosen = client.chat.completions.create(messages=HELLO, **choosing)
    assert chosen.choices[0].message.content in {"red", "blue"}
    options: Any = GREEDY | {"max_tokens": 200}
    any_object: Any = {"type": "json_object"}
    answer = client.chat.completions.create(messages=HELLO, response_format=any_object, **options)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_schema_that_nothing_matches_is_refused_by_name(client: OpenAI) -> None:
    schema: Any = {"type": "object", "properties": {"a": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            messages=HELLO,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            **GREEDY,
        )
    assert caught.value.param == "response_format"


def test_required_tool_is_called_and_its_answer_is_read(client: OpenAI) -> None:
    tools = [pydantic_function_tool(GetWeather)]
    options: Any = GREEDY | {"max_tokens": 64, "tools": tools}
    answer = client.chat.completions.parse(messages=HELLO, tool_choice="required", parallel_tool_calls=False, **options)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls is not None
    (called,) = choice.message.tool_calls
    assert isinstance(called.function.parsed_arguments, GetWeather)
    told: Any = [*HELLO, choice.message, {"role": "tool", "tool_call_id": called.id, "content": "4 degrees"}]
    again = client.chat.completions.create(messages=told, tool_choice="none", **options)
    assert again.choices[0].message.content and again.choices[0].message.tool_calls is None
    with client.chat.completions.stream(
        messages=HELLO, tool_choice="required", parallel_tool_calls=False, **options
    ) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed is not None
    assert streamed[0].function.arguments == called.function.arguments


def test_answer_goes_on_with_a_message(client: OpenAI) -> None:
    begun: Any = [*HELLO, {"role": "assistant", "content": "Red, green and"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    answer = client.chat.completions.create(messages=begun, extra_body=extra, **GREEDY)
    other = client.chat.completions.create(messages=begun, **GREEDY)
    assert answer.choices[0].message.content != other.choices[0].message.content
