"""A request's prompt: its tokens, how answers to it are read, and what they may be.

Here it is decided in which form a model writes its calls: its own, where its template and mlx-lm know one and what the request asks of it
can be enforced, else the generic one.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline_services.domain.generation import Conversation, GenerateRequest, Reasoning, ToolChoice, ToolChoiceMode
from paceline_services.errors import InvalidRequestError
from paceline_worker.engine.call_formats import GENERIC, MISTRAL_LIST, CallForm, CallGrammar
from paceline_worker.engine.calls import CallParser
from paceline_worker.engine.grammar import (
    Grammar,
    GrammarCompiler,
    LarkRule,
    make_compiler,
    make_json_rule,
    make_regex_rule,
    read_schema,
)
from paceline_worker.engine.harmony import HARMONY, TRANSITIONS, speaks_harmony
from paceline_worker.engine.passages import Kind, Marks, make_machine
from paceline_worker.pipeline.constraint import Rules
from paceline_worker.pipeline.messages import list_tools
from paceline_worker.pipeline.speech import Manner
from paceline_worker.pipeline.templates import ChatTemplate

_AUTO = ToolChoice(ToolChoiceMode.AUTO)


@dataclass(frozen=True, slots=True)
class Prompt:
    """think_end: the tokens that end the model's thinking; empty where it has none."""

    tokens: Sequence[int]
    manner: Manner
    rules: Rules = field(default_factory=Rules)
    think_end: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools that may be called in one answer, in OpenAI's form, and how. names_strict: those whose arguments are enforced."""

    tools: tuple[Mapping[str, Any], ...]
    choice: ToolChoice
    names_strict: frozenset[str]

    @property
    def is_required(self) -> bool:
        return self.choice.mode is ToolChoiceMode.REQUIRED

    def list_enforced(self) -> list[Mapping[str, Any]]:
        """The tools, those with open arguments whose arguments nobody asked to be enforced."""
        return [
            tool if self.is_required or tool["function"]["name"] in self.names_strict else _open(tool)
            for tool in self.tools
        ]


def read_offer(conversation: Conversation) -> Offer:
    """Raises InvalidRequestError for a choice of a tool that is not there."""
    choice = conversation.tool_choice or _AUTO
    tools = list_tools(conversation)
    if choice.mode is ToolChoiceMode.REQUIRED:
        if choice.name:
            tools = [tool for tool in tools if tool["function"]["name"] == choice.name]
        if not tools:
            wanted = f"the tool {choice.name!r}" if choice.name else "a tool"
            raise InvalidRequestError(f"tool_choice requires {wanted}, which tools does not offer")
    if choice.mode is ToolChoiceMode.NONE:
        tools = []
    strict = frozenset(tool.name for tool in conversation.tools if tool.is_strict)
    return Offer(tuple(tools), choice, strict & {str(tool["function"]["name"]) for tool in tools})


