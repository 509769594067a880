"""The wire form's promises: what was encoded is decoded, and nothing malformed gets in."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_services.domain.steps import (
    DType,
    SequenceStep,
    SequenceTrim,
    StepFailure,
    StepPlan,
    Tensor,
    TensorHeader,
)
from paceline_services.errors import InvalidRequestError
from paceline_services.ids import Epoch, InstanceId, SequenceId
from paceline_worker.transport.frame import Frame, FrameHeader, decode_frame, encode_frame

ids = st.integers(0, 2**63).map(SequenceId)
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple)
plans = st.builds(
    StepPlan,
    step=st.integers(0, 2**63),
    opened=st.lists(ids, max_size=3).map(tuple),
    closed=st.lists(ids, max_size=3).map(tuple),
    trimmed=st.lists(st.builds(SequenceTrim, ids, st.integers(0, 2**32 - 1)), max_size=2).map(tuple),
    sequences=st.lists(st.builds(SequenceStep, ids, tokens, st.integers(0, 2**32 - 1)), max_size=3).map(tuple),
)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
failures = st.none() | st.builds(
    StepFailure, st.integers(0, 9), st.text(max_size=20), st.lists(ids, max_size=2).map(tuple)
)


def make_tensor(dtype: DType, shape: tuple[int, ...]) -> Tensor:
    header = TensorHeader(dtype, shape)
    return Tensor(header, bytes(index % 251 for index in range(header.size_bytes)))


@given(plans, st.lists(st.builds(make_tensor, st.sampled_from(DType), shapes), max_size=3), failures)
def test_frame_survives_the_wire(plan: StepPlan, tensors: list[Tensor], failure: StepFailure | None) -> None:
    headers = tuple(tensor.header for tensor in tensors)
    frame = Frame(FrameHeader(InstanceId("i"), Epoch(7), plan, headers, failure, 12), tuple(tensors))
    decoded = decode_frame(encode_frame(frame))
    assert decoded.header == frame.header
    assert [bytes(tensor.content) for tensor in decoded.tensors] == [bytes(tensor.content) for tensor in tensors]


@given(plans, st.lists(st.builds(make_tensor, st.sampled_from(DType), shapes), max_size=3))
def test_frame_that_is_handed_off_tells_of_tensors_that_do_not_follow(plan: StepPlan, tensors: list[Tensor]) -> None:
    headers = tuple(tensor.header for tensor in tensors)
    frame = Frame(FrameHeader(InstanceId("i"), Epoch(7), plan, headers, is_handed_off=True))
    assert decode_frame(encode_frame(frame)) == frame
    if any(tensor.content for tensor in tensors):
        with pytest.raises(InvalidRequestError, match="more than its tensors need"):
            decode_frame(encode_frame(Frame(frame.header, tuple(tensors))))


def make_frame_bytes() -> bytes:
    header = TensorHeader(DType.FLOAT32, (1, 2, 3))
    tensor = Tensor(header, np.arange(6, dtype=np.float32).tobytes())
    return encode_frame(Frame(FrameHeader(InstanceId("i"), Epoch(1), StepPlan(1), (header,)), (tensor,)))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x01\x00",
        struct.pack("<I", 999) + b"short",
        struct.pack("<I", 3) + b"\xff\xff\xff",
        make_frame_bytes()[:-1],
        make_frame_bytes() + b"x",
    ],
    ids=["empty", "no header", "long header", "not protobuf", "tensor cut", "bytes left over"],
)
def test_malformed_frame_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        decode_frame(message)


def test_unknown_dtype_is_refused() -> None:
    frame = bytearray(make_frame_bytes())
    at = frame.index(bytes([0x08, 0x01, 0x12, 0x03]))
    frame[at + 1] = 99
    with pytest.raises(InvalidRequestError, match="dtype"):
        decode_frame(bytes(frame))


def test_tensor_with_too_many_axes_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        Tensor(TensorHeader(DType.INT32, (1,) * 9), bytes(4))
