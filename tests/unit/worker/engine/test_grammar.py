"""Whatever tokens are drawn under a grammar, the text has the form; what cannot be kept is refused, and says where."""

import json
import random
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_services.errors import InvalidRequestError
from paceline_worker.engine.grammar import Grammar, GrammarCompiler, make_compiler
from paceline_worker.model.tokenizer import load_tokenizer
from support.models import write_tiny_tokenizer

PATH = "output_format.json_schema"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b\n", "é"]}, "minItems": 1, "maxItems": 3},
        "note": {"type": ["string", "null"], "maxLength": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"anyOf": [{"type": "boolean"}, {"const": 7}]},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
UNION = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": "x"}, "at": {"type": "string", "format": "date-time"}},
            "required": ["kind", "at"],
        },
        {
            "type": "object",
            "properties": {"kind": {"const": "y"}, "n": {"type": "number", "exclusiveMinimum": 0, "maximum": 10}},
            "required": ["kind", "n"],
        },
    ]
}
BOTH = {
    "allOf": [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-c]{2,4}$"}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"type": "integer", "multipleOf": 3}}, "required": ["b"]},
    ]
}
SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "tree": TREE,
    "union": UNION,
    "all of": BOTH,
    "any object": {"type": "object"},
    "anything": {},
    "array at the top": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
    "record": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}},
    "secret": {"type": "string", "format": "password", "maxLength": 3},
    "old definitions": {"definitions": {"a": {"enum": [1, "1", None]}}, "$ref": "#/definitions/a"},
    "annotated": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "T",
        "type": "string",
        "default": "x",
        "maxLength": 2,
    },
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tiny")
    write_tiny_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def compiler(tokenizer: Any) -> GrammarCompiler:
    return make_compiler(tokenizer, len(tokenizer), [tokenizer.eos_token_id])


def draw(grammar: Grammar, tokenizer: Any, seed: int, most: int = 300) -> tuple[str, bool]:
    """A text of tokens drawn at random among those that are allowed; and whether it came to its end."""
    chance, matcher, tokens = random.Random(seed), grammar.start(), []
    while len(tokens) < most:
        allowed = matcher.list_allowed(len(tokenizer))
        ends = tokenizer.eos_token_id in allowed
        token = tokenizer.eos_token_id if ends and chance.random() < 0.5 else int(chance.choice(allowed))
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(tokens), True
        tokens.append(token)
        matcher.take(token)
        if matcher.is_complete:
            return tokenizer.decode(tokens), True
    return tokenizer.decode(tokens), False


@pytest.mark.parametrize("name", SCHEMAS)
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32))
def test_every_text_drawn_under_a_schema_fulfils_it(
    compiler: GrammarCompiler, tokenizer: Any, name: str, seed: int
) -> None:
    text, is_whole = draw(compiler.compile_json(json.dumps(SCHEMAS[name]), PATH), tokenizer, seed)
    if is_whole:
        assert not re.search(r"\s\s", re.sub(r'"(\\.|[^"\\])*"', '""', text))
        jsonschema_rs.validator_for(SCHEMAS[name]).validate(json.loads(text))


def test_properties_come_in_the_order_of_the_schema(compiler: GrammarCompiler, tokenizer: Any) -> None:
    matcher = compiler.compile_json(json.dumps(PERSON), PATH).start()
    assert not matcher.take_text('{"age": 3')
    matcher = compiler.compile_json(json.dumps(PERSON), PATH).start()
    assert matcher.take_text('{"name": "Jé \\"x\\"", "age": 3, "tags": ["a"]}') and matcher.is_complete


@pytest.mark.parametrize("regex", ["[0-9]{3}-[a-z]+", "(yes|no)", "é+x?", "a/b", "^abc$"])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_every_text_drawn_under_an_expression_matches_it(
    compiler: GrammarCompiler, tokenizer: Any, regex: str, seed: int
) -> None:
    text, is_whole = draw(compiler.compile_regex(regex, "output_format.regex"), tokenizer, seed, most=60)
    assert not is_whole or re.fullmatch(regex, text)


