"""A head that cannot be reached itself is asked through another stage of its instance: real gateway process, real relays, scripted head."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from paceline_services.addressee import Addressee
from paceline_services.clients import GenerationClient
from paceline_services.domain.generation import GenerateRequest, GenerationEvent, Limits
from paceline_services.errors import (
    OverloadedError,
    PacelineError,
    TimeoutExpiredError,
    UnavailableError,
)
from paceline_services.ids import Epoch
from support.head import (
    MODEL,
    NUM_PROMPT_TOKENS,
    WORDS,
    ScriptedControlPlane,
    ScriptedHead,
    run_gateway,
    say_words,
    stop_after,
)
from support.relays import INSTANCE, make_staged_instance, serve_relay, serve_relays
from support.tcp_proxy import TcpProxy, tcp_proxy

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
TEXT = "".join(WORDS) + " 0"
REQUEST = GenerateRequest(MODEL, text="Hello", limits=Limits(max_tokens=8))
TO_HEAD = Addressee(INSTANCE, Epoch(1))
AT_ONCE_S = 2.0


@asynccontextmanager
async def open_client(address: str) -> AsyncIterator[GenerationClient]:
    client = GenerationClient(address)
    try:
        yield client
    finally:
        await client.close()


async def ask_relay(
    address: str, addressee: Addressee | None = TO_HEAD, timeout_s: float = 20.0
) -> list[GenerationEvent]:
    async with open_client(address) as client:
        return [event async for event in client.generate(REQUEST, timeout_s, addressee)]


async def stay_silent() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("num_hops", [1, 3])
async def test_stages_pass_an_answer_and_a_count_on_as_they_are(num_hops: int) -> None:
    async with ScriptedHead().serve() as head, serve_relays(head.address, num_hops) as relays:
        assert await ask_relay(relays[0]) == [event async for event in say_words(REQUEST)]
        async with open_client(relays[0]) as client:
            assert await client.count_tokens(REQUEST, 20, TO_HEAD) == NUM_PROMPT_TOKENS
    assert head.requests == [REQUEST, REQUEST]


async def test_errors_of_the_head_pass_with_reason_and_facts() -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        raise OverloadedError("the queue is full", reason="QUEUE_FULL", retry_after_s="7")
        yield

    async with ScriptedHead(refuse).serve() as head, serve_relays(head.address, 2) as relays:
        with pytest.raises(OverloadedError) as refused:
            await ask_relay(relays[0])
    error = refused.value
    assert (error.message, error.reason, error.facts) == ("the queue is full", "QUEUE_FULL", {"retry_after_s": "7"})


async def test_call_that_its_client_leaves_is_cancelled_at_the_head() -> None:
    head = ScriptedHead(stop_after(2, say_words, stay_silent))
    async with head.serve(), serve_relays(head.address, 2) as relays, open_client(relays[0]) as client:
        events = client.generate(REQUEST, 20, TO_HEAD)
        await anext(events)
        await events.aclose()
        await asyncio.wait_for(head.cancelled.wait(), 10)


async def test_deadline_of_a_call_holds_at_the_head() -> None:
    head = ScriptedHead(stop_after(2, say_words, stay_silent))
    async with head.serve(), serve_relays(head.address, 2) as relays:
        with pytest.raises(TimeoutExpiredError):
            await ask_relay(relays[0], timeout_s=0.5)
        await asyncio.wait_for(head.cancelled.wait(), 10)


@pytest.mark.parametrize("addressee", [None, Addressee(INSTANCE, Epoch(2))])
async def test_call_for_nobody_or_for_another_epoch_is_not_passed_on(addressee: Addressee | None) -> None:
    async with ScriptedHead().serve() as head, serve_relay(head.address) as relay:
        with pytest.raises(UnavailableError) as refused:
            await ask_relay(relay, addressee)
    assert refused.value.reason == "INSTANCE_BROKEN" and not head.requests


@pytest.mark.parametrize("what", ["not known", "closed", "hung"])
async def test_stage_whose_next_one_is_gone_says_so_at_once(what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = None if what == "not known" else f"127.0.0.1:{listening.getsockname()[1]}"
        if what == "closed":
            listening.close()
        async with serve_relay(address) as relay:
            start = time.monotonic()
            with pytest.raises(UnavailableError) as refused:
                await ask_relay(relay)
    assert refused.value.reason == "INSTANCE_BROKEN"
    assert time.monotonic() - start < AT_ONCE_S


@dataclass
class Rig:
    """A gateway before a head, which it reaches through a proxy, and two stages before that, which reach each other and the head."""

    control_plane: ScriptedControlPlane
    head: ScriptedHead
    direct: TcpProxy
    to_last_relay: TcpProxy
    http: httpx.AsyncClient

    async def ask(self, *, stream: bool = False) -> tuple[int, str]:
        """Status and whole text of the response."""
        response = await self.http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
        return response.status_code, response.text

    async def count_relayed(self) -> int:
        name = f'paceline_api_gateway_relayed_total{{model="{MODEL}"}} '
        lines = (await self.http.get("/metrics")).text.splitlines()
        return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        control_plane = await stack.enter_async_context(ScriptedControlPlane().serve())
        head = await stack.enter_async_context(ScriptedHead().serve())
        first, second = await stack.enter_async_context(serve_relays(head.address, 2))
        direct, to_last = [await stack.enter_async_context(_proxy(address)) for address in (head.address, second)]
        gateway = await stack.enter_async_context(run_gateway(control_plane.address, tmp_path))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=60))
        await control_plane.show(make_staged_instance(_address(direct), first, _address(to_last)))
        yield Rig(control_plane, head, direct, to_last, http)


def _proxy(address: str) -> Any:
    return tcp_proxy("127.0.0.1", int(address.split(":")[1]))


def _address(proxy: TcpProxy) -> str:
    return f"127.0.0.1:{proxy.port}"


def text_of(stream: str) -> str:
    """The text that a stream's deltas make."""
    blocks = [block.removeprefix("data: ") for block in stream.split("\n\n") if block.startswith("data: {")]
    return "".join(json.loads(block)["choices"][0]["delta"].get("content", "") for block in blocks)


