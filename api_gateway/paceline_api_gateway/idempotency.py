"""The Idempotency-Key header: the same key and body give the same answer, whichever gateway is asked. Pure.

Nothing is remembered: what an answer depends on beside its body, the seed of its draws, is made from key and request. So a client whose
gateway died sends the request again to any other one. The header is Stripe's, and what OpenAI's clients can be told to send.
"""

import re
from dataclasses import dataclass, replace
from hashlib import blake2b

from paceline_services.clients import hash_request
from paceline_services.domain.generation import GenerateRequest
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import RequestId

KEY_HEADER = "Idempotency-Key"
MAX_KEY_LENGTH = 255
_KEY = re.compile(rf"[\x20-\x7e]{{1,{MAX_KEY_LENGTH}}}")
_SEED_BYTES = 8


@dataclass(frozen=True, slots=True)
class Identity:
    """What is made from key and request, as 64 hex digits; the names under which an answer appears are taken from it."""

    digest: str

    @property
    def request_id(self) -> RequestId:
        return RequestId(f"req-{self.digest[:16]}")

    @property
    def answer_id(self) -> str:
        return self.digest[16:40]

    @property
    def seed(self) -> int:
        return int(self.digest[-2 * _SEED_BYTES :], 16)


def parse_key(text: str | None) -> str | None:
    """The header's value; raises InvalidRequestError when it cannot be one."""
    if text is not None and not _KEY.fullmatch(text):
        raise InvalidRequestError(
            f"{KEY_HEADER} must be 1 to {MAX_KEY_LENGTH} printable ASCII characters", param=KEY_HEADER
        )
    return text


def identify(key: str, request: GenerateRequest) -> Identity:
    """The same for the same key and request; who asks, and under which request id, does not count."""
    content = hash_request(replace(request, request_id=RequestId(""), client_id=""))
    return Identity(blake2b(content, key=blake2b(key.encode(), digest_size=32).digest(), digest_size=32).hexdigest())


def fix_draws(request: GenerateRequest, identity: Identity) -> GenerateRequest:
    """The request with a seed, where it has none of its own."""
    if request.sampling.seed is not None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=identity.seed))
