"""Who asks and for what, as far as headers tell: a short name for one client, the same on every gateway, and the request's id. Pure.

Waiting requests of different clients are served in turn, and each may hold only so many open; both need a name, not a person. An API
key names its client; without one the address does that the connection came from, never what a header says of it. Keys go no further
than this module: the name is a hash.
"""

import re
from collections.abc import Mapping
from hashlib import blake2b

from paceline_services.ids import RequestId

_DIGEST_BYTES = 8
_BEARER = "bearer "
_MAX_REQUEST_ID_LENGTH = 128
_UNSHOWN = re.compile(r"[^\x21-\x7e]+")


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


def parse_request_id(text: str | None) -> RequestId:
    """A client's own id of its request, as far as it can be shown; empty where there is none."""
    return RequestId(_UNSHOWN.sub("", text or "")[:_MAX_REQUEST_ID_LENGTH])
