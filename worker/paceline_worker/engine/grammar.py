"""Grammars: which tokens may come next so that a text has its form. The only module that speaks llguidance (decision 0009).

A grammar is compiled once and copied for every choice. A matcher reads the tokens that were drawn and says which may follow.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from paceline_services.errors import InvalidRequestError

MAX_SOURCE_BYTES = 256 * 1024
MAX_DEPTH = 64
"""Of the JSON of a schema."""
MAX_PLACES = 256
"""Parts of a schema that are tried to find out where it is wrong."""
KEPT_GRAMMARS = 64
REASON = "INVALID_OUTPUT_FORMAT"
JSON_OPTIONS: Mapping[str, Any] = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""JSON on one line, with at most one space behind a comma or a colon: white space cannot go on for ever."""
LIMITS = LLParserLimits(max_grammar_size=200_000, initial_lexer_fuel=1_000_000, max_lexer_states=50_000)
_FORMATS_WITHOUT_SYNTAX = frozenset({"password", "binary", "path", "file-path", "directory-path"})

Indices = npt.NDArray[np.int64]


class Grammar:
    """A compiled form of text."""

    def __init__(self, prototype: LLMatcher, tokenizer: LLTokenizer) -> None:
        self._prototype = prototype
        self._tokenizer = tokenizer

    def start(self) -> "Matcher":
        """A matcher at the beginning of a text."""
        return Matcher(self._prototype.deep_copy(), self._tokenizer)


class Matcher:
    """Where one text is in its grammar."""

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow but the end."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def list_allowed(self, vocab_size: int) -> Indices:
        """The tokens that may come next, ends of sequence among them where the text may end. Raises InvalidRequestError."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = _list_bits(mask)
        allowed = allowed[: int(np.searchsorted(allowed, vocab_size))]
        if not len(allowed):
            raise InvalidRequestError(
                "no token of this model can go on with the form that was asked for", reason=REASON
            )
        return allowed

    def take(self, token: int) -> None:
        """The text goes on with this token. Raises InvalidRequestError when it may not."""
        self._matcher.consume_token(token)
        self._check()

    def take_text(self, text: str) -> bool:
        """The text goes on so, whatever its tokens are. False where it may not; the matcher is of no use then."""
        tokens = self._tokenizer.tokenize_str(text)
        return not tokens or bool(self._matcher.consume_tokens(tokens))

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequestError(
                f"the form that was asked for cannot be kept: {_first_line(self._matcher.get_error())}", reason=REASON
            )


@dataclass(frozen=True, slots=True)
class LarkRule:
    """Lark text that stands for a part of a grammar (make_json_rule, make_regex_rule)."""

    text: str

    @staticmethod
    def quote(letters: str) -> str:
        """Exactly these letters."""
        return json.dumps(letters)


class GrammarCompiler:
    """Compiles grammars for one vocabulary, and keeps the last ones. Made when it is first needed: see make_compiler. Any thread."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile_json(self, schema_json: str, path: str) -> Grammar:
        """JSON that a schema accepts. Raises InvalidRequestError; path: the request's field that has the schema."""
        schema = read_schema(schema_json, path)
        return self._compile(_json_source(schema), lambda message: self._explain_schema(schema, message, path))

    def compile_regex(self, regex: str, path: str) -> Grammar:
        """Text that a regular expression matches as a whole. Raises InvalidRequestError."""
        _check_size(regex, path)
        return self._compile(
            LLMatcher.grammar_from_regex(regex), lambda message: make_fault(f"{path}: {_last_line(message)}", path)
        )

    def compile_lark(self, lark: str, path: str) -> Grammar:
        """Text of a Lark grammar. Raises InvalidRequestError."""
        _check_size(lark, path)
        return self._compile(
            LLMatcher.grammar_from_lark(lark), lambda message: make_fault(f"{path}: {_first_line(message)}", path)
        )

    def is_special(self, token: int) -> bool:
        """Whether a token is none that a text is spelled with: grammars name it by its number."""
        return bool(self._tokenizer.is_special_token(token))

    def _compile(self, source: str, explain: Callable[[str], InvalidRequestError]) -> Grammar:
        with self._lock:
            if found := self._kept.get(source):
                self._kept.move_to_end(source)
                return found
        prototype = LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)
        if prototype.is_error():
            raise explain(prototype.get_error())
        grammar = Grammar(prototype, self._tokenizer)
        with self._lock:
            self._kept[source] = grammar
            while len(self._kept) > KEPT_GRAMMARS:
                self._kept.popitem(last=False)
        return grammar

    def _explain_schema(self, schema: Any, message: str, path: str) -> InvalidRequestError:
        """Says where a schema is wrong: the deepest part of it that is wrong alone too."""
        pointer, found = "", message
        tries = iter(range(MAX_PLACES))
        part, goes_on = schema, True
        while goes_on:
            goes_on = False
            for name, inner in _list_parts(part):
                if next(tries, None) is None:
                    break
                fault = self._find_fault(_with_definitions(inner, schema))
                if fault:
                    pointer, found, part, goes_on = f"{pointer}/{name}", fault, inner, True
                    break
        return make_fault(f"{path} at {pointer or '/'}: {_last_line(found)}", path)

    def _find_fault(self, schema: Any) -> str:
        matcher = LLMatcher(self._tokenizer, _json_source(schema), log_level=0, limits=LIMITS)
        return str(matcher.get_error()) if matcher.is_error() else ""


