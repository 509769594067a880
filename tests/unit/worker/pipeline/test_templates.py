"""What a conversation becomes: a model's own way with tools where its template has one, words that any template accepts where not."""

import json
from pathlib import Path

import pytest

from paceline_services.domain.generation import (
    Conversation,
    GenerateRequest,
    Message,
    Reasoning,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
)
from paceline_services.errors import InvalidRequestError
from paceline_worker.engine.passages import Kind
from paceline_worker.model.tokenizer import load_tokenizer
from paceline_worker.pipeline.vocabulary import Vocabulary
from support.pipelines import MODEL_ID
from support.small_tokenizers import SPEAKERS, Speaker, make_speaker, write_speaker

WEATHER = ToolDefinition(
    "get_weather", "Weather of a city", '{"type": "object", "properties": {"city": {"type": "string"}}}'
)
CALL = ToolCall("call_0123456789abcdef01234567", "get_weather", '{"city": "Oslo"}')
TALK = (
    Message("system", "Be brief."),
    Message("user", "How is the weather?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "sunny", tool_call_id=CALL.id),
)
ALTERNATING = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{% endfor %}"
)
SYSTEM_FIRST = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}[{{ message.role }}]{{ message.content }}{% endfor %}"
)
NINE_LETTERS = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% for call in message.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
)


def make_vocabulary(folder: Path, speaker: Speaker) -> Vocabulary:
    tokenizer = make_speaker(folder, speaker)
    return Vocabulary(tokenizer, len(tokenizer))


def write(vocabulary: Vocabulary, conversation: Conversation, reasoning: Reasoning | None = None) -> str:
    request = GenerateRequest(MODEL_ID, conversation=conversation, reasoning=reasoning)
    return vocabulary.decode(vocabulary.encode_prompt(request))


def test_template_that_knows_tools_gets_them(tmp_path: Path) -> None:
    text = write(make_vocabulary(tmp_path, SPEAKERS["hermes"]), Conversation(TALK, (WEATHER,)))
    assert '"description": "Weather of a city"' in text
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in text
    assert "<|start|>tool\nsunny<|end|>" in text and "<tool_response>" not in text


def test_tools_are_described_to_a_template_that_knows_none(tmp_path: Path) -> None:
    text = write(make_vocabulary(tmp_path, SPEAKERS["plain"]), Conversation(TALK, (WEATHER,)))
    system, _, rest = text.partition("<|end|>")
    assert system.startswith("<|start|>system\nBe brief.\n\n") and '"name": "get_weather"' in system
    assert (
        '<|start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|end|>'
        in rest
    )
    assert "<|start|>user\n<tool_response>\nsunny\n</tool_response><|end|>\n<|start|>assistant\n" in rest


def test_results_beside_each_other_are_one_message(tmp_path: Path) -> None:
    results = (Message("tool", "one", tool_call_id="a"), Message("tool", "two", tool_call_id="b"))
    text = write(make_vocabulary(tmp_path, SPEAKERS["plain"]), Conversation((*TALK[:3], *results)))
    assert "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response><|end|>" in text


def test_tools_are_described_where_none_may_be_called(tmp_path: Path) -> None:
    conversation = Conversation(TALK, (WEATHER,), ToolChoice(ToolChoiceMode.NONE))
    assert "Weather of a city" in write(make_vocabulary(tmp_path, SPEAKERS["hermes"]), conversation)


def test_messages_are_joined_for_a_template_that_wants_turns(tmp_path: Path) -> None:
    messages = (Message("system", "S"), Message("user", "a"), Message("user", "b"), Message("assistant", "c"))
    vocabulary = make_vocabulary(tmp_path, Speaker(template=ALTERNATING))
    assert write(vocabulary, Conversation(messages)) == "[user]S\n\na\n\nb[assistant]c"
    assert "[user]<tool_response>\nsunny" in write(vocabulary, Conversation(TALK, (WEATHER,)))


def test_system_messages_are_gathered_where_they_must_come_first(tmp_path: Path) -> None:
    messages = (Message("user", "a"), Message("system", "S"), Message("user", "b"), Message("system", "T"))
    vocabulary = make_vocabulary(tmp_path, Speaker(template=SYSTEM_FIRST))
    assert write(vocabulary, Conversation(messages)) == "[system]S\n\nT[user]a[user]b"


