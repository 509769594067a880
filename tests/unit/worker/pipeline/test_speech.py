"""What a choice says, out of its tokens: thinking, answer and calls, whole, in order, and nothing of the marks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_services.domain.generation import (
    Conversation,
    GenerateRequest,
    Message,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
)
from paceline_worker.engine.passages import Kind
from paceline_worker.pipeline.speech import Speech, Told
from paceline_worker.pipeline.vocabulary import Vocabulary
from support.pipelines import MODEL_ID
from support.small_tokenizers import SPEAKERS, make_speaker

WEATHER = ToolDefinition(
    "get_weather", "", '{"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}'
)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vocabulary]:
    folder: Path = tmp_path_factory.mktemp("speakers")
    made: dict[str, Any] = {name: make_speaker(folder / name, speaker) for name, speaker in SPEAKERS.items()}
    return {name: Vocabulary(tokenizer, len(tokenizer)) for name, tokenizer in made.items()}


def hear(
    vocabulary: Vocabulary,
    text: str,
    *,
    stop: Sequence[str] = (),
    choice: ToolChoice | None = None,
    tools: tuple[ToolDefinition, ...] = (WEATHER,),
    is_cut: bool = False,
) -> tuple[Told, Speech]:
    """All that is told of an answer that a model wrote, token by token."""
    conversation = Conversation((Message("user", "Hi"),), tools, choice)
    prompt = vocabulary.read_prompt(GenerateRequest(MODEL_ID, conversation=conversation))
    speech = Speech(prompt.manner, vocabulary.make_detokenizer(), stop, lambda index: f"call_{index}")
    told = []
    for token in vocabulary.encode_text(text):
        speech.add(token)
        told.append(speech.take())
        if speech.is_over:
            break
    speech.finish(is_cut=is_cut)
    told += speech.take_all()
    calls = [call for one in told for call in one.tool_calls]
    return Told("".join(one.reasoning_text for one in told), "".join(one.text for one in told), calls), speech


def call_weather(index: int = 0, **arguments: Any) -> ToolCallDelta:
    return ToolCallDelta(index, f"call_{index}", "get_weather", json.dumps(arguments, ensure_ascii=False))


OUTPUTS = {
    "hermes": CALL,
    "mistral": '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}',
    "mistral_list": '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
    "qwen_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
    "plain": CALL,
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_call_is_read_in_the_models_own_form(vocabularies: dict[str, Vocabulary], name: str) -> None:
    told, speech = hear(vocabularies[name], OUTPUTS[name])
    assert told == Told("", "", [call_weather(city="Oslo")])
    assert speech.num_calls == 1


def test_models_own_id_of_a_call_is_kept(vocabularies: dict[str, Vocabulary]) -> None:
    text = (
        "Let me look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:3<|tool_call_argument_begin|>"
        '{"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>'
    )
    told, _ = hear(vocabularies["kimi"], text)
    assert told == Told(
        "", "Let me look.", [ToolCallDelta(0, "functions.get_weather:3", "get_weather", '{"city": "Oslo"}')]
    )


def test_several_calls_come_in_order_without_the_space_between_them(vocabularies: dict[str, Vocabulary]) -> None:
    other = CALL.replace("Oslo", "Bergen é 🚴")
    told, _ = hear(vocabularies["hermes"], f"Both.\n{CALL}\n{other}\n")
    assert told == Told("", "Both.\n", [call_weather(city="Oslo"), call_weather(1, city="Bergen é 🚴")])


def test_only_the_first_call_is_told_where_one_may_be(vocabularies: dict[str, Vocabulary]) -> None:
    single = ToolChoice(ToolChoiceMode.AUTO, is_single=True)
    told, speech = hear(vocabularies["hermes"], f"{CALL}\n{CALL}", choice=single)
    assert told.tool_calls == [call_weather(city="Oslo")] and speech.is_over


def test_calls_are_text_where_none_shall_be(vocabularies: dict[str, Vocabulary]) -> None:
    told, _ = hear(vocabularies["hermes"], CALL, choice=ToolChoice(ToolChoiceMode.NONE))
    assert told == Told("", CALL, [])
    told, _ = hear(vocabularies["hermes"], CALL, tools=())
    assert told == Told("", CALL, [])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nnot json\n</tool_call>",
        '<tool_call>{"name": "get_weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": {"city": NaN}}</tool_call>',
        "<tool_call></tool_call>",
        "<tool_call>[]</tool_call>",
        "<tool_call>" + "[" * 3000 + "</tool_call>",
        "a <tool_call",
        "a <tool_call>",
    ],
)
def test_malformed_call_is_the_text_that_the_model_wrote(vocabularies: dict[str, Vocabulary], text: str) -> None:
    told, speech = hear(vocabularies["hermes"], text)
    assert told == Told("", text, []) and speech.num_calls == 0


@pytest.mark.parametrize("cut", range(1, len(CALL)))
def test_call_that_is_cut_off_is_text(vocabularies: dict[str, Vocabulary], cut: int) -> None:
    told, _ = hear(vocabularies["hermes"], f"x{CALL[:cut]}", is_cut=True)
    assert told == Told("", f"x{CALL[:cut]}", [])


def test_call_whose_end_the_model_forgot_is_one(vocabularies: dict[str, Vocabulary]) -> None:
    told, _ = hear(vocabularies["hermes"], CALL.removesuffix("\n</tool_call>"))
    assert told == Told("", "", [call_weather(city="Oslo")])


def test_half_of_a_character_in_arguments_stays_escaped(vocabularies: dict[str, Vocabulary]) -> None:
    told, _ = hear(vocabularies["hermes"], CALL.replace("Oslo", "\\ud83d"))
    assert told.tool_calls[0].arguments_json == '{"city": "\\ud83d"}'


def test_arguments_by_another_name_and_as_text_are_read(vocabularies: dict[str, Vocabulary]) -> None:
    text = '<tool_call>{"name": "get_weather", "parameters": "{\\"city\\": \\"Oslo\\"}"}</tool_call>'
    told, _ = hear(vocabularies["hermes"], text)
    assert told.tool_calls == [call_weather(city="Oslo")]


def test_thinking_is_told_apart_and_counted(vocabularies: dict[str, Vocabulary]) -> None:
    told, speech = hear(vocabularies["qwen3"], f"<think>\nhm, 2</think>\n\nIt is 2.{CALL}")
    assert told == Told("hm, 2", "It is 2.", [call_weather(city="Oslo")])
    assert speech.num_reasoning_tokens == 2 + len(vocabularies["qwen3"].encode_text("\nhm, 2"))


def test_thinking_that_the_prompt_began_is_thinking(vocabularies: dict[str, Vocabulary]) -> None:
    told, _ = hear(vocabularies["thinker"], "hm</think>yes")
    assert told == Told("hm", "yes", [])


def test_harmony_is_read_by_its_channels(vocabularies: dict[str, Vocabulary]) -> None:
    thought = "<|channel|>analysis<|message|>Rain?<|end|><|start|>assistant"
    told, speech = hear(vocabularies["harmony"], f"{thought}<|channel|>final<|message|>It is 5 < 6.")
    assert told == Told("Rain?", "It is 5 < 6.", []) and speech.num_reasoning_tokens > 0
    for header in (
        " to=functions.get_weather<|channel|>commentary json",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json",
    ):
        told, _ = hear(vocabularies["harmony"], f'{thought}{header}<|message|>{{"city": "Oslo"}}')
        assert told == Told("Rain?", "", [call_weather(city="Oslo")])
    told, _ = hear(vocabularies["harmony"], f"{thought}<|channel|>final<|message|>Hi.", tools=())
    assert told == Told("Rain?", "Hi.", [])


def test_stop_text_counts_in_the_answer_alone(vocabularies: dict[str, Vocabulary]) -> None:
    told, speech = hear(vocabularies["qwen3"], f"<think>Oslo</think>O{CALL}slo Oslo and more", stop=["Oslo"])
    assert told == Told("Oslo", "Oslo ", [call_weather(city="Oslo")])
    assert speech.stop_text == "Oslo"


def test_stop_text_in_a_malformed_call_ends_the_answer(vocabularies: dict[str, Vocabulary]) -> None:
    told, speech = hear(vocabularies["hermes"], "<tool_call>an END of it</tool_call>", stop=["END"])
    assert told == Told("", "<tool_call>an ", []) and speech.stop_text == "END"


def test_special_tokens_are_not_told(vocabularies: dict[str, Vocabulary]) -> None:
    told, _ = hear(vocabularies["hermes"], "one<|start|> two<|end|>")
    assert told == Told("", "one two", [])


def test_what_one_token_brings_out_of_order_waits_for_the_next_delta(vocabularies: dict[str, Vocabulary]) -> None:
    conversation = Conversation((Message("user", "Hi"),), (WEATHER,))
    vocabulary = vocabularies["plain"]
    prompt = vocabulary.read_prompt(GenerateRequest(MODEL_ID, conversation=conversation))
    speech = Speech(prompt.manner, OneToken(f"{CALL} done {CALL}"), (), lambda index: f"call_{index}")
    speech.add(50)
    assert speech.take() == Told("", "", [call_weather(city="Oslo")])
    speech.finish(is_cut=False)
    assert speech.take_all() == [Told("", "done ", [call_weather(1, city="Oslo")])]
    assert speech.kind is Kind.TEXT


class OneToken:
    """A detokenizer with a single token, which is a whole text."""

    def __init__(self, text: str) -> None:
        self.last_segment = ""
        self._text = text

    def add_token(self, token: int) -> None:
        self.last_segment = self._text

    def finalize(self) -> None:
        self.last_segment = ""


@given(text=st.text(st.sampled_from("ab<>/think tool_call🚴é\n{}"), max_size=60))
def test_nothing_of_a_text_without_marks_is_lost(vocabularies: dict[str, Vocabulary], text: str) -> None:
    told, _ = hear(vocabularies["hermes"], f"x{text}")
    if "<tool_call>" not in text:
        assert told == Told("", f"x{text}", [])
    assert "\ufffd" not in told.text
