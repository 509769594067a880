"""A real gateway process whose heads are lost in mid-answer: the client's response goes on as if nothing had been."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
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
)
from paceline_services.domain.instances import Instance, InstanceState
from paceline_services.domain.runners import Precision
from paceline_services.errors import ContextLengthError, InternalError, NotFoundError, OverloadedError, UnavailableError
from paceline_services.ids import InstanceId
from support.head import (
    MODEL,
    NUM_PROMPT_TOKENS,
    Answer,
    ScriptedControlPlane,
    ScriptedHead,
    describe_token,
    make_instance,
    run_gateway,
    stop_after,
)
from support.tcp_proxy import TcpProxy, tcp_proxy

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
SEED = 2**63 + 11
WORDS = ("One", "", " two", " thr", "ee", " four", " fünf")
"""Texts of the tokens; one of them is not certain before the next has come."""

End = Callable[[], Awaitable[None]]


async def speak(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """The choices take turns; those with odd numbers end after three tokens, for a stop text."""
    num_choices = request.num_choices or 1
    yield GenerationStarted(request.request_id, NUM_PROMPT_TOKENS, request.sampling.seed or SEED)
    for number, word in enumerate(WORDS):
        for index in range(num_choices):
            if index % 2 and number > 2:
                continue
            logprobs = (describe_token(number, word, request.num_top_logprobs),) if request.logprobs else ()
            yield ChoiceDelta(index, (100 + number,), word, number, logprobs)
            if index % 2 and number == 2:
                yield ChoiceFinished(index, FinishReason.STOP, "!", 3)
            elif number == len(WORDS) - 1:
                yield ChoiceFinished(index, FinishReason.LENGTH, num_tokens=len(WORDS))
    yield GenerationCompleted(NUM_PROMPT_TOKENS, 0, num_cached_tokens=3)


async def break_epoch() -> None:
    raise UnavailableError("a stage of the instance was lost", reason="INSTANCE_BROKEN")


async def drain() -> None:
    raise UnavailableError("this runner is no longer head", reason="DRAINING")


async def serve_other_model() -> None:
    raise NotFoundError("this head serves another model", reason="MODEL_NOT_FOUND")


async def end_early() -> None:
    return


async def stay_silent() -> None:
    await asyncio.Event().wait()


@dataclass
class Rig:
    """A gateway before two heads; the first is reached through a proxy."""

    control_plane: ScriptedControlPlane
    first: ScriptedHead
    second: ScriptedHead
    proxy: TcpProxy
    gateway: asyncio.subprocess.Process
    http: httpx.AsyncClient

    def instance(self, number: int, epoch: int = 1) -> Instance:
        address = f"127.0.0.1:{self.proxy.port}" if number == 1 else self.second.address
        return make_instance("demo-1", address, epoch=epoch)

    async def move(self) -> None:
        """The instance's next epoch has its head elsewhere."""
        await self.control_plane.show(make_instance("demo-1", state=InstanceState.RECOVERING))
        await self.control_plane.show(self.instance(2, epoch=2))


@asynccontextmanager
async def run_rig(home: Path, **settings: str) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        control_plane = await stack.enter_async_context(ScriptedControlPlane().serve())
        first = await stack.enter_async_context(ScriptedHead(speak).serve())
        second = await stack.enter_async_context(ScriptedHead(speak).serve())
        proxy = await stack.enter_async_context(tcp_proxy("127.0.0.1", int(first.address.split(":")[1])))
        gateway = await stack.enter_async_context(run_gateway(control_plane.address, home, settings))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=60))
        rig = Rig(control_plane, first, second, proxy, gateway.process, http)
        await control_plane.show(rig.instance(1))
        yield rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with run_rig(tmp_path) as running:
        yield running


@dataclass
class Heard:
    """What a client made of a response."""

    texts: list[str]
    token_ids: list[list[int]]
    logprobs: list[list[Any]]
    reasons: list[str | None]
    usage: Any = None
    error: Any = None
    status: int = 200


