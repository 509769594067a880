"""A real gateway process when heads die, clients leave, clients send nonsense, and the gateway is told to stop."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    TokenLogprob,
)
from paceline_services.errors import UnavailableError
from support.agents import wait_until
from support.head import (
    MODEL,
    WORDS,
    GatewayProcess,
    ScriptedControlPlane,
    ScriptedHead,
    make_instance,
    run_gateway,
    say_words,
)
from support.tcp_proxy import tcp_proxy

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
TEXT = "".join(WORDS) + " 0"


@pytest.fixture
async def control_plane() -> AsyncIterator[ScriptedControlPlane]:
    async with ScriptedControlPlane().serve() as serving:
        yield serving


@pytest.fixture
async def head() -> AsyncIterator[ScriptedHead]:
    async with ScriptedHead().serve() as serving:
        yield serving


def make_client(gateway: GatewayProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url, timeout=30)


async def test_request_before_the_dead_head_is_noticed_is_answered_by_the_next_epoch(
    control_plane: ScriptedControlPlane, head: ScriptedHead, tmp_path: Path
) -> None:
    async with tcp_proxy("127.0.0.1", 1) as dead:
        dead.cut()
        await control_plane.show(make_instance("demo-1", f"127.0.0.1:{dead.port}"))
        async with run_gateway(control_plane.address, tmp_path) as gateway, make_client(gateway) as http:
            asking = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
            await wait_until(lambda: dead.num_connections > 0)
            await control_plane.show(make_instance("demo-1", head.address, epoch=2))
            answer = await asking
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize("stream", [False, True])
async def test_head_that_breaks_before_its_first_token_is_asked_again(
    control_plane: ScriptedControlPlane, head: ScriptedHead, tmp_path: Path, stream: bool
) -> None:
    async def break_at_once(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        raise UnavailableError("a part of the instance was lost", reason="INSTANCE_BROKEN")

    async with ScriptedHead(break_at_once).serve() as broken:
        await control_plane.show(make_instance("demo-1", broken.address))
        async with (
            run_gateway(control_plane.address, tmp_path) as gateway,
            make_client(gateway) as http,
            asyncio.TaskGroup() as group,
        ):
            answer = group.create_task(http.post("/v1/chat/completions", json=CHAT | {"stream": stream}))
            await asyncio.wait_for(broken.asked.wait(), 10)
            await control_plane.show(make_instance("demo-1", head.address, epoch=2))
    assert answer.result().status_code == 200
    assert '"error"' not in answer.result().text and len(head.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_before_the_first_token_cancels_the_generation(
    control_plane: ScriptedControlPlane, head: ScriptedHead, tmp_path: Path, stream: bool
) -> None:
    async def prefill_for_ever(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        await asyncio.Event().wait()
        yield GenerationStarted(request.request_id, 1, 0)

    head.answer = prefill_for_ever
    await control_plane.show(make_instance("demo-1", head.address))
    async with run_gateway(control_plane.address, tmp_path) as gateway:
        async with make_client(gateway) as http:
            asking = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT | {"stream": stream}))
            await asyncio.wait_for(head.asked.wait(), 10)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(head.cancelled.wait(), 5)


async def test_client_that_leaves_a_whole_answer_between_tokens_cancels_the_generation(
    control_plane: ScriptedControlPlane, head: ScriptedHead, tmp_path: Path
) -> None:
    spoken = asyncio.Event()

    async def pause(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0)
        spoken.set()
        await asyncio.Event().wait()

    head.answer = pause
    await control_plane.show(make_instance("demo-1", head.address))
    async with run_gateway(control_plane.address, tmp_path) as gateway:
        async with make_client(gateway) as http:
            asking = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
            await asyncio.wait_for(spoken.wait(), 10)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(head.cancelled.wait(), 5)


async def test_stream_of_a_head_that_left_the_cluster_is_not_cut(
    control_plane: ScriptedControlPlane, head: ScriptedHead, tmp_path: Path
) -> None:
    released = asyncio.Event()

    async def finish_when_released(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        if len(head.requests) > 1:
            async for event in say_words(request):
                yield event
            return
        yield GenerationStarted(request.request_id, 1, 0)
        await released.wait()
        yield ChoiceDelta(0, (1,), "whole", 0)
        yield ChoiceFinished(0, FinishReason.STOP, num_tokens=1)
        yield GenerationCompleted(1, 1)

    head.answer = finish_when_released
    await control_plane.show(make_instance("demo-1", head.address))
    async with (
        ScriptedHead().serve() as successor,
        run_gateway(control_plane.address, tmp_path) as gateway,
        make_client(gateway) as http,
        asyncio.TaskGroup() as group,
    ):
        slow = group.create_task(http.post("/v1/chat/completions", json=CHAT))
        await asyncio.wait_for(head.asked.wait(), 10)
        await control_plane.show(make_instance("demo-1", successor.address, epoch=2))
        async with asyncio.timeout(10):
            while not successor.requests:  # until the gateway has heard of the change
                assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        released.set()
    assert slow.result().status_code == 200, slow.result().text
    assert slow.result().json()["choices"][0]["message"]["content"] == "whole"


async def test_another_instance_is_asked_before_the_failed_one_again(
    control_plane: ScriptedControlPlane, head: ScriptedHead, tmp_path: Path
) -> None:
    async with ScriptedHead().serve() as dead:
        gone = dead.address
    await control_plane.show(make_instance("demo-1", gone), make_instance("demo-2", head.address))
    async with run_gateway(control_plane.address, tmp_path) as gateway, make_client(gateway) as http:
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_head_whose_port_another_server_has_taken_is_a_lost_one(
    control_plane: ScriptedControlPlane, head: ScriptedHead, tmp_path: Path
) -> None:
    await control_plane.show(make_instance("demo-1", control_plane.address), make_instance("demo-2", head.address))
    async with run_gateway(control_plane.address, tmp_path) as gateway, make_client(gateway) as http:
        for _ in range(2):
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_odd_fields_are_refused_by_name_or_taken_for_what_they_mean(
    control_plane: ScriptedControlPlane, head: ScriptedHead, tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, Any], int, str | None]] = [
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, 400, "tool_choice"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"logit_bias": {"-5": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"99999999999": 1}}, 400, "logit_bias"),
        ({"stop": [""]}, 400, "stop"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, 400, "messages[0].content[0].type"),
        ({"max_tokens": 10**12}, 200, None),
        ({"top_k": 10**12}, 200, None),
        ({"top_p": 0}, 200, None),
    ]
    await control_plane.show(make_instance("demo-1", head.address))
    async with run_gateway(control_plane.address, tmp_path) as gateway, make_client(gateway) as http:
        for change, status, param in cases:
            answer = await http.post("/v1/chat/completions", json=CHAT | change)
            assert answer.status_code == status, (change, answer.text)
            assert answer.json().get("error", {}).get("param") == param, change
    assert all(request.sampling.top_p is None or 0 < request.sampling.top_p <= 1 for request in head.requests)


async def test_impossible_token_has_the_least_logprob_that_json_can_say(
    control_plane: ScriptedControlPlane, head: ScriptedHead, tmp_path: Path
) -> None:
    async def doubt(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0, (TokenLogprob(1, "a", b"a", float("-inf")),))
        yield ChoiceFinished(0, FinishReason.STOP, num_tokens=1)
        yield GenerationCompleted(1, 1)

    head.answer = doubt
    await control_plane.show(make_instance("demo-1", head.address))
    async with run_gateway(control_plane.address, tmp_path) as gateway, make_client(gateway) as http:
        answer = await http.post("/v1/chat/completions", json=CHAT | {"logprobs": True})
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


async def test_body_without_content_length_is_limited_too(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        content = json.dumps(CHAT | {"user": "x" * 4000}).encode()
        for start in range(0, len(content), 500):
            yield content[start : start + 500]

    headers = {"Content-Type": "application/json"}
    async with (
        run_gateway(control_plane.address, tmp_path, {"MAX_BODY_BYTES": "1024"}) as gateway,
        make_client(gateway) as http,
    ):
        answer = await http.post("/v1/chat/completions", content=chunks(), headers=headers)
    assert answer.status_code == 413


async def test_errors_carry_the_request_id_too(control_plane: ScriptedControlPlane, tmp_path: Path) -> None:
    async with run_gateway(control_plane.address, tmp_path) as gateway, make_client(gateway) as http:
        answer = await http.post("/v1/chat/completions", json={}, headers={"X-Request-Id": "mine-2"})
    assert answer.status_code == 400 and answer.headers["x-request-id"] == "mine-2"


async def test_stream_that_outlives_the_drain_ends_with_an_error_and_done(
    control_plane: ScriptedControlPlane, head: ScriptedHead, tmp_path: Path
) -> None:
    async def never_end(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, 1, 0)
        yield ChoiceDelta(0, (1,), "a", 0)
        await asyncio.Event().wait()

    head.answer = never_end
    await control_plane.show(make_instance("demo-1", head.address))
    lines: list[str] = []
    async with run_gateway(control_plane.address, tmp_path, {"DRAIN_TIMEOUT_S": "1"}) as gateway:
        async with (
            make_client(gateway) as http,
            http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response,
        ):
            async for line in response.aiter_lines():
                lines += [line] if line else []
                if '"a"' in line:
                    gateway.process.terminate()
        assert await asyncio.wait_for(gateway.process.wait(), 20) == 0
    assert lines[-1] == "data: [DONE]" and '"error"' in lines[-2]


async def test_health_says_that_the_control_plane_is_away(head: ScriptedHead, tmp_path: Path) -> None:
    control_plane = ScriptedControlPlane()
    async with AsyncExitStack() as stack:
        async with control_plane.serve():
            await control_plane.show(make_instance("demo-1", head.address))
            gateway = await stack.enter_async_context(run_gateway(control_plane.address, tmp_path))
            http = await stack.enter_async_context(make_client(gateway))
            await http.post("/v1/chat/completions", json=CHAT)
            assert (await http.get("/health")).json()["status"] == "ok"
        assert (await http.get("/health")).json()["status"] == "degraded"
        state = await http.get("/state")
        assert state.status_code == 200 and state.json()["instances"], "the last seen state is shown"


async def test_listening_is_said_only_when_connections_are_accepted(tmp_path: Path) -> None:
    for _ in range(5):
        async with run_gateway("127.0.0.1:1", tmp_path) as gateway:
            host, _, port = gateway.url.removeprefix("http://").rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
