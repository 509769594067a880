"""What the head needs of a tokenizer: prompts to tokens, tokens to bytes, ends of sequences.

Wraps mlx-lm's TokenizerWrapper; the only file that knows how tokenizers spell bytes.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from paceline_services.domain.generation import Conversation, GenerateRequest, Message
from paceline_services.errors import InvalidRequestError
from paceline_worker.engine.text import Detokenizer


class Vocabulary:
    """A model's tokenizer and chat template."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._special = frozenset(tokenizer.all_special_ids)

    def encode_prompt(self, request: GenerateRequest) -> list[int]:
        """Tokens of a request's prompt. Raises InvalidRequestError when it has none or they are not of this vocabulary."""
        if request.conversation is not None:
            tokens = self._encode_conversation(request.conversation)
        elif request.text is not None:
            tokens = list(self._tokenizer.encode(request.text))
        elif request.token_ids is not None:
            tokens = list(request.token_ids.ids)
        else:
            raise InvalidRequestError("the request has no prompt: set conversation, text or token_ids")
        if not tokens:
            raise InvalidRequestError("the prompt is empty: it needs at least one token")
        self.check_tokens(tokens)
        return tokens

    def check_tokens(self, tokens: Iterable[int]) -> None:
        """Raise InvalidRequestError when a token is not of this vocabulary."""
        outside = next((token for token in tokens if not 0 <= token < self._vocab_size), None)
        if outside is not None:
            raise InvalidRequestError(f"token {outside} is not in the vocabulary of {self._vocab_size}")

    def is_end(self, token: int) -> bool:
        return token in self._tokenizer.eos_token_ids

    def make_detokenizer(self) -> Detokenizer:
        detokenizer: Detokenizer = self._tokenizer.detokenizer
        return detokenizer

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; a part of a character where tokens divide characters."""
        spelled = self._tokenizer.convert_ids_to_tokens(int(token))
        if spelled is None:
            return b""
        if token in self._special:
            return str(spelled).encode()
        if len(spelled) == 6 and spelled.startswith("<0x") and spelled.endswith(">"):
            return bytes([int(spelled[3:5], 16)])
        bytes_of = _byte_alphabet()
        if "\u2581" not in spelled and all(letter in bytes_of for letter in spelled):
            return bytes(bytes_of[letter] for letter in spelled)
        return str(spelled).replace("\u2581", " ").encode()

    def _encode_conversation(self, conversation: Conversation) -> list[int]:
        if not conversation.messages:
            raise InvalidRequestError("the conversation is empty: it needs at least one message")
        if not self._tokenizer.has_chat_template:
            raise InvalidRequestError("this model has no chat template: send a text prompt instead of messages")
        tools = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": _parse(tool.parameters_json),
                },
            }
            for tool in conversation.tools
        ]
        try:
            return list(
                self._tokenizer.apply_chat_template(
                    [_as_template_message(message) for message in conversation.messages],
                    tools=tools or None,
                    add_generation_prompt=True,
                )
            )
        # Chat templates are programs that come with models: they raise whatever they like about messages they do not accept.
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError) as error:
            raise InvalidRequestError(f"the model's chat template refuses these messages: {error}") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            raise InvalidRequestError(f"the model's chat template refuses these messages: {error}") from error


def _as_template_message(message: Message) -> Mapping[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        fields["name"] = message.name
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _parse(call.arguments_json)},
            }
            for call in message.tool_calls
        ]
    return fields


def _parse(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"a tool's parameters or arguments are not JSON: {error}") from error


@lru_cache(maxsize=1)
def _byte_alphabet() -> Mapping[str, int]:
    """The letters by which byte-level BPE spells the 256 bytes (GPT-2's encoder.py): printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(rest)}