WRONG: list[tuple[Any, Sequence[str]]] = [
    ({"type": "object", "properties": {"a": {"type": "string", "not": {"const": "x"}}}}, ["/properties/a", "not"]),
    ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, ["/items", "uniqueItems"]),
    ({"if": {"type": "string"}, "then": {}}, ["if"]),
    ({"properties": {"a": {"$ref": "#/$defs/gone"}}}, ["/properties/a", "/$defs/gone"]),
    ({"type": "object", "properties": {"a": {"type": "foo"}}}, ["/properties/a", "foo"]),
    ({"type": "string", "pattern": "(?=x)"}, ["look-around"]),
    ({"type": "string", "format": "haiku"}, ["haiku"]),
    ({"type": "integer", "minimum": 4, "maximum": 3}, ["minimum"]),
    ({"type": "object", "required": ["z"], "additionalProperties": False}, ["z"]),
    ({"$defs": {"x": {"type": "string", "not": {}}}, "$ref": "#/$defs/x"}, ["/$defs/x", "not"]),
    ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}, ["oneOf"]),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, ["propertyNames"]),
    ({"enum": []}, ["anyOf"]),
    (False, ["false"]),
    ([], ["object"]),
    ("x", ["object"]),
]


@pytest.mark.parametrize(("schema", "said"), WRONG)
def test_schema_that_cannot_be_kept_is_refused_with_the_place(
    compiler: GrammarCompiler, schema: Any, said: Sequence[str]
) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        compiler.compile_json(json.dumps(schema), PATH)
    assert refusal.value.reason == "INVALID_OUTPUT_FORMAT" and refusal.value.facts == {"path": PATH}
    assert all(part in refusal.value.message for part in said), refusal.value.message


def nest(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nest(depth - 1)} if depth else {"type": "string"}


@pytest.mark.parametrize(
    "source",
    [
        "no json",
        json.dumps(nest(70)),
        "[" * 100_000,
        json.dumps({"enum": ["x" * 300_000]}),
    ],
    ids=["no json", "deep", "deeper", "large"],
)
def test_schema_that_would_take_too_long_is_refused_soon(compiler: GrammarCompiler, source: str) -> None:
    with pytest.raises(InvalidRequestError):
        compiler.compile_json(source, PATH)


@pytest.mark.parametrize(
    "source",
    [
        {"type": "string", "pattern": "((a{1,200}){1,200}b{1,200}){1,200}(c|d(e{1,300})){1,300}"},
        {"type": "string", "pattern": "(a|aa|aaa)*b(.*x){20}"},
        {"type": "object", "properties": {f"p{i}": {"anyOf": [{"const": j} for j in range(40)]} for i in range(100)}},
        {"type": "array", "items": {"type": "string", "maxLength": 5000}, "minItems": 3000, "maxItems": 9000},
    ],
    ids=["nested counts", "ambiguous", "many properties", "many items"],
)
def test_schema_that_looks_explosive_is_refused_or_bounded(
    compiler: GrammarCompiler, tokenizer: Any, source: Any
) -> None:
    began = time.thread_time()
    with suppress(InvalidRequestError):
        draw(compiler.compile_json(json.dumps(source), PATH), tokenizer, 1, most=20)
    assert time.thread_time() - began < 5


@pytest.mark.parametrize("regex", ["(", "(?=a)b", "(a)\\1", "x" * 300_000])
def test_expression_that_cannot_be_kept_is_refused(compiler: GrammarCompiler, regex: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        compiler.compile_regex(regex, "output_format.regex")
    assert refusal.value.facts == {"path": "output_format.regex"}


def test_token_that_is_not_allowed_is_refused(compiler: GrammarCompiler, tokenizer: Any) -> None:
    matcher = compiler.compile_regex("a+", "output_format.regex").start()
    with pytest.raises(InvalidRequestError):
        matcher.take(tokenizer.encode("z")[0])


def test_end_of_sequence_is_allowed_where_the_text_may_end_alone(compiler: GrammarCompiler, tokenizer: Any) -> None:
    matcher = compiler.compile_regex("ab*", "output_format.regex").start()
    assert tokenizer.eos_token_id not in matcher.list_allowed(len(tokenizer))
    assert matcher.take_text("a")
    assert tokenizer.eos_token_id in matcher.list_allowed(len(tokenizer)) and not matcher.is_complete


def test_tokens_beyond_the_tokenizers_are_never_allowed(tokenizer: Any) -> None:
    padded = make_compiler(tokenizer, len(tokenizer) + 40, [tokenizer.eos_token_id])
    matcher = padded.compile_json("{}", PATH).start()
    assert np.all(matcher.list_allowed(len(tokenizer) + 40) < len(tokenizer))
