"""A real gateway process before several instances of one model: which of them answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from paceline_api_gateway.routing.choice import AFFINITY_SLACK
from paceline_services.domain.generation import GenerateRequest, GenerationEvent, GenerationStarted
from paceline_services.errors import UnavailableError
from support.head import (
    MODEL,
    ScriptedControlPlane,
    ScriptedHead,
    make_instance,
    run_gateway,
    say_words,
    with_load,
)

PATH = "/v1/chat/completions"


@pytest.fixture
async def heads() -> AsyncIterator[list[ScriptedHead]]:
    async with ScriptedHead().serve() as one, ScriptedHead().serve() as two:
        yield [one, two]


@pytest.fixture
async def control_plane() -> AsyncIterator[ScriptedControlPlane]:
    async with ScriptedControlPlane().serve() as serving:
        yield serving


@asynccontextmanager
async def serve(home: Path, control_plane: ScriptedControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        run_gateway(control_plane.address, home) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
    ):
        yield http


async def show(control_plane: ScriptedControlPlane, heads: list[ScriptedHead], epoch: int = 1) -> None:
    await control_plane.show(
        *(make_instance(f"demo-{n}", head.address, epoch=epoch) for n, head in enumerate(heads, 1))
    )


async def ask(http: httpx.AsyncClient, *contents: str) -> None:
    """The conversation's next turn; users and assistants speak in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    body: dict[str, Any] = {"model": MODEL, "messages": messages}
    assert (await http.post(PATH, json=body)).status_code == 200


def count_requests(heads: list[ScriptedHead]) -> list[int]:
    return [len(head.requests) for head in heads]


async def hold_then_answer(released: asyncio.Event, request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    async for event in say_words(request):
        yield event
        if isinstance(event, GenerationStarted):
            await released.wait()


async def test_distinct_conversations_are_shared_and_each_stays_where_it_began(
    control_plane: ScriptedControlPlane, heads: list[ScriptedHead], tmp_path: Path
) -> None:
    await show(control_plane, heads)
    async with serve(tmp_path, control_plane) as http:
        for number in range(4):
            await ask(http, f"question {number}")
        assert count_requests(heads) == [2, 2]
        for number in (0, 2, 1, 3, 3, 0):
            await ask(http, f"question {number}", "Hello world", "and then?")
        metrics = (await http.get("/metrics")).text
    for head in heads:
        first = [request for request in head.requests if len(request.conversation.messages) == 1]  # type: ignore[union-attr]
        begun = {request.conversation.messages[0] for request in first}  # type: ignore[union-attr]
        assert {request.conversation.messages[0] for request in head.requests} == begun  # type: ignore[union-attr]
    assert 'paceline_api_gateway_affinity_total{outcome="miss"} 4.0' in metrics
    assert 'paceline_api_gateway_affinity_total{outcome="hit"} 6.0' in metrics


async def test_busy_instance_keeps_its_prompts_up_to_a_slack(
    control_plane: ScriptedControlPlane, heads: list[ScriptedHead], tmp_path: Path
) -> None:
    await show(control_plane, heads)
    async with serve(tmp_path, control_plane) as http:
        await ask(http, "shared")
        (busy,), (idle,) = ([one for one in heads if one.requests], [one for one in heads if not one.requests])
        released = asyncio.Event()
        busy.answer = lambda request: hold_then_answer(released, request)
        async with asyncio.TaskGroup() as group:
            for number in range(AFFINITY_SLACK + 2):
                group.create_task(ask(http, "shared", "", str(number)))
            await asyncio.wait_for(idle.asked.wait(), 10)  # the one beyond the slack
            released.set()
        metrics = (await http.get("/metrics")).text
    assert len(busy.requests) == 1 + AFFINITY_SLACK + 1 and len(idle.requests) == 1
    assert 'paceline_api_gateway_affinity_total{outcome="overloaded"} 1.0' in metrics


async def test_what_heads_report_of_others_requests_counts(
    control_plane: ScriptedControlPlane, heads: list[ScriptedHead], tmp_path: Path
) -> None:
    first, second = (make_instance(f"demo-{n}", head.address) for n, head in enumerate(heads, 1))
    await control_plane.show(with_load(first, 6, 3), with_load(second, 1))
    async with serve(tmp_path, control_plane) as http:
        for number in range(3):
            await ask(http, f"question {number}")
        assert count_requests(heads) == [0, 3]
        await control_plane.show(with_load(first, 0, num_steps=2), with_load(second, 9, num_steps=2))
        async with asyncio.timeout(10):
            while not heads[0].requests:  # until the gateway has heard of the change
                await ask(http, f"question {len(heads[1].requests)}")


async def test_next_epoch_is_not_taken_to_know_the_prompts_of_the_last(
    control_plane: ScriptedControlPlane, heads: list[ScriptedHead], tmp_path: Path
) -> None:
    await show(control_plane, heads)
    async with serve(tmp_path, control_plane) as http:
        await ask(http, "shared")
        (known,) = [head for head in heads if head.requests]
        await show(control_plane, heads, epoch=2)
        async with asyncio.timeout(10):
            while all(head is known or not head.requests for head in heads):
                await ask(http, "shared")


async def test_failed_head_is_last_even_where_the_prompt_is_known(
    control_plane: ScriptedControlPlane, heads: list[ScriptedHead], tmp_path: Path
) -> None:
    async def break_at_once(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        raise UnavailableError("a part of the instance was lost", reason="INSTANCE_BROKEN")
        yield GenerationStarted(request.request_id, 1, 0)

    await show(control_plane, heads)
    async with serve(tmp_path, control_plane) as http:
        await ask(http, "shared")
        (known,) = [head for head in heads if head.requests]
        known.answer = break_at_once
        await ask(http, "shared")
    assert count_requests([known]) == [2] and sum(count_requests(heads)) == 3
