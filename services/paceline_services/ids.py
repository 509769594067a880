"""Names of things: ids that must not be mixed up, and the rules they follow."""

import re
import secrets
from typing import NewType

from paceline_services.errors import InvalidRequestError

NodeId = NewType("NodeId", str)
InstanceId = NewType("InstanceId", str)
ModelId = NewType("ModelId", str)
RequestId = NewType("RequestId", str)
SequenceId = NewType("SequenceId", int)
Epoch = NewType("Epoch", int)
Revision = NewType("Revision", int)

_NODE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


def parse_node_id(text: str) -> NodeId:
    """Lower-case letters, digits and dashes, at most 63, as in a host name; raises InvalidRequestError."""
    if not _NODE_ID.fullmatch(text):
        raise InvalidRequestError(f"node id {text!r} must be 1 to 63 lower-case letters, digits or inner dashes")
    return NodeId(text)


def parse_model_id(text: str) -> ModelId:
    """Letters, digits and ._-/ with no empty or dotted path part, at most 128; raises InvalidRequestError."""
    if not _MODEL_ID.fullmatch(text) or any(part in {"", ".", ".."} for part in text.split("/")):
        raise InvalidRequestError(f"model id {text!r} must be letters, digits, '.', '_', '-' or '/', at most 128")
    return ModelId(text)


def parse_instance_id(text: str) -> InstanceId:
    """Same alphabet as node ids; raises InvalidRequestError."""
    if not _NODE_ID.fullmatch(text):
        raise InvalidRequestError(f"instance id {text!r} must be 1 to 63 lower-case letters, digits or inner dashes")
    return InstanceId(text)


def make_instance_id(model_id: ModelId) -> InstanceId:
    """A readable id that no other instance has: the model's name and 6 random hex digits."""
    name = re.sub(r"[^a-z0-9]+", "-", model_id.split("/")[-1].lower()).strip("-")[:50].strip("-")
    return InstanceId(f"{name or 'model'}-{secrets.token_hex(3)}")


def make_request_id() -> RequestId:
    return RequestId(f"req-{secrets.token_hex(8)}")
