"""What the head needs of a tokenizer: prompts to tokens, tokens to bytes, ends of sequences.

Wraps mlx-lm's TokenizerWrapper; the only file that knows how tokenizers spell bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from paceline_services.domain.generation import GenerateRequest
from paceline_services.errors import InvalidRequestError
from paceline_worker.engine.text import Detokenizer
from paceline_worker.pipeline.prompt import Prompt, PromptReader, find_special_tokens


class Vocabulary:
    """A model's tokenizer, and its ways with conversations (prompt.py)."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._special = frozenset(find_special_tokens(tokenizer))
        self._reader = PromptReader(tokenizer, vocab_size)

    def read_prompt(self, request: GenerateRequest) -> Prompt:
        """A request's prompt, and what its answers are. Raises InvalidRequestError when it has none, or it cannot be used."""
        if request.conversation is not None:
            prompt = self._reader.read_conversation(request)
            self._check_prompt(prompt.tokens)
            return prompt
        tokens = self._encode_raw(request)
        self._check_prompt(tokens)
        return self._reader.read_raw(request, tokens)

    def encode_prompt(self, request: GenerateRequest) -> list[int]:
        """Tokens of a request's prompt. Raises InvalidRequestError when it has none or they are not of this vocabulary."""
        is_conversation = request.conversation is not None
        tokens = self._reader.encode_conversation(request) if is_conversation else self._encode_raw(request)
        self._check_prompt(tokens)
        return tokens

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a text that stands amid others. Marks and special tokens in it are what they are called."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text, special ones too."""
        return str(self._tokenizer.decode(list(tokens)))

    def check_tokens(self, tokens: Iterable[int]) -> None:
        """Raise InvalidRequestError when a token is not of this vocabulary."""
        outside = next((token for token in tokens if not 0 <= token < self._vocab_size), None)
        if outside is not None:
            raise InvalidRequestError(f"token {outside} is not in the vocabulary of {self._vocab_size}")

    @property
    def size(self) -> int:
        return self._vocab_size

    @property
    def end_token(self) -> int:
        """The token by which a model ends most often."""
        return int(self._tokenizer.eos_token_id)

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

    def _encode_raw(self, request: GenerateRequest) -> list[int]:
        if request.text is not None:
            return list(self._tokenizer.encode(request.text))
        if request.token_ids is not None:
            return list(request.token_ids.ids)
        raise InvalidRequestError("the request has no prompt: set conversation, text or token_ids")

    def _check_prompt(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise InvalidRequestError("the prompt is empty: it needs at least one token")
        self.check_tokens(tokens)


@lru_cache(maxsize=1)
def _byte_alphabet() -> Mapping[str, int]:
    """The letters by which byte-level BPE spells the 256 bytes (GPT-2's encoder.py): printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(rest)}
