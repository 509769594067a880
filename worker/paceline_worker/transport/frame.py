"""One frame on an edge of the pipeline, and its wire form (described in stage.proto).

The header is protobuf; tensors follow it as raw bytes, so an activation is copied once on its way out and never in.
"""

import struct
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from paceline.stage.v1 import stage_pb2
from paceline_services.codec import from_proto, to_proto
from paceline_services.domain.steps import StepFailure, StepPlan, Tensor, TensorHeader
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import Epoch, InstanceId

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class FrameHeader:
    instance_id: InstanceId
    epoch: Epoch
    plan: StepPlan
    tensors: tuple[TensorHeader, ...] = ()
    failure: StepFailure | None = None
    compute_duration_us: int = 0
    kv_capacity_tokens: int = 0
    is_handed_off: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """A header and the contents of the tensors that it describes; without contents where they are handed off."""

    header: FrameHeader
    tensors: tuple[Tensor, ...] = ()


def encode_frame(frame: Frame) -> bytes:
    header = to_proto(frame.header, stage_pb2.FrameHeader).SerializeToString()
    return b"".join((_LENGTH.pack(len(header)), header, *(tensor.content for tensor in frame.tensors)))


def decode_frame(message: bytes) -> Frame:
    """The frame in a message. Its tensors are views into the message. Raises InvalidRequestError when it is malformed."""
    view = memoryview(message)
    if len(view) < _LENGTH.size:
        raise InvalidRequestError(f"a frame of {len(view)} bytes is too short to hold its header")
    (header_bytes,) = _LENGTH.unpack_from(view)
    start = _LENGTH.size + header_bytes
    if start > len(view):
        raise InvalidRequestError(f"a frame of {len(view)} bytes promises a header of {header_bytes}")
    try:
        header = from_proto(stage_pb2.FrameHeader.FromString(bytes(view[_LENGTH.size : start])), FrameHeader)
    except DecodeError as error:
        raise InvalidRequestError("the header of a frame is not a FrameHeader message") from error
    return Frame(header, _slice_tensors(header, view[start:]))


def _slice_tensors(header: FrameHeader, rest: memoryview) -> tuple[Tensor, ...]:
    tensors = []
    for tensor in () if header.is_handed_off else header.tensors:
        tensors.append(Tensor(tensor, rest[: tensor.size_bytes]))
        rest = rest[tensor.size_bytes :]
    if rest:
        raise InvalidRequestError(f"a frame has {len(rest)} bytes more than its tensors need")
    return tuple(tensors)
