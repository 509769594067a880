"""A real gateway between OpenAI's own client and a scripted head: what the Responses API promises."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic import BaseModel

from paceline_services.domain.generation import FinishReason, ToolChoice, ToolChoiceMode
from paceline_services.errors import ContextLengthError
from support.head import (
    MODEL,
    NUM_PROMPT_TOKENS,
    Answer,
    GatewayProcess,
    ScriptedControlPlane,
    ScriptedHead,
    make_instance,
    run_gateway,
)
from support.scripts_responses import CALL_ID, break_after, call_then_tell, say, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}


@dataclass(frozen=True, slots=True)
class Cluster:
    head: ScriptedHead
    control_plane: ScriptedControlPlane
    gateway: GatewayProcess
    http: httpx.AsyncClient
    client: AsyncOpenAI

    def speak(self, answer: Answer) -> None:
        self.head.answer = answer

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Role and text of the messages that the head was sent last."""
        conversation = self.head.requests[-1].conversation
        assert conversation is not None
        return [(message.role, message.content) for message in conversation.messages]


def make_client(gateway: GatewayProcess, key: str = "one") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=30)


@asynccontextmanager
async def run_cluster(home: Path, **settings: str) -> AsyncIterator[Cluster]:
    head, control_plane = ScriptedHead(say("Hel", "lo")), ScriptedControlPlane()
    async with head.serve(), control_plane.serve():
        await control_plane.show(make_instance("demo-1", head.address))
        async with (
            run_gateway(control_plane.address, home, settings) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
            make_client(gateway) as client,
        ):
            yield Cluster(head, control_plane, gateway, http, client)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One gateway for the tests that leave it as it was: a process takes its time to start."""
    async with run_cluster(tmp_path_factory.mktemp("shared")) as running:
        yield running


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    shared.head.answer = say("Hel", "lo")
    shared.head.requests.clear()
    shared.head.asked.clear()
    shared.head.cancelled.clear()
    return shared


async def test_whole_response_has_openai_shape(cluster: Cluster) -> None:
    response = await cluster.client.responses.create(
        model=MODEL, input="Hi", instructions="Be brief.", metadata={"topic": "riding"}, temperature=0.5, top_p=0.9
    )
    assert response.id.startswith("resp_") and response.object == "response" and response.status == "completed"
    assert response.output_text == "Hello"
    (message,) = response.output
    assert message.type == "message" and message.id.startswith("msg_") and message.status == "completed"
    assert (response.instructions, response.metadata, response.temperature, response.top_p) == (
        "Be brief.",
        {"topic": "riding"},
        0.5,
        0.9,
    )
    assert (response.tool_choice, response.tools, response.parallel_tool_calls) == ("auto", [], True)
    assert response.error is None and response.incomplete_details is None
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (NUM_PROMPT_TOKENS, 2)
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert cluster.messages == [("system", "Be brief."), ("user", "Hi")]


async def test_stream_has_openai_events_in_openai_order(cluster: Cluster) -> None:
    cluster.speak(say("Hel", "lo", thoughts=["Well", "..."], calls=[("get_weather", {"city": "Turin"})]))
    stream = await cluster.client.responses.create(model=MODEL, input="Hi", tools=[WEATHER], stream=True)
    events = [event async for event in stream]
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.completed"
    reasoning, message, call = last.response.output
    assert reasoning.type == "reasoning" and reasoning.content and reasoning.content[0].text == "Well..."
    assert message.type == "message" and last.response.output_text == "Hello"
    assert call.type == "function_call" and call.call_id == CALL_ID[:-1] + "0"
    assert call.arguments == '{"city": "Turin"}'
    assert last.response.usage is not None and last.response.usage.output_tokens_details.reasoning_tokens == 2


async def test_stream_and_whole_response_are_equal(cluster: Cluster) -> None:
    cluster.speak(say("Hel", "lo", thoughts=["Well"]))
    body = {"model": MODEL, "input": "Hi", "store": False}
    headers = {"Idempotency-Key": "same"}
    whole = (await cluster.http.post("/v1/responses", json=body, headers=headers)).json()
    stream = await cluster.client.responses.create(**body, stream=True, extra_headers=headers)
    events = [event async for event in stream]
    assert events[-1].type == "response.completed"
    streamed = events[-1].response.to_dict()
    for one in (whole, streamed):
        for name in ("created_at", "completed_at"):
            del one[name]
    assert streamed == whole


async def test_stream_helper_accumulates_the_response(cluster: Cluster) -> None:
    cluster.speak(say("Hel", "lo", thoughts=["Well"], calls=[("get_weather", {"city": "Turin"})]))
    async with cluster.client.responses.stream(model=MODEL, input="Hi", tools=[WEATHER]) as stream:
        texts = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        response = await stream.get_final_response()
    assert texts == ["Hel", "Hello"] and response.output_text == "Hello"
    call = response.output[-1]
    assert call.type == "function_call" and call.parsed_arguments == {"city": "Turin"}


async def test_thinking_is_a_summary_where_one_is_asked_for(cluster: Cluster) -> None:
    cluster.speak(say("Hello", thoughts=["Well", "..."]))
    stream = await cluster.client.responses.create(
        model=MODEL, input="Hi", reasoning={"effort": "high", "summary": "auto"}, stream=True
    )
    events = [event async for event in stream]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[2:9] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    reasoning = events[-1].response.output[0]  # type: ignore[union-attr]
    assert reasoning.type == "reasoning" and reasoning.summary[0].text == "Well..." and reasoning.content is None
    wanted = cluster.head.requests[-1].reasoning
    assert wanted is not None and (wanted.is_enabled, wanted.effort) == (True, "high")


async def test_parse_returns_the_model(cluster: Cluster) -> None:
    class Ride(BaseModel):
        km: int
        town: str

    cluster.speak(say('{"km": 3,', ' "town": "Ivrea"}'))
    response = await cluster.client.responses.parse(model=MODEL, input="Hi", text_format=Ride)
    assert response.output_parsed == Ride(km=3, town="Ivrea")
    wanted = cluster.head.requests[-1].output_format
    assert wanted is not None and wanted.json_schema is not None and '"town"' in wanted.json_schema
    assert response.text is not None and response.text.format is not None
    assert response.text.format.type == "json_schema"


async def test_tools_go_round(cluster: Cluster) -> None:
    cluster.speak(call_then_tell("get_weather", {"city": "Turin"}, "It rains."))
    inputs: list[Any] = [{"role": "user", "content": "How is the weather in Turin?"}]
    first = await cluster.client.responses.create(model=MODEL, input=inputs, tools=[WEATHER], store=False)
    (call,) = first.output
    assert call.type == "function_call"
    inputs += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    second = await cluster.client.responses.create(model=MODEL, input=inputs, tools=[WEATHER], store=False)
    assert second.output_text == "It rains."
    conversation = cluster.head.requests[-1].conversation
    assert conversation is not None
    asked, called, told = conversation.messages
    assert (asked.role, called.role, told.role) == ("user", "assistant", "tool")
    assert called.tool_calls[0].arguments_json == '{"city": "Turin"}'
    assert (told.content, told.name, told.tool_call_id) == ("rain", "get_weather", call.call_id)
    (tool,) = conversation.tools
    assert tool.name == "get_weather" and tool.is_strict


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", ToolChoice(ToolChoiceMode.NONE)),
        ("required", ToolChoice(ToolChoiceMode.REQUIRED)),
        ({"type": "function", "name": "get_weather"}, ToolChoice(ToolChoiceMode.REQUIRED, "get_weather")),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]},
            None,
        ),
    ],
)
async def test_choice_of_tools_reaches_the_head(cluster: Cluster, choice: Any, expected: ToolChoice | None) -> None:
    response = await cluster.client.responses.create(model=MODEL, input="Hi", tools=[WEATHER], tool_choice=choice)
    conversation = cluster.head.requests[-1].conversation
    assert conversation is not None and conversation.tool_choice == expected
    shown = response.tool_choice if isinstance(response.tool_choice, str) else response.tool_choice.to_dict()
    assert shown == choice


async def test_cut_answer_is_incomplete(cluster: Cluster) -> None:
    cluster.speak(say("Hel", finish=FinishReason.LENGTH))
    stream = await cluster.client.responses.create(model=MODEL, input="Hi", max_output_tokens=16, stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.incomplete" and last.response.status == "incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert cluster.head.requests[-1].limits.max_tokens == 16


async def test_log_probabilities_come_with_the_text(cluster: Cluster) -> None:
    cluster.speak(say("Hel", "lo", thoughts=["Well"]))
    response = await cluster.client.responses.create(
        model=MODEL, input="Hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    message = response.output[-1]
    assert message.type == "message" and message.content[0].type == "output_text"
    logprobs = message.content[0].logprobs
    assert logprobs is not None and [one.token for one in logprobs] == ["Hel", "lo"]
    assert [one.token for one in logprobs[0].top_logprobs] == ["Hel", "other-1"]


async def test_conversation_goes_on_from_a_stored_response(cluster: Cluster) -> None:
    cluster.speak(say("I am Ada."))
    first = await cluster.client.responses.create(model=MODEL, input="Who are you?", instructions="Be Ada.")
    second = await cluster.client.responses.create(model=MODEL, input="And I?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert cluster.messages == [("user", "Who are you?"), ("assistant", "I am Ada."), ("user", "And I?")]
    items = [item async for item in cluster.client.responses.input_items.list(second.id, limit=2, order="asc")]
    assert [item.role for item in items] == ["user", "assistant", "user"]  # type: ignore[union-attr]
    await cluster.client.responses.delete(first.id)
    await cluster.client.responses.create(model=MODEL, input="Still?", previous_response_id=second.id)
    assert len(cluster.messages) == 5


async def test_stored_response_is_as_it_was_given(cluster: Cluster) -> None:
    given = await cluster.client.responses.create(model=MODEL, input="Hi", metadata={"a": "b"})
    assert (await cluster.client.responses.retrieve(given.id)).to_dict() == given.to_dict()


async def test_items_can_be_referred_to(cluster: Cluster) -> None:
    first = await cluster.client.responses.create(model=MODEL, input="Hi")
    item = first.output[0]
    inputs: list[Any] = [{"type": "item_reference", "id": item.id}, {"role": "user", "content": "More"}]
    await cluster.client.responses.create(model=MODEL, input=inputs)
    assert cluster.messages == [("assistant", "Hello"), ("user", "More")]
    inputs[0]["id"] = "msg_unknown"
    with pytest.raises(openai.NotFoundError, match="store false"):
        await cluster.client.responses.create(model=MODEL, input=inputs)


async def test_responses_belong_to_their_client(cluster: Cluster) -> None:
    given = await cluster.client.responses.create(model=MODEL, input="Hi")
    async with make_client(cluster.gateway, "another") as other:
        for ask in (other.responses.retrieve, other.responses.delete, other.responses.cancel):
            with pytest.raises(openai.NotFoundError, match="another API key"):
                await ask(given.id)
        with pytest.raises(openai.NotFoundError):
            await other.responses.input_items.list(given.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await other.responses.create(model=MODEL, input="Hi", previous_response_id=given.id)
    assert caught.value.code == "previous_response_not_found"
    assert (await cluster.client.responses.retrieve(given.id)).id == given.id


async def test_deleted_and_unstored_responses_are_not_found(cluster: Cluster) -> None:
    kept = await cluster.client.responses.create(model=MODEL, input="Hi")
    await cluster.client.responses.delete(kept.id)
    unkept = await cluster.client.responses.create(model=MODEL, input="Hi", store=False)
    for name in (kept.id, unkept.id, "resp_unknown"):
        with pytest.raises(openai.NotFoundError, match="on another gateway"):
            await cluster.client.responses.retrieve(name)


async def test_stored_responses_survive_the_gateway(tmp_path: Path) -> None:
    async with run_cluster(tmp_path) as cluster:
        given = await cluster.client.responses.create(model=MODEL, input="Hi")
    async with run_cluster(tmp_path) as cluster:
        assert (await cluster.client.responses.retrieve(given.id)).output_text == "Hello"


async def test_same_idempotency_key_gives_the_same_response(cluster: Cluster) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await cluster.client.responses.create(model=MODEL, input="Hi", extra_headers=headers)
    again = await cluster.client.responses.create(model=MODEL, input="Hi", extra_headers=headers)
    assert again.to_dict() == first.to_dict() and len(cluster.head.requests) == 1
    other = await cluster.client.responses.create(model=MODEL, input="Ho", extra_headers=headers)
    assert other.id != first.id


async def wait_until_over(client: AsyncOpenAI, response_id: str) -> Any:
    async with asyncio.timeout(20):
        while True:
            response = await client.responses.retrieve(response_id)
            if response.status not in {"queued", "in_progress"}:
                return response
            await asyncio.sleep(0.02)


async def test_background_response_is_polled(cluster: Cluster) -> None:
    go_on = asyncio.Event()
    cluster.speak(wait_for(go_on, "Hel", "lo"))
    begun = await cluster.client.responses.create(model=MODEL, input="Hi", background=True)
    assert begun.status == "queued" and begun.background
    await asyncio.wait_for(cluster.head.asked.wait(), 10)
    assert (await cluster.client.responses.retrieve(begun.id)).status in {"queued", "in_progress"}
    with pytest.raises(openai.BadRequestError, match="still"):
        await cluster.client.responses.create(model=MODEL, input="Hi", previous_response_id=begun.id)
    go_on.set()
    over = await wait_until_over(cluster.client, begun.id)
    assert over.status == "completed" and over.output_text == "Hello"


async def test_background_response_is_cancelled(cluster: Cluster) -> None:
    cluster.speak(wait_for(asyncio.Event(), "never"))
    begun = await cluster.client.responses.create(model=MODEL, input="Hi", background=True)
    await asyncio.wait_for(cluster.head.asked.wait(), 10)
    assert (await cluster.client.responses.cancel(begun.id)).status == "cancelled"
    await asyncio.wait_for(cluster.head.cancelled.wait(), 10)
    assert (await cluster.client.responses.retrieve(begun.id)).status == "cancelled"
    assert (await cluster.client.responses.cancel(begun.id)).status == "cancelled"


async def test_background_response_is_made_once_for_an_idempotency_key(cluster: Cluster) -> None:
    go_on = asyncio.Event()
    cluster.speak(wait_for(go_on, "Hello"))
    create = cluster.client.responses.create
    headers = {"Idempotency-Key": "background"}
    asked = [create(model=MODEL, input="Hi", background=True, extra_headers=headers) for _ in range(3)]
    names = {begun.id for begun in await asyncio.gather(*asked)}
    go_on.set()
    (name,) = names
    assert (await wait_until_over(cluster.client, name)).output_text == "Hello"


async def test_only_background_responses_can_be_cancelled(cluster: Cluster) -> None:
    given = await cluster.client.responses.create(model=MODEL, input="Hi")
    with pytest.raises(openai.BadRequestError, match="background"):
        await cluster.client.responses.cancel(given.id)


async def test_background_response_of_a_dead_gateway_has_failed(tmp_path: Path) -> None:
    async with run_cluster(tmp_path) as cluster:
        cluster.speak(wait_for(asyncio.Event(), "never"))
        begun = await cluster.client.responses.create(model=MODEL, input="Hi", background=True)
    async with run_cluster(tmp_path) as cluster:
        over = await cluster.client.responses.retrieve(begun.id)
    assert over.status == "failed" and over.error is not None and "gateway ended" in over.error.message


async def test_background_response_that_breaks_has_failed(cluster: Cluster) -> None:
    cluster.speak(break_after("Hel"))
    begun = await cluster.client.responses.create(model=MODEL, input="Hi", background=True)
    over = await wait_until_over(cluster.client, begun.id)
    assert over.status == "failed" and over.error.code == "server_error" and "defect" in over.error.message


async def test_stopping_gateway_writes_down_what_it_gave_up(tmp_path: Path) -> None:
    async with run_cluster(tmp_path, DRAIN_TIMEOUT_S="0.2") as cluster:
        cluster.speak(wait_for(asyncio.Event(), "never"))
        begun = await cluster.client.responses.create(model=MODEL, input="Hi", background=True)
        await asyncio.wait_for(cluster.head.asked.wait(), 10)
        cluster.gateway.process.terminate()
        assert await asyncio.wait_for(cluster.gateway.process.wait(), 20) == 0
    async with run_cluster(tmp_path) as cluster:
        over = await cluster.client.responses.retrieve(begun.id)
    assert over.status == "failed" and over.error is not None and "stopping" in over.error.message


async def test_stream_that_breaks_ends_with_failed(cluster: Cluster) -> None:
    cluster.speak(break_after("Hel"))
    stream = await cluster.client.responses.create(model=MODEL, input="Hi", stream=True)
    events = [event async for event in stream]
    last = events[-1]
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error is not None and last.response.error.code == "server_error"
    assert (await cluster.client.responses.retrieve(last.response.id)).status == "failed"


async def test_error_before_the_answer_is_a_status(cluster: Cluster) -> None:
    async def refuse(request: Any) -> AsyncIterator[Any]:
        raise ContextLengthError("too long")
        yield

    cluster.speak(refuse)
    for is_stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await cluster.client.responses.create(model=MODEL, input="Hi", stream=is_stream)
        assert caught.value.code == "context_length_exceeded"


async def test_client_that_leaves_cancels_its_response(cluster: Cluster) -> None:
    cluster.speak(wait_for(asyncio.Event(), "never"))
    asking = asyncio.create_task(cluster.client.responses.create(model=MODEL, input="Hi"))
    await asyncio.wait_for(cluster.head.asked.wait(), 10)
    asking.cancel()
    await asyncio.wait_for(cluster.head.cancelled.wait(), 10)


async def test_tokens_of_a_prompt_are_counted(cluster: Cluster) -> None:
    counted = await cluster.client.responses.input_tokens.count(model=MODEL, input="Hi", tools=[WEATHER])
    assert counted.input_tokens == NUM_PROMPT_TOKENS and counted.object == "response.input_tokens"


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"input": [{"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].type",
    ),
    ({"input": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}]}, "input[0].type"),
    ({"input": [{"type": "function_call_output", "call_id": "call_1", "output": "x"}]}, "input"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}, "input"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    (
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}]},
        "input[0].encrypted_content",
    ),
    ({"input": []}, "input"),
    ({"input": None}, "input"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "has space", "parameters": {}}]}, "tools[0].name"),
    ({"tool_choice": "required"}, "tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"truncation": "auto"}, "truncation"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"background": True, "store": False}, "background"),
    ({"background": True, "stream": True}, "stream"),
    ({"include": ["everything"]}, "include[0]"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 10**30}, "max_output_tokens"),
    ({"tools": [WEATHER | {"parameters": {"default": 10**30}}]}, "tools"),
    ({"tools": [WEATHER | {"parameters": 5}]}, "tools[0].parameters"),
    ({"input": [{"role": "user", "content": None}]}, "input[0].content"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"model": "no spaces here"}, "model"),
]


async def test_what_cannot_be_done_is_refused_by_name(cluster: Cluster) -> None:
    for fields, param in REFUSED:
        answer = await cluster.http.post("/v1/responses", json={"model": MODEL, "input": "Hi"} | fields)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    assert not cluster.head.requests


async def test_unknown_model_is_not_found(cluster: Cluster) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await cluster.client.responses.create(model="nobody", input="Hi")
    assert caught.value.code == "model_not_found"


async def test_streaming_a_stored_response_is_refused(cluster: Cluster) -> None:
    given = await cluster.client.responses.create(model=MODEL, input="Hi")
    with pytest.raises(openai.BadRequestError, match="not streamed"):
        await cluster.client.responses.retrieve(given.id, stream=True)


async def test_gateway_without_a_store_says_so(tmp_path: Path) -> None:
    async with run_cluster(tmp_path, STORED_RESPONSES_MAX_BYTES="0") as cluster:
        answer = (await cluster.http.post("/v1/responses", json={"model": MODEL, "input": "Hi"})).json()
        assert answer["store"] is False and answer["status"] == "completed"
        with pytest.raises(openai.NotFoundError):
            await cluster.client.responses.retrieve(answer["id"])
        with pytest.raises(openai.InternalServerError, match="no responses are stored"):
            await cluster.client.responses.create(model=MODEL, input="Hi", background=True)
        assert not (tmp_path / "responses").exists()


async def test_unusable_store_costs_the_store_not_the_answer(tmp_path: Path) -> None:
    (tmp_path / "responses").write_text("not a folder")
    async with run_cluster(tmp_path) as cluster:
        answer = (await cluster.http.post("/v1/responses", json={"model": MODEL, "input": "Hi"})).json()
    assert answer["store"] is False and answer["status"] == "completed"
