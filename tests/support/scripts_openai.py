"""What a scripted head says to OpenAI's clients: thinking, calls of tools, JSON, and prompts told again; and a gateway in front of it."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from openai import AsyncOpenAI

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    FinishReason,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    PromptEchoed,
    ToolCallDelta,
    ToolChoiceMode,
)
from support.head import (
    MODEL,
    NUM_PROMPT_TOKENS,
    Answer,
    GatewayProcess,
    ScriptedControlPlane,
    ScriptedHead,
    describe_token,
    make_instance,
    run_gateway,
    say_words,
)

FIRST_TOKEN = 100


@dataclass(frozen=True, slots=True)
class Said:
    """What one token of a script brings."""

    text: str = ""
    reasoning_text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()
    token: str = ""
    """As log probabilities tell it; empty: the text."""


Line = tuple[Sequence[Said], FinishReason]


def make_events(request: GenerateRequest, line: Line) -> list[GenerationEvent]:
    """Every choice says the same."""
    said, reason = line
    events: list[GenerationEvent] = [GenerationStarted(request.request_id, NUM_PROMPT_TOKENS, 0)]
    for index in range(request.num_choices):
        for number, one in enumerate(said):
            token = one.token or one.text or one.reasoning_text
            top = (describe_token(FIRST_TOKEN + number, token, request.num_top_logprobs),) if request.logprobs else ()
            events.append(
                ChoiceDelta(index, (FIRST_TOKEN + number,), one.text, number, top, one.reasoning_text, one.calls)
            )
        events.append(ChoiceFinished(index, reason, num_tokens=len(said)))
    num_thought = sum(bool(one.reasoning_text) for one in said) * request.num_choices
    completed = GenerationCompleted(
        NUM_PROMPT_TOKENS, len(said) * request.num_choices, num_cached_tokens=2, num_reasoning_tokens=num_thought
    )
    return [*events, completed]


def say(*said: Said, reason: FinishReason = FinishReason.STOP) -> Answer:
    async def answer(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
        for event in make_events(request, (said, reason)):
            yield event

    return answer


def call(name: str, arguments: Mapping[str, object], index: int = 0) -> Said:
    """A whole call of a tool, told at once as heads do."""
    text = json.dumps(arguments)
    return Said(calls=(ToolCallDelta(index, f"call_{index:024x}", name, text),), token="</tool_call>")


def call_in_parts(name: str, *parts: str, index: int = 0) -> list[Said]:
    """A call whose arguments come bit by bit."""
    first = Said(calls=(ToolCallDelta(index, f"call_{index:024x}", name),), token=name)
    return [first, *(Said(calls=(ToolCallDelta(index, arguments_json=part),), token=part) for part in parts)]


THOUGHTFUL = say(Said(reasoning_text="Let me"), Said(reasoning_text=" see."), Said(token="</think>"), Said("Yes."))
CALLING = say(call("get_weather", {"city": "Oslo"}), Said(token="<end>"), reason=FinishReason.TOOL_CALLS)


async def use_tools(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """Calls the first tool that is offered, or the one that it must call, until a tool has answered; then it says what it was told."""
    talk = request.conversation
    assert talk is not None
    last = talk.messages[-1]
    if last.role == "tool":
        line: Line = [Said("It says: "), Said(last.content)], FinishReason.STOP
    elif talk.tools and not (talk.tool_choice and talk.tool_choice.mode is ToolChoiceMode.NONE):
        wanted = talk.tool_choice.name if talk.tool_choice else ""
        tool = next(one for one in talk.tools if not wanted or one.name == wanted)
        arguments = json.dumps(fill(json.loads(tool.parameters_json or "{}")))
        half = len(arguments) // 2
        line = call_in_parts(tool.name, arguments[:half], arguments[half:]), FinishReason.TOOL_CALLS
    elif request.output_format is not None and request.output_format.json_schema:
        text = json.dumps(fill(json.loads(request.output_format.json_schema)))
        line = [Said(text[:5]), Said(text[5:])], FinishReason.STOP
    else:
        line = [Said("Hello"), Said(" there")], FinishReason.STOP
    for event in make_events(request, line):
        yield event


_FILLINGS: Mapping[str, object] = {
    "string": "Oslo",
    "integer": 7,
    "number": 1.5,
    "boolean": True,
    "null": None,
    "array": [],
}


def fill(schema: Mapping[str, object], root: Mapping[str, object] | None = None) -> object:
    """Some value that a simple schema accepts."""
    root = root or schema
    match schema:
        case {"$ref": str(place)}:
            target: object = root
            for part in place.removeprefix("#/").split("/"):
                assert isinstance(target, Mapping)
                target = target[part]
            assert isinstance(target, Mapping)
            return fill(target, root)
        case {"enum": [first, *_]} | {"const": first}:
            return first
        case {"anyOf": [Mapping() as first, *_]}:
            return fill(first, root)
        case {"properties": Mapping() as properties}:
            return {name: fill(one, root) for name, one in properties.items()}
        case {"type": "array", "items": Mapping() as item}:
            return [fill(item, root)]
        case {"type": str(kind)}:
            return _FILLINGS.get(kind, {})
    return {}


async def go_on(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """Goes on with a text or tokens in two tokens for each choice, and tells the prompt where it is asked to: its words are tokens."""
    words = request.text.split(" ") if request.text is not None else [str(one) for one in (request.token_ids or ()).ids]  # type: ignore[union-attr]
    yield GenerationStarted(request.request_id, len(words), request.sampling.seed or 0)
    if request.echo:
        told = tuple(describe_token(number, one, request.num_top_logprobs) for number, one in enumerate(words))
        yield PromptEchoed(" ".join(words), told if request.logprobs else ())
    for index in range(request.num_choices):
        for number in range(min(2, request.limits.max_tokens)):
            text = f" {words[-1]}{index}" if number == 0 else "."
            top = (describe_token(FIRST_TOKEN + number, text, request.num_top_logprobs),) if request.logprobs else ()
            yield ChoiceDelta(index, (FIRST_TOKEN + number,), text, number, top)
        yield ChoiceFinished(index, FinishReason.STOP, num_tokens=min(2, request.limits.max_tokens))
    yield GenerationCompleted(len(words), 2 * request.num_choices, num_cached_tokens=1)


@dataclass(frozen=True, slots=True)
class Rig:
    """A gateway process, what stands behind it, and clients of it."""

    head: ScriptedHead
    control_plane: ScriptedControlPlane
    gateway: GatewayProcess
    http: httpx.AsyncClient
    client: AsyncOpenAI


@asynccontextmanager
async def run_rig(home: Path, answer: Answer = say_words) -> AsyncIterator[Rig]:
    """A cluster with one model, whose head answers so."""
    head, control_plane = ScriptedHead(answer), ScriptedControlPlane()
    async with head.serve(), control_plane.serve():
        await control_plane.show(make_instance("demo-1", head.address), models=("org/name", MODEL))
        async with (
            run_gateway(control_plane.address, home) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as http,
            AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=30) as client,
        ):
            yield Rig(head, control_plane, gateway, http, client)


def parse_events(text: str) -> list[dict[str, object]]:
    """The payloads of server-sent events; asserts that [DONE] is the last."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def answer_any(request: GenerateRequest) -> AsyncIterator[GenerationEvent]:
    """Conversations with tools, prompts by going on with them."""
    async for event in (use_tools if request.conversation is not None else go_on)(request):
        yield event
