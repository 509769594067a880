"""A real gateway in front of a scripted head: three roles answer one request side by side."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from paceline_services.domain.generation import GenerateRequest, GenerationEvent
from paceline_services.errors import InternalError
from support.head import ScriptedControlPlane, ScriptedHead, make_instance, run_gateway
from support.scripts_responses import say

MODELS = {"main": "large", "validator": "checker", "speculative": "small"}


async def answer_by_role(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    words = {"large": ("The ", "answer."), "checker": ("yes",), "small": ("A ", "draft.")}[request.model_id]
    if request.conversation and request.conversation.messages[-1].content == f"break {request.model_id}":
        raise InternalError("broken")
    async for event in say(*words)(request):
        yield event


@dataclass(frozen=True, slots=True)
class Cluster:
    head: ScriptedHead
    http: httpx.AsyncClient

    async def ask(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/trifurcate", json={"models": MODELS, "prompt": "Hi"} | fields)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    head, control_plane = ScriptedHead(answer_by_role), ScriptedControlPlane()
    async with head.serve(), control_plane.serve():
        await control_plane.show(*(make_instance(f"{name}-1", head.address, model=name) for name in MODELS.values()))
        async with (
            run_gateway(control_plane.address, tmp_path) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
        ):
            yield Cluster(head, http)


async def test_three_roles_answer_and_are_in_balance(cluster: Cluster) -> None:
    body = (await cluster.ask(max_tokens=100, seed=7)).json()
    assert (body["validated"], body["response"], body["speculative"]) == (True, "The answer.", "A draft.")
    assert body["balance"] == 0 and body["object"] == "trifurcation"
    assert {name: (role["sign"], role["status"]) for name, role in body["roles"].items()} == {
        "validator": (-1, "completed"),
        "main": (0, "completed"),
        "speculative": (1, "completed"),
    }
    asked = {request.model_id: request for request in cluster.head.requests}
    validator = asked["checker"]  # type: ignore[index]
    assert validator.output_format is not None and validator.output_format.regex == "(yes|no)"
    assert [request.limits.max_tokens for name, request in sorted(asked.items())] == [8, 100, 64]

    faulty = (await cluster.ask(prompt="break small")).json()
    assert faulty["balance"] == -1 and faulty["speculative"] is None and faulty["response"] == "The answer."
    assert faulty["roles"]["speculative"]["error"] == {"status": 500, "message": "broken"}


async def test_stream_shows_the_draft_before_the_answer(cluster: Cluster) -> None:
    text = (await cluster.ask(stream=True)).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    kinds = [event["type"].removeprefix("trifurcate.") for event in events]
    assert [kind for kind in kinds if kind != "validator.completed"] == [
        "created",
        "speculative.delta",
        "speculative.delta",
        "speculative.completed",
        "main.delta",
        "main.delta",
        "main.completed",
        "completed",
    ]
    assert kinds.count("validator.completed") == 1
    assert events[-1]["trifurcation"]["balance"] == 0


async def test_bad_bodies_and_a_request_that_nobody_can_answer_are_errors(cluster: Cluster) -> None:
    for fields in ({"model": "large"}, {"prompt": None}, {"messages": []}, {"temperature": 3}, {"modles": {}}):
        answer = await cluster.ask(**fields)
        assert answer.status_code == 400, answer.text
    answer = await cluster.http.post("/v1/trifurcate", json={"model": "nobody", "prompt": "Hi"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


async def test_client_that_leaves_ends_all_roles(cluster: Cluster) -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()
    begun = asyncio.Event()

    async def never(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        async for event in say("a")(request):
            yield event
            if len(cluster.head.requests) == len(MODELS):
                begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.put_nowait(request.model_id)

    cluster.head.answer = never
    asking = asyncio.create_task(cluster.ask())
    await asyncio.wait_for(begun.wait(), 10)
    asking.cancel()
    async with asyncio.timeout(10):
        assert {await ended.get() for _ in MODELS} == set(MODELS.values())