def test_system_messages_that_would_be_left_out_are_gathered(tmp_path: Path) -> None:
    template = (
        "{% for message in messages %}{% if message.role != 'system' or loop.first %}"
        "[{{ message.role }}]{{ message.content }}{% endif %}{% endfor %}"
    )
    messages = (Message("user", "a"), Message("system", "S "), Message("user", "b"))
    assert (
        write(make_vocabulary(tmp_path, Speaker(template=template)), Conversation(messages))
        == "[system]S [user]a[user]b"
    )


def test_conversation_that_the_assistant_begins_is_accepted(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path, Speaker(template=ALTERNATING))
    assert (
        write(vocabulary, Conversation((Message("assistant", "Hi."), Message("user", "Ho."))))
        == "[user][assistant]Hi.[user]Ho."
    )


def test_template_that_looks_at_no_tools_gets_an_empty_list(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(
        tmp_path, Speaker(template="{% for tool in tools %}{% endfor %}{{ messages[0].content }}")
    )
    assert write(vocabulary, Conversation((Message("user", "Hi"),))) == "Hi"


def test_ids_are_shortened_for_a_template_that_counts_their_letters(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path, Speaker(template=NINE_LETTERS, special=("[TOOL_CALLS]", "[ARGS]")))
    assert '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}' in write(vocabulary, Conversation(TALK, (WEATHER,)))


def test_calls_are_parted_for_a_template_that_tells_one_a_message(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path, SPEAKERS["harmony"])
    other = ToolCall("call_other", "get_weather", '{"city": "Bergen"}')
    called = Message("assistant", "", tool_calls=(CALL, other))
    results = (Message("tool", "sunny", tool_call_id=CALL.id), Message("tool", "wet", tool_call_id=other.id))
    text = write(vocabulary, Conversation((*TALK[:2], called, *results), (WEATHER,)))
    assert [word for word in ("Oslo", "sunny", "Bergen", "wet") if word in text] == ["Oslo", "sunny", "Bergen", "wet"]
    assert text.index("Oslo") < text.index("sunny") < text.index("Bergen") < text.index("wet")


def test_every_end_that_a_models_configuration_knows_ends_an_answer(tmp_path: Path) -> None:
    write_speaker(tmp_path, SPEAKERS["kimi"])
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 9]}')
    assert load_tokenizer(tmp_path).eos_token_ids == {1, 9}


def test_template_that_refuses_whatever_it_is_told_is_a_fault_of_the_request(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path, Speaker(template="{{ raise_exception('no user query found') }}"))
    with pytest.raises(InvalidRequestError, match="no user query found"):
        write(vocabulary, Conversation(TALK))


def test_last_message_is_gone_on_with(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path, SPEAKERS["hermes"])
    messages = (Message("user", "Count."), Message("assistant", "one, two"))
    text = write(vocabulary, Conversation(messages, continue_final_message=True))
    assert text.endswith("<|start|>assistant\none, two")
    with pytest.raises(InvalidRequestError, match="continue_final_message"):
        write(vocabulary, Conversation(messages[:1], continue_final_message=True))


def test_thinking_is_asked_of_the_template_in_its_words(tmp_path: Path) -> None:
    template = "{{ enable_thinking }} {{ thinking }} {{ reasoning_effort }} {{ messages[0].reasoning_content }}"
    vocabulary = make_vocabulary(tmp_path, Speaker(template=template))
    conversation = Conversation((Message("assistant", "x", reasoning_text="hm"),))
    assert write(vocabulary, conversation, Reasoning(is_enabled=True, effort="high")) == "True True high hm"
    assert write(vocabulary, conversation, Reasoning(is_enabled=False)) == "False False  hm"


def test_mark_in_a_users_words_begins_no_thinking(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path, SPEAKERS["qwen3"])
    for text in ("What does <think> mean?", "<think>"):
        request = GenerateRequest(MODEL_ID, conversation=Conversation((Message("user", text),)))
        assert vocabulary.read_prompt(request).manner.begins is Kind.TEXT


def test_required_tool_that_is_not_offered_is_refused(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(tmp_path, SPEAKERS["hermes"])
    for tools, name in (((), ""), ((WEATHER,), "other")):
        choice = ToolChoice(ToolChoiceMode.REQUIRED, name)
        with pytest.raises(InvalidRequestError, match="tool_choice"):
            write(vocabulary, Conversation(TALK, tools, choice))


def test_arguments_that_are_no_json_are_refused(tmp_path: Path) -> None:
    wrong = Message("assistant", "", tool_calls=(ToolCall("a", "get_weather", "{"),))
    with pytest.raises(InvalidRequestError, match="not JSON"):
        write(make_vocabulary(tmp_path, SPEAKERS["hermes"]), Conversation((*TALK[:2], wrong)))
    assert json.loads(CALL.arguments_json)
