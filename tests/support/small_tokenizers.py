"""Small tokenizers that speak as those of well-known models do: their chat template's way with tools and thinking, and their marks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from paceline_worker.model.tokenizer import load_tokenizer
from support.models import write_tiny_tokenizer

_TURNS = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}{{ calls(message) }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{{ opening }}{% endif %}"
)
_TOOLS = "{% if tools %}<|start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>\n{% endif %}"


@dataclass(frozen=True)
class Speaker:
    """What a tokenizer needs to be one of a family's. calls: how its template writes the calls of a message."""

    calls: str = ""
    special: Sequence[str] = ()
    added: Sequence[str] = ()
    opening: str = ""
    template: str = ""

    def write_template(self) -> str:
        if self.template:
            return self.template
        macro = f"{{% macro calls(message) %}}{self.calls}{{% endmacro %}}"
        opening = f"{{% set opening = {json.dumps(self.opening)} %}}"
        return macro + opening + (_TOOLS if self.calls else "") + _TURNS


_HERMES_CALLS = (
    "{% for tool_call in message.tool_calls %}{% set tool_call = tool_call.function %}"
    '\n<tool_call>\n{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
_MISTRAL_CALLS = (
    "{% for call in message.tool_calls %}[TOOL_CALLS]{{ call.function.name }}[ARGS]"
    "{{ call.function.arguments | tojson }}{% endfor %}"
)
_MISTRAL_LIST_CALLS = (
    '{% if message.tool_calls %}[TOOL_CALLS] [{% for call in message.tool_calls %}{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}{% endfor %}]{% endif %}'
)
_QWEN_CODER_CALLS = (
    "{% for call in message.tool_calls %}<tool_call>\n<function={{ call.function.name }}>"
    "{% for k, v in call.function.arguments.items() %}<parameter={{ k }}>\n{{ v }}\n</parameter>{% endfor %}</function>{% endfor %}"
)
_KIMI_CALLS = (
    "{% for call in message.tool_calls %}<|tool_calls_section_begin|><|tool_call_begin|>functions.{{ call.function.name }}:0"
    "<|tool_call_argument_begin|>{{ call.function.arguments | tojson }}<|tool_call_end|><|tool_calls_section_end|>{% endfor %}"
)
_HARMONY = (
    "{% for tool in tools or [] %}type {{ tool.function.name }} = () => any;{% endfor %}{% for message in messages %}"
    "{% if message.tool_calls %}{% set call = message.tool_calls[0].function %}<|start|>assistant to=functions.{{ call.name }}"
    "<|channel|>commentary json<|message|>{{ call.arguments | tojson }}<|call|>{% elif message.role == 'tool' %}"
    "<|start|>functions to=assistant<|channel|>commentary<|message|>{{ message.content }}<|end|>{% else %}"
    "<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endif %}{% endfor %}<|start|>assistant"
)
THINKING = ("<think>", "</think>")
SPEAKERS: Mapping[str, Speaker] = {
    "plain": Speaker(),
    "hermes": Speaker(_HERMES_CALLS, added=("<tool_call>", "</tool_call>")),
    "qwen3": Speaker(_HERMES_CALLS, added=("<tool_call>", "</tool_call>", *THINKING)),
    "thinker": Speaker(_HERMES_CALLS, added=("<tool_call>", "</tool_call>", *THINKING), opening="<think>\n"),
    "mistral": Speaker(_MISTRAL_CALLS, special=("[TOOL_CALLS]", "[ARGS]")),
    "mistral_list": Speaker(_MISTRAL_LIST_CALLS, special=("[TOOL_CALLS]",)),
    "qwen_coder": Speaker(_QWEN_CODER_CALLS, added=("<tool_call>", "</tool_call>")),
    "harmony": Speaker(
        special=("<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|return|>"), template=_HARMONY
    ),
    "kimi": Speaker(
        _KIMI_CALLS,
        special=(
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
        ),
    ),
}


def make_speaker(folder: Path, speaker: Speaker) -> Any:
    """mlx-lm's TokenizerWrapper of such a tokenizer."""
    write_speaker(folder, speaker)
    return load_tokenizer(folder)


def write_speaker(folder: Path, speaker: Speaker) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in speaker.special])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in speaker.added])
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": speaker.write_template()}))
