"""The same key and body give the same answer from any gateway."""

from dataclasses import replace

import pytest

from paceline_api_gateway.idempotency import fix_draws, identify, parse_key
from paceline_services.domain.generation import Conversation, GenerateRequest, Limits, Message, Sampling
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import ModelId, RequestId

REQUEST = GenerateRequest(
    ModelId("demo"),
    RequestId("one"),
    conversation=Conversation((Message("user", "Hello"),)),
    sampling=Sampling(temperature=0.8, logit_bias={5: 1.0, 7: -1.0}),
    client_id="a",
)


def test_identity_is_the_same_in_every_process_and_for_whoever_asks() -> None:
    identity = identify("key-1", REQUEST)
    biases = replace(REQUEST.sampling, logit_bias={7: -1.0, 5: 1.0})
    assert identify("key-1", replace(REQUEST, request_id=RequestId("two"), client_id="b", sampling=biases)) == identity
    assert identity.request_id == "req-11ec98dbbc0a1136" and identity.seed == 15263690423364037859


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, conversation=Conversation((Message("user", "Bye"),))),
        replace(REQUEST, limits=Limits(max_tokens=5)),
        replace(REQUEST, num_choices=2),
        replace(REQUEST, model_id=ModelId("other")),
    ],
)
def test_other_body_or_other_key_is_another_answer(other: GenerateRequest) -> None:
    identity = identify("key-1", REQUEST)
    for another in (identify("key-1", other), identify("key-2", REQUEST)):
        assert another.seed != identity.seed and another.request_id != identity.request_id
        assert another.answer_id != identity.answer_id


def test_seed_is_set_where_the_request_has_none() -> None:
    identity = identify("key-1", REQUEST)
    assert fix_draws(REQUEST, identity).sampling == replace(REQUEST.sampling, seed=identity.seed)
    seeded = replace(REQUEST, sampling=Sampling(seed=0))
    assert fix_draws(seeded, identify("key-1", seeded)) is seeded
    assert 0 <= identity.seed < 2**64


@pytest.mark.parametrize("text", ["a", " ", "~" * 255, "0e8b1c52-7a5c-4a0e-9d0e-1f4c1f6f7a11"])
def test_printable_ascii_is_a_key(text: str) -> None:
    assert parse_key(text) == text


@pytest.mark.parametrize("text", ["", "a" * 256, "schlüssel", "a\tb", "a\n"])
def test_anything_else_is_refused_by_the_name_of_its_header(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="255") as caught:
        parse_key(text)
    assert caught.value.facts["param"] == "Idempotency-Key"


def test_no_key_is_none() -> None:
    assert parse_key(None) is None