async def ask(http: httpx.AsyncClient, **change: Any) -> Heard:
    body = CHAT | {"return_token_ids": True} | change
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    response = await http.post(PATH, json=body)
    if response.status_code != 200:
        return Heard([], [], [], [], error=response.json()["error"], status=response.status_code)
    num = body.get("n", 1)
    heard = Heard([""] * num, [[] for _ in range(num)], [[] for _ in range(num)], [None] * num)
    if not body.get("stream"):
        whole = response.json()
        for choice in whole["choices"]:
            take_choice(heard, choice, choice["message"]["content"])
        heard.usage = whole["usage"]
        return heard
    blocks = [block for block in response.text.split("\n\n") if block.startswith("data: ")]
    assert blocks.pop() == "data: [DONE]", "every stream ends so"
    for event in (json.loads(block.removeprefix("data: ")) for block in blocks):
        heard.error = event.get("error")
        heard.usage = event.get("usage") or heard.usage
        for choice in event.get("choices", ()):
            take_choice(heard, choice, choice["delta"].get("content", ""))
    return heard


def take_choice(heard: Heard, choice: Any, text: str) -> None:
    index = choice["index"]
    heard.texts[index] += text
    heard.token_ids[index] += choice.get("token_ids", [])
    heard.logprobs[index] += (choice["logprobs"] or {"content": []})["content"]
    heard.reasons[index] = choice["finish_reason"]


async def read_metric(http: httpx.AsyncClient, sample: str) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(line.removeprefix(sample)) for line in lines if line.startswith(f"{sample} "))


def count_delivered(request: GenerateRequest) -> int:
    return sum(len(one.token_ids) for one in request.progress)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("end", [break_epoch, drain, serve_other_model, end_early])
async def test_answer_goes_on_at_the_next_head_whatever_ended_the_first(rig: Rig, end: End, stream: bool) -> None:
    undisturbed = await ask(rig.http, stream=stream)

    async def move_and_end() -> None:
        await rig.move()
        await end()

    rig.first.answer = stop_after(4, speak, move_and_end)
    assert await ask(rig.http, stream=stream) == undisturbed
    assert undisturbed.texts == ["".join(WORDS)] and undisturbed.usage["completion_tokens"] == len(WORDS)
    (asked,) = rig.second.requests
    assert asked.progress == (ChoiceProgress((100, 101, 102, 103)),) and asked.sampling.seed == SEED
    assert asked == replace(rig.first.requests[-1], progress=asked.progress, sampling=asked.sampling)
    assert await read_metric(rig.http, f'paceline_api_gateway_resumed_total{{model="{MODEL}"}}') == 1
    assert await read_metric(rig.http, f'paceline_api_gateway_pause_seconds_count{{model="{MODEL}"}}') == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_connection_that_is_cut_costs_no_token(rig: Rig, stream: bool) -> None:
    async def cut() -> None:
        await asyncio.sleep(
            0.1
        )  # for what was sent before to arrive: it may be lost too, then there are fewer to go on from
        rig.proxy.cut()
        await rig.move()
        await stay_silent()

    rig.first.answer = stop_after(3, speak, cut)
    heard = await ask(rig.http, stream=stream, logprobs=True, top_logprobs=2)
    assert heard.texts == ["".join(WORDS)] and heard.error is None
    assert [one["token"] for one in heard.logprobs[0]] == list(WORDS)
    (asked,) = rig.second.requests
    assert count_delivered(asked) <= 3 and asked.sampling.seed == SEED