async def test_head_within_reach_is_asked_itself(rig: Rig) -> None:
    status, _ = await rig.ask()
    assert status == 200 and await rig.count_relayed() == 0 and rig.to_last_relay.num_connections == 0


@pytest.mark.parametrize("is_silent", [False, True])
async def test_answer_whose_way_is_cut_goes_on_through_the_stage_before_the_head(rig: Rig, is_silent: bool) -> None:
    async def cut() -> None:
        rig.head.answer = say_words
        rig.direct.silence() if is_silent else rig.direct.cut()
        await stay_silent()

    rig.head.answer = stop_after(2, say_words, cut)
    start = time.monotonic()
    status, body = await rig.ask(stream=True)
    took_s = time.monotonic() - start
    assert status == 200 and text_of(body) == TEXT, body
    assert took_s < (8 if is_silent else AT_ONCE_S)
    assert await rig.count_relayed() == 1

    start = time.monotonic()
    assert (await rig.ask())[0] == 200
    assert time.monotonic() - start < AT_ONCE_S and await rig.count_relayed() == 2


async def test_first_stage_leads_to_the_head_where_the_last_one_is_out_of_reach_too(rig: Rig) -> None:
    rig.direct.cut()
    rig.to_last_relay.cut()
    assert (await rig.ask())[0] == 200
    assert await rig.count_relayed() == 2 and len(rig.head.requests) == 1


async def test_request_the_head_refuses_is_not_tried_on_other_ways(rig: Rig) -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        raise PacelineError("a defect")
        yield

    rig.direct.cut()
    rig.head.answer = refuse
    assert (await rig.ask())[0] == 500
    assert await rig.count_relayed() == 1 and len(rig.head.requests) == 1


async def test_answer_of_a_head_that_is_dead_waits_for_the_next_epoch(rig: Rig) -> None:
    async with ScriptedHead().serve() as successor, serve_relay("127.0.0.1:1") as relay:
        dead = make_staged_instance("127.0.0.1:1", relay)
        await rig.control_plane.show(dead)
        asking = asyncio.create_task(rig.ask())
        await asyncio.wait({asking}, timeout=0.5)
        assert not asking.done() and await rig.count_relayed() == 1
        await rig.control_plane.show(make_staged_instance(successor.address, relay, epoch=2))
        status, _ = await asyncio.wait_for(asking, AT_ONCE_S)
    assert status == 200 and len(successor.requests) == 1 and await rig.count_relayed() == 1
