"""What travels between the stages of a pipeline: plans of steps, and tensors."""

from dataclasses import dataclass
from enum import StrEnum
from math import prod

from paceline_services.errors import InvalidRequestError
from paceline_services.ids import SequenceId

MAX_AXES = 8


class DType(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT32 = "int32"

    @property
    def size_bytes(self) -> int:
        return 2 if self in {DType.FLOAT16, DType.BFLOAT16} else 4


@dataclass(frozen=True, slots=True)
class TensorHeader:
    dtype: DType
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.size_bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's meaning and its raw bytes (C order, little endian); the two are checked against each other."""

    header: TensorHeader
    content: bytes | memoryview

    def __post_init__(self) -> None:
        if len(self.header.shape) > MAX_AXES or len(self.content) != self.header.size_bytes:
            raise InvalidRequestError(
                f"a tensor {list(self.header.shape)} of {self.header.dtype} came with {len(self.content)} bytes"
            )


@dataclass(frozen=True, slots=True)
class SequenceStep:
    sequence_id: SequenceId
    token_ids: tuple[int, ...]
    start_position: int
    num_logits: int = 0
    num_to_come: int = 0
    is_answer: bool = False


@dataclass(frozen=True, slots=True)
class SequenceFork:
    sequence_id: SequenceId
    source_id: SequenceId
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SequenceTrim:
    sequence_id: SequenceId
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    step: int
    opened: tuple[SequenceId, ...] = ()
    closed: tuple[SequenceId, ...] = ()
    trimmed: tuple[SequenceTrim, ...] = ()
    sequences: tuple[SequenceStep, ...] = ()
    forked: tuple[SequenceFork, ...] = ()
    is_resumed: bool = False


@dataclass(frozen=True, slots=True)
class StepFailure:
    stage: int
    message: str
    sequence_ids: tuple[SequenceId, ...] = ()