async def test_host_that_vanished_is_noticed_and_left(rig: Rig) -> None:
    async def vanish() -> None:
        rig.proxy.silence()
        await rig.move()
        await stay_silent()

    rig.first.answer = stop_after(2, speak, vanish)
    heard = await ask(rig.http, stream=True)
    assert heard.texts == ["".join(WORDS)] and heard.error is None
    assert len(rig.second.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_that_ended_stay_as_they_are(rig: Rig, stream: bool) -> None:
    change: dict[str, Any] = {"n": 2, "stream": stream, "stop": "!", "logprobs": True}
    undisturbed = await ask(rig.http, **change)
    await rig.control_plane.show(
        rig.instance(1), replace(rig.instance(2), spec=replace(rig.instance(2).spec, instance_id=InstanceId("b")))
    )
    rig.first.answer = stop_after(8, speak, break_epoch)
    rig.second.answer = stop_after(8, speak, break_epoch)
    heard = await ask(rig.http, **change)
    assert heard == undisturbed and heard.reasons == ["length", "stop"]
    begun, *continued = sorted(
        [one for one in rig.first.requests[1:] + rig.second.requests if one.num_choices == 2], key=count_delivered
    )
    assert not begun.progress
    assert [one.is_finished for one in continued[0].progress] == [False, True]


@pytest.mark.parametrize("stream", [False, True])
async def test_heads_lost_one_after_the_other_cost_no_token(rig: Rig, stream: bool) -> None:
    async def go_back() -> None:
        rig.first.answer = speak
        await rig.control_plane.show(rig.instance(1, epoch=3))
        await break_epoch()

    async def move_and_break() -> None:
        await rig.move()
        await break_epoch()

    rig.first.answer = stop_after(2, speak, move_and_break)
    rig.second.answer = stop_after(3, speak, go_back)
    heard = await ask(rig.http, stream=stream)
    assert heard.texts == ["".join(WORDS)] and heard.token_ids == [[100 + n for n in range(len(WORDS))]]
    asked = [*rig.first.requests, *rig.second.requests]
    assert sorted(map(count_delivered, asked)) == [0, 2, 5]
    assert {one.sampling.seed for one in asked} == {None, SEED}
    assert await read_metric(rig.http, f'paceline_api_gateway_resumed_total{{model="{MODEL}"}}') == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_that_lacks_only_its_end_is_ended_here(rig: Rig, stream: bool) -> None:
    async def all_but_the_end(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        async for event in speak(request):
            if isinstance(event, GenerationCompleted):
                raise UnavailableError("gone", reason="DRAINING")
            yield event

    rig.first.answer = all_but_the_end
    heard = await ask(rig.http, stream=stream)
    assert heard.texts == ["".join(WORDS)] and heard.error is None
    assert (heard.usage["prompt_tokens"], heard.usage["completion_tokens"]) == (NUM_PROMPT_TOKENS, len(WORDS))
    assert len(rig.first.requests) == 1 and not rig.second.requests


async def test_last_token_whose_end_was_lost_is_not_said_again(rig: Rig) -> None:
    async def move_and_break() -> None:
        await rig.move()
        await break_epoch()

    async def all_but_the_finish(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        async for event in speak(request):
            if isinstance(event, ChoiceFinished):
                await move_and_break()
            yield event

    rig.first.answer = all_but_the_finish
    heard = await ask(rig.http, stream=True)
    assert heard.texts == ["".join(WORDS)] and heard.reasons == ["length"]
    assert count_delivered(rig.second.requests[0]) == len(WORDS)


async def test_head_that_knows_no_progress_says_all_again_and_the_client_hears_it_once(rig: Rig) -> None:
    async def forget_progress(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        async for event in speak(replace(request, progress=())):
            yield event

    async def move_and_break() -> None:
        await rig.move()
        rig.second.skips_delivered = False
        await break_epoch()

    rig.first.answer = stop_after(4, speak, move_and_break)
    rig.second.answer = forget_progress
    heard = await ask(rig.http, stream=True)
    assert heard.texts == ["".join(WORDS)] and heard.token_ids == [[100 + n for n in range(len(WORDS))]]


def refuse(refusals: list[str], answer: Answer) -> Answer:
    """Full for as long as there are refusals, each saying when to come back."""

    async def full_at_first(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        if refusals:
            raise OverloadedError("the queue is full", reason="QUEUE_FULL", retry_after_s=refusals.pop())
        async for event in answer(request):
            yield event

    return full_at_first


async def test_full_queue_does_not_end_an_answer_that_has_begun(rig: Rig) -> None:
    async def move_and_break() -> None:
        await rig.move()
        await break_epoch()

    rig.first.answer = stop_after(4, speak, move_and_break)
    rig.second.answer = refuse(["0.2", "0.1", ""], speak)
    heard = await ask(rig.http, stream=True)
    assert heard.texts == ["".join(WORDS)] and heard.error is None
    assert [count_delivered(one) for one in rig.second.requests] == [4, 4, 4, 4]


async def test_other_instance_goes_on_at_once_where_the_first_one_is_full(rig: Rig) -> None:
    async with ScriptedHead(speak).serve() as third:
        full, free = rig.instance(2, epoch=2), make_instance("demo-3", third.address)

        async def move_and_break() -> None:
            await rig.control_plane.show(full, free)
            await break_epoch()

        rig.first.answer = stop_after(4, speak, move_and_break)
        rig.second.answer = refuse(["60", "60"], speak)
        heard = await asyncio.wait_for(ask(rig.http, stream=True), 20)
    assert heard.texts == ["".join(WORDS)] and [count_delivered(one) for one in third.requests] == [4]


@pytest.mark.parametrize("is_alike_coming", [True, False])
async def test_instance_that_computes_alike_goes_on_before_another_one(rig: Rig, is_alike_coming: bool) -> None:
    spec = rig.instance(1).spec
    async with ScriptedHead(speak).serve() as other:
        fast = replace(
            make_instance("fast", other.address),
            spec=replace(spec, instance_id=InstanceId("fast"), precision=Precision.FAST),
        )
        alike, lost = make_instance("demo-1", state=InstanceState.RECOVERING, epoch=2), asyncio.Event()

        async def lose() -> None:
            lost.set()
            await rig.control_plane.show(fast, *([alike] if is_alike_coming else []))
            await break_epoch()

        rig.first.answer = stop_after(4, speak, lose)
        asking = asyncio.create_task(ask(rig.http, stream=True))
        if is_alike_coming:
            await asyncio.wait_for(lost.wait(), 10)
            await asyncio.sleep(0.5)
            assert not other.requests, "it is waited for"
            await rig.control_plane.show(fast, rig.instance(2, epoch=2))
        heard = await asking
    assert heard.texts == ["".join(WORDS)] and heard.error is None
    assert bool(other.requests) is not is_alike_coming and bool(rig.second.requests) is is_alike_coming


async def test_instance_that_keeps_failing_is_left_for_one_that_computes_otherwise_in_the_end(tmp_path: Path) -> None:
    async with run_rig(tmp_path, PLACEMENT_WAIT_S="3") as rig:
        fast = replace(rig.instance(2).spec, instance_id=InstanceId("fast"), precision=Precision.FAST)

        async def keep_failing() -> None:
            rig.first.answer = stop_after(0, speak, break_epoch)
            await rig.control_plane.show(rig.instance(1), replace(rig.instance(2), spec=fast))
            await break_epoch()

        rig.first.answer = stop_after(2, speak, keep_failing)
        heard = await ask(rig.http, stream=True)
    assert heard.texts == ["".join(WORDS)] and heard.error is None
    assert len(rig.first.requests) > 1 and len(rig.second.requests) == 1


async def test_error_that_only_one_instance_raises_does_not_end_an_answer(rig: Rig) -> None:
    async def refuse_length(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        raise ContextLengthError("the context of this instance is shorter")
        yield GenerationStarted(request.request_id, 1, 0)

    async with ScriptedHead(speak).serve() as third:
        shorter, wide = rig.instance(2, epoch=2), make_instance("demo-3", third.address)

        async def move_and_break() -> None:
            await rig.control_plane.show(shorter, wide)
            await break_epoch()

        rig.first.answer = stop_after(4, speak, move_and_break)
        rig.second.answer = refuse_length
        heard = await ask(rig.http, stream=True)
    assert heard.texts == ["".join(WORDS)] and heard.error is None


async def test_defect_of_a_head_is_passed_on(rig: Rig) -> None:
    async def fail() -> None:
        raise InternalError("the head failed by a defect")

    rig.first.answer = stop_after(2, speak, fail)
    heard = await ask(rig.http, stream=True)
    assert heard.error["message"] == "the head failed by a defect" and heard.texts == ["One"]


async def test_request_of_which_heads_die_is_not_tried_for_ever(rig: Rig) -> None:
    async def die(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        yield GenerationStarted(request.request_id, NUM_PROMPT_TOKENS, SEED)
        await break_epoch()

    rig.first.answer = die
    heard = await asyncio.wait_for(ask(rig.http, stream=True), 30)
    assert heard.error["message"] == "a stage of the instance was lost" and len(rig.first.requests) == 5


@pytest.mark.parametrize("stream", [False, True])
async def test_removed_model_ends_its_answers_with_an_error_that_says_so(rig: Rig, stream: bool) -> None:
    async def remove() -> None:
        await rig.control_plane.show()
        await break_epoch()

    rig.first.answer = stop_after(4, speak, remove)
    heard = await asyncio.wait_for(ask(rig.http, stream=stream), 20)
    assert "was removed while it answered" in heard.error["message"]
    assert heard.status == (200 if stream else 503) and not rig.control_plane.placed


@pytest.mark.parametrize("state", [InstanceState.UNPLACEABLE, InstanceState.FAILED])
async def test_model_that_cannot_run_any_more_ends_its_answers_with_what_is_missing(
    tmp_path: Path, state: InstanceState
) -> None:
    async with run_rig(tmp_path, RECOVERY_WAIT_S="0.5") as rig:

        async def lose() -> None:
            await rig.control_plane.show(make_instance("demo-1", state=state, message="1.5 GiB short"))
            await break_epoch()

        rig.first.answer = stop_after(4, speak, lose)
        heard = await asyncio.wait_for(ask(rig.http, stream=True), 20)
    assert "1.5 GiB short" in heard.error["message"]


async def test_model_that_cannot_run_for_a_moment_is_waited_for(rig: Rig) -> None:
    async def lose() -> None:
        await rig.control_plane.show(make_instance("demo-1", state=InstanceState.UNPLACEABLE, message="1.5 GiB short"))
        await break_epoch()

    rig.first.answer = stop_after(4, speak, lose)
    asking = asyncio.create_task(ask(rig.http, stream=True))
    await asyncio.wait_for(rig.first.asked.wait(), 10)
    await asyncio.sleep(0.5)
    assert not asking.done()
    await rig.control_plane.show(rig.instance(2, epoch=2))
    assert (await asking).texts == ["".join(WORDS)]


async def test_hope_is_counted_from_when_a_model_cannot_run_not_from_the_loss(tmp_path: Path) -> None:
    async with run_rig(tmp_path, RECOVERY_WAIT_S="2") as rig:

        async def lose() -> None:
            await rig.control_plane.show(make_instance("demo-1", state=InstanceState.RECOVERING))
            await break_epoch()

        rig.first.answer = stop_after(4, speak, lose)
        asking = asyncio.create_task(ask(rig.http, stream=True))
        await asyncio.wait_for(rig.first.asked.wait(), 10)
        await asyncio.sleep(2.5)
        await rig.control_plane.show(make_instance("demo-1", state=InstanceState.FAILED, message="failed 3 times"))
        await asyncio.sleep(0.2)
        await rig.control_plane.show(rig.instance(2, epoch=2))
        heard = await asking
    assert heard.texts == ["".join(WORDS)] and heard.error is None


async def test_failed_instance_that_is_tried_again_is_waited_for(tmp_path: Path) -> None:
    async with run_rig(tmp_path, RECOVERY_WAIT_S="2") as rig:
        failing = make_instance("demo-1", state=InstanceState.FAILED, message="failed 3 times in a row, trying again")

        async def lose() -> None:
            await rig.control_plane.show(failing)
            await break_epoch()

        rig.first.answer = stop_after(4, speak, lose)
        asking = asyncio.create_task(ask(rig.http, stream=True))
        await asyncio.wait_for(rig.first.asked.wait(), 10)
        for step in range(1, 7):
            await asyncio.sleep(0.5)
            await rig.control_plane.show(replace(failing, progress=step / 10))
        await rig.control_plane.show(rig.instance(2, epoch=2))
        heard = await asking
    assert heard.texts == ["".join(WORDS)] and heard.error is None


async def test_deadline_ends_an_answer_that_waits_to_go_on(rig: Rig) -> None:
    async def lose() -> None:
        await rig.control_plane.show(make_instance("demo-1", state=InstanceState.RECOVERING))
        await break_epoch()

    rig.first.answer = stop_after(4, speak, lose)
    response = await rig.http.post(PATH, json=CHAT | {"stream": True}, headers={"X-Request-Timeout": "4"})
    blocks = response.text.split("\n\n")
    assert blocks[-2] == "data: [DONE]" and "goes on where a lost one left off" in blocks[-3]


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_that_waits_to_go_on_is_ended_when_the_gateway_stops(tmp_path: Path, stream: bool) -> None:
    async with run_rig(tmp_path, DRAIN_TIMEOUT_S="0.5") as rig:

        async def lose() -> None:
            await rig.control_plane.show(make_instance("demo-1", state=InstanceState.RECOVERING))
            rig.gateway.terminate()
            await break_epoch()

        rig.first.answer = stop_after(4, speak, lose)
        heard = await ask(rig.http, stream=stream)
        assert "this gateway is stopping" in heard.error["message"] and heard.status == (200 if stream else 503)
        assert await asyncio.wait_for(rig.gateway.wait(), 20) == 0


async def test_stream_that_waits_to_go_on_is_kept_alive_by_comments(tmp_path: Path) -> None:
    async with run_rig(tmp_path, KEEP_ALIVE_S="0.1") as rig:

        async def lose() -> None:
            await rig.control_plane.show(make_instance("demo-1", state=InstanceState.RECOVERING))
            await break_epoch()

        rig.first.answer = stop_after(4, speak, lose)
        lines = []
        async with rig.http.stream("POST", PATH, json=CHAT | {"stream": True}) as response:
            async for line in response.aiter_lines():
                lines += [line] if line else []
                if lines.count(": keep-alive") == 3 and len(rig.control_plane.state.instances[0].head_address) == 0:
                    await rig.control_plane.show(rig.instance(2, epoch=2))
    assert lines[-1] == "data: [DONE]" and lines.count(": keep-alive") >= 3
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-1] if line[0] != ":"]
    assert "".join(one.get("content", "") for one in deltas) == "".join(WORDS)


async def test_answer_goes_on_at_another_instance_while_the_control_plane_is_away(tmp_path: Path) -> None:
    control_plane = ScriptedControlPlane()
    async with AsyncExitStack() as stack:
        heads = [await stack.enter_async_context(ScriptedHead(speak).serve()) for _ in range(2)]
        async with control_plane.serve():
            await control_plane.show(*(make_instance(f"demo-{n}", head.address) for n, head in enumerate(heads)))
            gateway = await stack.enter_async_context(run_gateway(control_plane.address, tmp_path))
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=30))
            await ask(http)  # waits for the gateway to have heard of the cluster
        for head in heads:
            head.requests.clear()
            head.answer = stop_after(3, speak, break_epoch)
        heard = await ask(http, stream=True)
    assert heard.texts == ["".join(WORDS)] and heard.error is None
    assert sorted(count_delivered(one) for head in heads for one in head.requests) == [0, 3, 6]


async def test_head_that_was_out_of_reach_goes_on_itself_while_the_control_plane_is_away(tmp_path: Path) -> None:
    async with ScriptedHead().serve() as head, tcp_proxy("127.0.0.1", int(head.address.split(":")[1])) as proxy:
        control_plane = ScriptedControlPlane()

        async def vanish() -> None:
            proxy.cut()
            await stay_silent()

        async with AsyncExitStack() as stack:
            async with control_plane.serve():
                await control_plane.show(make_instance("demo-1", f"127.0.0.1:{proxy.port}"))
                gateway = await stack.enter_async_context(run_gateway(control_plane.address, tmp_path))
                http = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=30))
                await ask(http)  # waits for the gateway to have heard of the cluster
            head.asked.clear()
            head.answer = stop_after(3, speak, vanish)
            asking = asyncio.create_task(ask(http, stream=True))
            await asyncio.wait_for(head.asked.wait(), 10)
            await asyncio.wait_for(head.cancelled.wait(), 10)
            head.answer = speak
            proxy.heal()
            heard = await asking
    assert heard.texts == ["".join(WORDS)] and heard.error is None
