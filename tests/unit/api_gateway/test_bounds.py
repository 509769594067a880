"""What no protocol bounds is bounded once for all."""

from dataclasses import replace

import pytest

from paceline_api_gateway.generation.bounds import RequestBounds
from paceline_services.domain.generation import (
    Conversation,
    GenerateRequest,
    Limits,
    Message,
    Sampling,
    ToolDefinition,
)
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import ModelId

HELLO = Message("user", "Hello")
REQUEST = GenerateRequest(ModelId("demo"), conversation=Conversation((HELLO,)))
BOUNDS = RequestBounds(max_messages=2, max_tools=2, max_stop_length=10)
TOOL = ToolDefinition("f")


def test_requests_within_the_bounds_pass() -> None:
    full = Conversation((HELLO,) * 2, tools=(TOOL,) * 2)
    BOUNDS.check(replace(REQUEST, conversation=full, limits=Limits(stop=("1234567890",))))
    BOUNDS.check(GenerateRequest(ModelId("demo"), text="Hello"))


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (replace(REQUEST, conversation=Conversation((HELLO,) * 3)), "messages"),
        (replace(REQUEST, conversation=Conversation((HELLO,), tools=(TOOL,) * 3)), "tools"),
        (replace(REQUEST, conversation=Conversation((replace(HELLO, name="n" * 257),))), "name"),
        (replace(REQUEST, conversation=Conversation((HELLO,), tools=(ToolDefinition("n" * 257),))), "name"),
        (replace(REQUEST, limits=Limits(stop=("a", "12345678901"))), "stop"),
        (replace(REQUEST, sampling=Sampling(logit_bias=dict.fromkeys(range(5000), 1.0))), "logit_bias"),
    ],
)
def test_what_is_beyond_is_refused_by_the_name_of_its_field(request_: GenerateRequest, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        BOUNDS.check(request_)
    assert caught.value.facts["param"] == param