def make_compiler(tokenizer: Any, vocab_size: int, end_tokens: Sequence[int]) -> GrammarCompiler:
    """A compiler for a Hugging Face tokenizer; takes about a second. Raises InvalidRequestError for one that is not of their fast kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise make_fault("this model's tokenizer cannot be constrained to a form", "output_format")
    size = max(vocab_size, len(tokenizer))
    return GrammarCompiler(LLTokenizer(_spell_tokenizer(backend), n_vocab=size, eos_token=sorted(end_tokens)))


def make_fault(message: str, path: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason=REASON, path=path)


def read_schema(schema_json: str, path: str) -> Any:
    """A schema as a value. Raises InvalidRequestError when it is no JSON, no schema, too large or too deep."""
    _check_size(schema_json, path)
    try:
        schema = json.loads(schema_json)
    except (ValueError, RecursionError) as error:
        raise make_fault(f"{path} is not JSON: {error}", path) from error
    if not isinstance(schema, dict | bool):
        raise make_fault(f"{path} must be a JSON Schema: an object, not {type(schema).__name__}", path)
    if _is_deeper(schema, MAX_DEPTH):
        raise make_fault(f"{path} is nested more than {MAX_DEPTH} levels deep", path)
    return _without_no_ops(schema)


def make_json_rule(schema: Any) -> LarkRule:
    """JSON that a schema accepts, as a part of a Lark grammar."""
    return LarkRule(f"%json {_json_text(schema)}")


def make_regex_rule(regex: str) -> LarkRule:
    """Text that a regular expression matches, as a part of a Lark grammar."""
    escaped = regex.replace("/", "\\/").replace("\n", "\\n")
    return LarkRule(f"/{escaped}/")


def _list_bits(mask: npt.NDArray[np.uint8]) -> Indices:
    """The places of the bits that are set, lowest first. Most masks have few of them."""
    filled = np.flatnonzero(mask)
    if len(filled) > len(mask) // 8:
        return np.flatnonzero(np.unpackbits(mask, bitorder="little").view(np.bool_))
    rows, bits = np.nonzero(np.unpackbits(mask[filled], bitorder="little").reshape(-1, 8))
    return filled[rows] * 8 + bits


def _json_source(schema: Any) -> str:
    return str(LLMatcher.grammar_from_json_schema(_json_text(schema)))


def _json_text(schema: Any) -> str:
    fields = {"allOf": [schema]} if isinstance(schema, bool) else schema
    return json.dumps({**fields, "x-guidance": dict(JSON_OPTIONS)})


def _spell_tokenizer(backend: Any) -> str:
    """The tokenizer as its file has it."""
    return str(backend.to_str())


def _check_size(source: str, path: str) -> None:
    if len(source) > MAX_SOURCE_BYTES:
        raise make_fault(f"{path} is larger than {MAX_SOURCE_BYTES // 1024} KiB", path)


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth < 1 or any(_is_deeper(one, depth - 1) for one in inner)


def _without_no_ops(schema: Any) -> Any:
    """Without keywords that every value fulfils: names of properties that are strings (zod writes it), formats without a syntax."""
    if isinstance(schema, list):
        return [_without_no_ops(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: inner if name in {"const", "enum", "default", "examples"} else _without_no_ops(inner)
        for name, inner in schema.items()
        if not (name == "propertyNames" and inner in ({}, True, {"type": "string"}))
        and not (name == "format" and isinstance(inner, str) and inner in _FORMATS_WITHOUT_SYNTAX)
    }


def _list_parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas that a schema has, with their places in it."""
    if not isinstance(schema, dict):
        return
    for name in ("$defs", "definitions", "properties", "patternProperties"):
        if isinstance(schema.get(name), dict):
            yield from ((f"{name}/{key}", inner) for key, inner in schema[name].items())
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(schema.get(name), list):
            yield from ((f"{name}/{index}", inner) for index, inner in enumerate(schema[name]))
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield name, schema[name]


def _with_definitions(part: Any, whole: Any) -> Any:
    if not isinstance(part, dict) or not isinstance(whole, dict):
        return part
    shared = {name: whole[name] for name in ("$defs", "definitions") if name in whole}
    return {**part, **{name: inner for name, inner in shared.items() if name not in part}}


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "it is not accepted"


def _last_line(message: str) -> str:
    """Messages about regular expressions are drawings; what is wrong stands below."""
    lines = [line for line in message.strip().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["it is not accepted"])[0].removeprefix("error:").strip()
