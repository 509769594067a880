"""Who asks, as far as a gateway can tell: a short name for one client, the same on every gateway. Pure.

Waiting requests of different clients are served in turn, and each may hold only so many open; both need a name, not a person. An API
key names its client; without one the address does that the connection came from, never what a header says of it. Keys go no further
than this module: the name is a hash.
"""

from collections.abc import Mapping
from hashlib import blake2b

_DIGEST_BYTES = 8
_BEARER = "bearer "


def name_client(headers: Mapping[str, str], peer: str) -> str:
    """16 hex digits for the client with these headers (by lower-case names) at this address (without its port)."""
    key = read_key(headers)
    kind, text = (b"key", key) if key else (b"address", peer)
    return blake2b(text.encode("utf-8", "replace"), digest_size=_DIGEST_BYTES, person=kind).hexdigest()


def read_key(headers: Mapping[str, str]) -> str:
    """The API key in OpenAI's header (Authorization: Bearer ...) or Claude's (x-api-key); empty when there is none."""
    authorization = headers.get("authorization", "").strip()
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    return headers.get("x-api-key", "").strip()
