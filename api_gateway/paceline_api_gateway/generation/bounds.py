"""How much one request may ask for, whatever its protocol. Pure.

Protocols check what is theirs by its own name and range; this is what none of them bounds, and what could else be as long as a body may be.
"""

from dataclasses import dataclass

from paceline_services.domain.generation import GenerateRequest
from paceline_services.errors import InvalidRequestError

MAX_NAME_LENGTH = 256
MAX_BIASES = 4096


@dataclass(frozen=True, slots=True)
class RequestBounds:
    """See GatewaySettings."""

    max_messages: int = 4096
    max_tools: int = 512
    max_stop_length: int = 1024

    def check(self, request: GenerateRequest) -> None:
        """Raise InvalidRequestError, with the field as OpenAI names it, for what is beyond."""
        _check_number(
            "stop", max(map(len, request.limits.stop), default=0), self.max_stop_length, "characters in a text"
        )
        _check_number("logit_bias", len(request.sampling.logit_bias), MAX_BIASES, "entries")
        if request.conversation is None:
            return
        messages, tools = request.conversation.messages, request.conversation.tools
        _check_number("messages", len(messages), self.max_messages, "entries")
        _check_number("tools", len(tools), self.max_tools, "entries")
        names = [*(one.name for one in messages), *(tool.name for tool in tools)]
        _check_number("name", max(map(len, names), default=0), MAX_NAME_LENGTH, "characters")


def _check_number(param: str, number: int, most: int, of_what: str) -> None:
    if number > most:
        raise InvalidRequestError(f"{param} has {number} {of_what}: at most {most} are accepted", param=param)
