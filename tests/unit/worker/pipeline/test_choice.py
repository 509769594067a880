"""A choice keeps the form that was asked for whatever the logits say, and is the same again from its tokens alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    Conversation,
    FinishReason,
    GenerateRequest,
    Limits,
    Message,
    OutputFormat,
    Reasoning,
    Sampling,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
)
from paceline_services.errors import InvalidRequestError
from paceline_worker.engine.sampling import Logits
from paceline_worker.pipeline.choice import Choice
from paceline_worker.pipeline.vocabulary import Vocabulary
from support.pipelines import MODEL_ID
from support.small_tokenizers import SPEAKERS, make_speaker

CITY = {"enum": ["Oslo", "Bergen"]}
PARAMETERS = {
    "type": "object",
    "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = ToolDefinition("get_weather", "", json.dumps(PARAMETERS))
CLOCK = ToolDefinition("get_time", "", '{"type": "object", "properties": {}, "additionalProperties": false}')
TALK = Conversation((Message("user", "Hi"),))
REQUIRED = Conversation(TALK.messages, (WEATHER, CLOCK), ToolChoice(ToolChoiceMode.REQUIRED))
ASK = GenerateRequest(MODEL_ID, conversation=TALK, limits=Limits(max_tokens=400))
VERDICT = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
JUDGE = replace(ASK, output_format=OutputFormat(json_schema=json.dumps(VERDICT)))
Events = list[ChoiceDelta | ChoiceFinished]
Think = Callable[[int], Logits]


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vocabulary]:
    folder: Path = tmp_path_factory.mktemp("speakers")
    made: dict[str, Any] = {name: make_speaker(folder / name, speaker) for name, speaker in SPEAKERS.items()}
    return {name: Vocabulary(tokenizer, len(tokenizer)) for name, tokenizer in made.items()}


def begin(vocabulary: Vocabulary, request: GenerateRequest, *, seed: int = 5) -> Choice:
    return Choice(request, 0, seed, vocabulary.read_prompt(request), request.limits.max_tokens, vocabulary)


def run(choice: Choice, think: Think) -> Events:
    """All events of a choice; think makes the logits of the token of an index."""
    events: Events = []
    while not choice.finished:
        events += choice.accept(think(len(choice.tokens)))
    return events


def at_random(vocabulary: Vocabulary, seed: int) -> Think:
    return lambda index: np.random.default_rng([seed, index]).normal(0, 3, vocabulary.size).astype(np.float32)


def wants(vocabulary: Vocabulary, *texts: str) -> Think:
    """A model that wants to write texts and then its end, and does not notice what else it had to write."""
    tokens = [*(token for text in texts for token in vocabulary.encode_text(text)), vocabulary.end_token]

    def think(index: int) -> Logits:
        logits = np.zeros(vocabulary.size, np.float32)
        logits[vocabulary.end_token] = 1
        logits[tokens[min(index, len(tokens) - 1)]] = 10
        return logits

    return think


def tell(events: Events) -> tuple[str, str, list[ToolCallDelta], FinishReason]:
    deltas = [event for event in events if isinstance(event, ChoiceDelta)]
    finished = events[-1]
    assert isinstance(finished, ChoiceFinished)
    calls = [call for delta in deltas for call in delta.tool_calls]
    reasoning = "".join(delta.reasoning_text for delta in deltas)
    return reasoning, "".join(delta.text for delta in deltas), calls, finished.finish_reason


def check_calls(calls: Sequence[ToolCallDelta], parameters: Mapping[str, Any]) -> None:
    assert calls and [call.index for call in calls] == list(range(len(calls)))
    for call in calls:
        jsonschema_rs.validator_for(parameters[call.name]).validate(json.loads(call.arguments_json))


SCHEMAS = {tool.name: json.loads(tool.parameters_json) for tool in (WEATHER, CLOCK)}


@pytest.mark.parametrize(
    "name", ["hermes", "mistral", "mistral_list", "kimi", "plain", "qwen_coder", "thinker", "qwen3"]
)
def test_required_call_is_made_in_every_form_whatever_the_model_wants(
    vocabularies: dict[str, Vocabulary], name: str
) -> None:
    vocabulary = vocabularies[name]
    no_thoughts = Reasoning(is_enabled=False, max_tokens=5)
    for seed in range(4):
        request = replace(ASK, conversation=REQUIRED, sampling=Sampling(1.0, seed=seed), reasoning=no_thoughts)
        _, text, calls, reason = tell(run(begin(vocabulary, request, seed=seed), at_random(vocabulary, seed)))
        assert reason is FinishReason.TOOL_CALLS and text == ""
        check_calls(calls, SCHEMAS)


@pytest.mark.parametrize("name", ["hermes", "mistral", "mistral_list", "kimi", "plain"])
def test_named_tool_is_called_once_where_one_call_may_be(vocabularies: dict[str, Vocabulary], name: str) -> None:
    vocabulary = vocabularies[name]
    choice = ToolChoice(ToolChoiceMode.REQUIRED, "get_time", is_single=True)
    request = replace(ASK, conversation=replace(REQUIRED, tool_choice=choice))
    _, text, calls, reason = tell(run(begin(vocabulary, request), at_random(vocabulary, 3)))
    assert [(call.name, call.arguments_json) for call in calls] == [("get_time", "{}")]
    assert (text, reason) == ("", FinishReason.TOOL_CALLS)


@pytest.mark.parametrize("name", ["hermes", "mistral", "kimi", "plain"])
def test_strict_tool_is_free_to_be_called_but_only_as_its_schema_says(
    vocabularies: dict[str, Vocabulary], name: str
) -> None:
    vocabulary = vocabularies[name]
    tools = (replace(WEATHER, is_strict=True), replace(CLOCK, is_strict=True))
    conversation = Conversation(TALK.messages, tools)
    request = replace(ASK, conversation=conversation)
    assert tell(run(begin(vocabulary, request), wants(vocabulary, "No <call> at all.")))[1:] == (
        "No <call> at all.",
        [],
        FinishReason.STOP,
    )
    mark = {"mistral": "[TOOL_CALLS]", "kimi": "<|tool_calls_section_begin|>"}.get(name, "<tool_call>")
    for seed in range(3):
        choice = begin(vocabulary, request)
        choice.replay(vocabulary.encode_text(f"Hm.{mark}"))
        while not choice.finished and choice.is_constrained:
            choice.accept(at_random(vocabulary, seed)(len(choice.tokens)))
        _, text, calls, reason = run_tokens(vocabulary, request, [*choice.tokens, vocabulary.end_token])
        assert (text, reason) == ("Hm.", FinishReason.TOOL_CALLS)
        check_calls(calls, SCHEMAS)


def run_tokens(
    vocabulary: Vocabulary, request: GenerateRequest, tokens: Sequence[int]
) -> tuple[str, str, list[ToolCallDelta], FinishReason]:
    """What a choice tells whose tokens are these."""
    choice = begin(vocabulary, replace(request, sampling=Sampling()))
    logits = [np.zeros(vocabulary.size, np.float32) for _ in tokens]
    for row, token in zip(logits, tokens, strict=True):
        row[token] = 10
    events: Events = []
    for row in logits:
        if not choice.finished:
            events += choice.accept(row)
    return tell(events)


def test_json_ends_when_it_is_whole(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["plain"]
    for seed in range(5):
        request = replace(JUDGE, limits=Limits(max_tokens=100, ignore_eos=True), sampling=Sampling(1.5, seed=seed))
        reasoning, text, _, reason = tell(run(begin(vocabulary, request, seed=seed), at_random(vocabulary, seed)))
        assert json.loads(text) in ({"ok": True}, {"ok": False})
        assert (reasoning, reason) == ("", FinishReason.STOP)


def test_bias_and_penalties_cannot_break_the_form(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["plain"]
    sampling = Sampling(
        1.0, top_k=3, min_p=0.2, repetition_penalty=1.5, logit_bias={vocabulary.end_token: 100, 40: 100}
    )
    _, text, _, _ = tell(run(begin(vocabulary, replace(JUDGE, sampling=sampling)), at_random(vocabulary, 1)))
    assert json.loads(text)["ok"] in {True, False}


@pytest.mark.parametrize(
    ("name", "wanted"), [("thinker", "so {}!</think>\n\nNo."), ("qwen3", "<think>so {}!</think>No.")]
)
def test_thinking_is_free_and_the_answer_has_the_form(
    vocabularies: dict[str, Vocabulary], name: str, wanted: str
) -> None:
    vocabulary = vocabularies[name]
    reasoning, text, _, reason = tell(run(begin(vocabulary, JUDGE), wants(vocabulary, wanted)))
    assert reasoning == "so {}!" and "ok" in json.loads(text) and reason is FinishReason.STOP


@pytest.mark.parametrize("name", ["thinker", "qwen3", "hermes"])
def test_marks_within_an_answer_of_a_form_are_letters(vocabularies: dict[str, Vocabulary], name: str) -> None:
    vocabulary = vocabularies[name]
    quote = {
        "type": "object",
        "properties": {"q": {"type": "string"}},
        "required": ["q"],
        "additionalProperties": False,
    }
    request = replace(ASK, output_format=OutputFormat(json_schema=json.dumps(quote)))
    pieces = ['{"q": "a <', "think> b <", "/think> <tool_", 'call> <"}']  # letters, not the tokens that are marks
    thoughts = ["x</think>"] if name == "thinker" else []
    _, text, _, _ = tell(run(begin(vocabulary, request), wants(vocabulary, *thoughts, *pieces)))
    assert text == "".join(pieces)


def test_model_that_shall_not_think_does_not_begin(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["qwen3"]
    request = replace(JUDGE, reasoning=Reasoning(is_enabled=False))
    reasoning, text, _, _ = tell(run(begin(vocabulary, request), wants(vocabulary, "<think>so</think>No.")))
    assert reasoning == "" and "ok" in json.loads(text)


def test_answer_of_a_form_may_be_a_call_where_tools_are_offered(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["hermes"]
    request = replace(JUDGE, conversation=Conversation(TALK.messages, (WEATHER,)))
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    _, text, calls, reason = tell(run(begin(vocabulary, request), wants(vocabulary, call)))
    assert text == "" and calls[0].name == "get_weather" and reason is FinishReason.TOOL_CALLS
    _, text, calls, reason = tell(run(begin(vocabulary, request), wants(vocabulary, '{"ok": true}')))
    assert json.loads(text) == {"ok": True} and not calls and reason is FinishReason.STOP


def test_thinking_ends_after_as_many_tokens_as_it_may_take(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["thinker"]
    request = replace(ASK, reasoning=Reasoning(max_tokens=7), limits=Limits(max_tokens=30))
    choice = begin(vocabulary, request)
    reasoning, text, _, _ = tell(run(choice, wants(vocabulary, "a" * 60)))
    assert reasoning == "a" * 7 and text == "a" * 22 and choice.num_reasoning_tokens == 8


def test_ids_of_calls_differ_by_prompt_choice_and_place_alone(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["hermes"]
    call = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'

    def list_ids(conversation: Conversation, index: int = 0) -> list[str]:
        request = replace(ASK, conversation=conversation)
        choice = Choice(request, index, 5, vocabulary.read_prompt(request), 400, vocabulary)
        return [one.id for one in tell(run(choice, wants(vocabulary, call + call)))[2]]

    conversation = Conversation(TALK.messages, (CLOCK,))
    longer = Conversation((*TALK.messages, *TALK.messages), (CLOCK,))
    ids = [*list_ids(conversation), *list_ids(longer), *list_ids(conversation, 1)]
    assert len(set(ids)) == 6 and list_ids(conversation) == ids[:2]
    assert all(one.startswith("call_") and len(one) == 29 for one in ids)


@pytest.mark.parametrize("name", ["plain", "thinker", "kimi", "mistral"])
@pytest.mark.parametrize("kind", ["free", "required", "strict", "form"])
def test_choice_goes_on_from_its_tokens_as_if_it_had_not_been_cut(
    vocabularies: dict[str, Vocabulary], name: str, kind: str
) -> None:
    vocabulary = vocabularies[name]
    tools = (replace(WEATHER, is_strict=kind == "strict"), CLOCK)
    choice = ToolChoice(ToolChoiceMode.REQUIRED) if kind == "required" else None
    request = replace(
        JUDGE if kind == "form" else ASK,
        conversation=Conversation(TALK.messages, tools, choice),
        sampling=Sampling(1.0, seed=5),
        reasoning=Reasoning(max_tokens=6),
        limits=Limits(max_tokens=60, stop=("zz",)),
    )
    call = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call> é🚴 zz'
    think = wants(vocabulary, f"hmhmhmhmhm {call}") if kind in {"free", "strict"} else at_random(vocabulary, 2)
    whole = begin(vocabulary, request)
    events = run(whole, think)
    for cut in range(0, len(whole.tokens), 3):
        rest = begin(vocabulary, request)
        rest.replay(whole.tokens[:cut])
        told = [
            e
            for e in events
            if isinstance(e, ChoiceDelta) and e.first_token_index + len(e.token_ids) <= cut and e.token_ids
        ]
        assert [*told, *run(rest, think)] == events
        assert rest.num_reasoning_tokens == whole.num_reasoning_tokens


def test_tokens_of_an_earlier_call_that_have_not_the_form_are_refused(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["plain"]
    with pytest.raises(InvalidRequestError):
        begin(vocabulary, JUDGE).replay(vocabulary.encode_text("No."))


def test_guesses_are_taken_as_long_as_they_have_the_form(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["plain"]
    think = wants(vocabulary, '{"ok": true}')
    tokens = vocabulary.encode_text('{"ok": true}')
    choice = begin(vocabulary, JUDGE)
    guesses = [*tokens[:3], tokens[0], *tokens[4:]]
    rows = np.stack([think(index) for index in range(len(guesses) + 1)])
    choice.accept_rows(rows, guesses)
    assert choice.tokens == tokens[:4] and not choice.finished
    choice.accept_rows(np.stack([think(index) for index in range(4, len(tokens) + 1)]), tokens[4:])
    assert choice.finished and choice.tokens == tokens


def test_output_form_and_required_call_exclude_each_other(vocabularies: dict[str, Vocabulary]) -> None:
    with pytest.raises(InvalidRequestError, match="output_format"):
        begin(vocabularies["plain"], replace(JUDGE, conversation=REQUIRED))


def test_schema_of_a_tool_that_cannot_be_obeyed_is_refused_with_its_place(vocabularies: dict[str, Vocabulary]) -> None:
    wrong = ToolDefinition("f", "", '{"type": "object", "properties": {"a": {"not": {}}}}', is_strict=True)
    with pytest.raises(InvalidRequestError) as refusal:
        begin(vocabularies["plain"], replace(ASK, conversation=Conversation(TALK.messages, (CLOCK, wrong))))
    assert refusal.value.facts["path"] == "tools.1.parameters" and "/properties/a" in refusal.value.message
    begin(
        vocabularies["plain"],
        replace(ASK, conversation=Conversation(TALK.messages, (replace(wrong, is_strict=False),))),
    )