class PromptReader:
    """Reads the conversations of requests to one model. tokenizer: mlx-lm's TokenizerWrapper."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._own_form = _read_call_form(tokenizer)
        self._template = ChatTemplate(tokenizer, self._own_form)
        self._transitions = dict(tokenizer.response_transitions)
        self._begins = tokenizer.response_initial_state
        if self._own_form is HARMONY:
            self._transitions, self._begins = dict(TRANSITIONS), Kind.HEADER.value
        self._special = find_special_tokens(tokenizer)
        self._making = threading.Lock()
        self._made: GrammarCompiler | None = None

    @property
    def _compiler(self) -> GrammarCompiler:
        with self._making:
            if self._made is None:
                self._made = make_compiler(self._tokenizer, self._vocab_size, list(self._tokenizer.eos_token_ids))
            return self._made

    def read_raw(self, request: GenerateRequest, tokens: list[int]) -> Prompt:
        """A prompt that is no conversation: everything that follows it is text."""
        marks = Marks()
        end = tokens[-1] if tokens and tokens[-1] not in self._special else None
        manner = Manner(marks, make_machine(marks), hidden=frozenset(self._special), prompt_end=end)
        return Prompt(tokens, manner, Rules(answer=self._compile_format(request)))

    def encode_conversation(self, request: GenerateRequest) -> list[int]:
        """Tokens of a conversation. Raises InvalidRequestError."""
        return self._encode(request)[1]

    def read_conversation(self, request: GenerateRequest) -> Prompt:
        """Raises InvalidRequestError, reason INVALID_OUTPUT_FORMAT for a form that cannot be kept."""
        conversation = _need(request.conversation)
        offer, tokens, form = self._encode(request)
        marks = self._make_marks(form if offer.tools else None)
        goes_on = conversation.continue_final_message
        begins = self._find_beginning(tokens, goes_on=goes_on)
        is_plain = not (offer.tools or marks.has_thinking or marks.response_transitions)
        manner = Manner(
            marks,
            make_machine(marks),
            begins,
            CallParser(form.parse, offer.tools) if offer.tools else None,
            offer.choice.is_single,
            keeps_space=is_plain or goes_on or request.output_format is not None,
            is_formed=request.output_format is not None and not offer.tools,
            hidden=self._list_hidden(marks),
            prompt_end=tokens[-1] if goes_on else None,
        )
        think_start = self._find_think_start(request.reasoning) if begins is Kind.TEXT and not goes_on else None
        rules = self._make_rules(request, offer, form, think_start)
        return Prompt(tokens, manner, rules, tuple(self._tokenizer.think_end_tokens or ()))

    def _encode(self, request: GenerateRequest) -> tuple[Offer, list[int], CallForm]:
        conversation = _need(request.conversation)
        offer = read_offer(conversation)
        if offer.is_required and request.output_format:
            raise InvalidRequestError(
                "output_format cannot be kept by an answer that must call a tool: leave one of them out"
            )
        is_enforced = bool(offer.tools) and bool(offer.is_required or offer.names_strict or request.output_format)
        own = self._own_form
        is_generic = own is None or (is_enforced and not own.is_enforceable)
        rendering = self._template.render(conversation, request.reasoning, is_generic=is_generic)
        return offer, rendering.tokens, GENERIC if own is None or rendering.is_generic else own

    # -- how it is read --

    def _make_marks(self, form: CallForm | None) -> Marks:
        tokenizer = self._tokenizer
        transitions = self._transitions
        if form in {None, GENERIC}:
            transitions = {
                state: [edge for edge in edges if edge[1] != Kind.CALL.value] for state, edges in transitions.items()
            }
        return Marks(
            tokenizer.think_start,
            tokenizer.think_end,
            form.start if form else None,
            form.end if form else None,
            tuple(tokenizer.structural_markers),
            transitions,
        )

    def _find_beginning(self, tokens: Sequence[int], *, goes_on: bool) -> Kind:
        """What the first token belongs to: thinking, where the prompt ends with the mark that begins it."""
        tokenizer = self._tokenizer
        if self._begins:
            return Kind.TEXT if goes_on else Kind(self._begins)
        if not tokenizer.has_thinking:
            return Kind.TEXT
        start = tokenizer.rfind_think_start(tokens)
        if start < 0 or start < tokenizer.rfind_think_end(tokens):
            return Kind.TEXT
        after = tokenizer.decode(list(tokens[start + len(tokenizer.think_start_tokens) :]))
        return Kind.REASONING if goes_on or not after.strip() else Kind.TEXT

    def _find_think_start(self, reasoning: Reasoning | None) -> int | None:
        start: tuple[int, ...] = tuple(self._tokenizer.think_start_tokens or ())
        is_off = reasoning is not None and reasoning.is_enabled is False
        return start[0] if len(start) == 1 and not is_off else None

    def _list_hidden(self, marks: Marks) -> frozenset[int]:
        """Special tokens are no text, but for those that marks are made of."""
        return frozenset(
            token for token, text in self._special.items() if not any(text in mark for mark in marks.all_texts)
        )

    # -- what it may be --

    def _make_rules(self, request: GenerateRequest, offer: Offer, form: CallForm, think_start: int | None) -> Rules:
        if not offer.tools:
            return Rules(answer=self._compile_format(request), think_start=think_start)
        if not (offer.is_required or offer.names_strict or request.output_format):
            return Rules()
        self._check_tools(request, offer)
        is_single = offer.choice.is_single
        grammar = CallGrammar(form, offer.list_enforced(), self._spell_mark, is_single=is_single)
        if offer.is_required or request.output_format:
            answer = self._make_answer_rule(request)
            calls = self._compiler.compile_lark(grammar.write_calls(answer), "tools")
            return Rules(answer=calls, think_start=think_start)
        body = self._compiler.compile_lark(grammar.write_one_body(), "tools")
        return Rules(call=body, is_last=is_single or not form.end)

    def _compile_format(self, request: GenerateRequest) -> Grammar | None:
        wanted = request.output_format
        if wanted is None:
            return None
        if wanted.json_schema is not None:
            return self._compiler.compile_json(wanted.json_schema, "output_format.json_schema")
        return self._compiler.compile_regex(wanted.regex or "", "output_format.regex")

    def _make_answer_rule(self, request: GenerateRequest) -> LarkRule | None:
        """The form of the answer as a part of a larger grammar; checked alone first, so that faults are told of it."""
        wanted = request.output_format
        if wanted is None:
            return None
        self._compile_format(request)
        if wanted.json_schema is not None:
            return make_json_rule(read_schema(wanted.json_schema, "output_format.json_schema"))
        return make_regex_rule(wanted.regex or "")

    def _check_tools(self, request: GenerateRequest, offer: Offer) -> None:
        for index, tool in enumerate(_need(request.conversation).tools):
            if tool.parameters_json and (offer.is_required or tool.name in offer.names_strict):
                self._compiler.compile_json(tool.parameters_json, f"tools.{index}.parameters")

    def _spell_mark(self, mark: str) -> str:
        tokens = self._tokenizer.encode(mark, add_special_tokens=False)
        if len(tokens) == 1 and self._compiler.is_special(tokens[0]):
            return f"<[{tokens[0]}]>"
        return LarkRule.quote(mark)


def find_special_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that are no text, with how they are spelled."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {token: str(entry.content) for token, entry in added.items() if entry.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {**special, **{int(token): str(text) for token, text in named}}


def _read_call_form(tokenizer: Any) -> CallForm | None:
    """The form in which mlx-lm found that a model writes its calls."""
    if speaks_harmony(tokenizer.get_vocab()):
        return HARMONY
    if not tokenizer.has_tool_calling:
        return None
    name = str(getattr(tokenizer, "init_kwargs", {}).get("tool_parser_type", ""))
    if name == "mistral" and "[ARGS]" not in tokenizer.get_vocab():
        name = MISTRAL_LIST
    return CallForm(name, tokenizer.tool_call_start, tokenizer.tool_call_end or "", tokenizer.tool_parser)


def _open(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**tool, "function": {**tool["function"], "parameters": {"type": "object"}}}


def _need(conversation: Conversation | None) -> Conversation:
    if conversation is None:
        raise InvalidRequestError("the request has no conversation")
    return conversation
