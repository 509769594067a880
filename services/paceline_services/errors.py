"""The one tree of errors, and how it crosses the wire.

    PacelineError
    ├── InvalidRequestError         INVALID_ARGUMENT     400   what the caller sent cannot be used
    │   └── ContextLengthError      INVALID_ARGUMENT     400   prompt and answer do not fit the context
    ├── NotFoundError               NOT_FOUND            404   a model, instance or node that is not there
    ├── ConflictError               ALREADY_EXISTS       409   the name is taken by something else
    ├── PreconditionError           FAILED_PRECONDITION  409   an older epoch, another protocol version
    ├── OverloadedError             RESOURCE_EXHAUSTED   429   a full queue; try again later
    ├── UnavailableError            UNAVAILABLE          503   cannot be served now; message says what is missing
    ├── TimeoutExpiredError         DEADLINE_EXCEEDED    504   it took too long
    ├── ConfigurationError          FAILED_PRECONDITION  500   a setting, file, port or program of this machine
    └── InternalError               INTERNAL             500   a defect of ours

An error carries a machine-readable reason and string facts; on gRPC both travel as google.rpc.ErrorInfo in the status details.
Messages say what is wrong and what to do.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

ERROR_DOMAIN = "paceline"
STATUS_DETAILS_KEY = "grpc-status-details-bin"


class PacelineError(Exception):
    """Root of the tree. reason is UPPER_SNAKE and stable; facts are for programs; the message is for people."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, **facts: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.facts: Mapping[str, str] = facts


class InvalidRequestError(PacelineError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    default_reason = "INVALID_REQUEST"


class ContextLengthError(InvalidRequestError):
    default_reason = "CONTEXT_LENGTH_EXCEEDED"


class NotFoundError(PacelineError):
    code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    default_reason = "NOT_FOUND"


class ConflictError(PacelineError):
    code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409
    default_reason = "ALREADY_EXISTS"


class PreconditionError(PacelineError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409
    default_reason = "FAILED_PRECONDITION"


class OverloadedError(PacelineError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    default_reason = "OVERLOADED"


class UnavailableError(PacelineError):
    code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    default_reason = "UNAVAILABLE"


class TimeoutExpiredError(PacelineError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    default_reason = "DEADLINE_EXCEEDED"


class ConfigurationError(PacelineError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "CONFIGURATION"


class InternalError(PacelineError):
    pass


# CANCELLED without a cancellation of ours: the far side ended while it answered.
_BY_CODE: Mapping[grpc.StatusCode, type[PacelineError]] = {grpc.StatusCode.CANCELLED: UnavailableError} | {
    kind.code: kind
    for kind in (
        InternalError,
        InvalidRequestError,
        NotFoundError,
        ConflictError,
        PreconditionError,
        OverloadedError,
        UnavailableError,
        TimeoutExpiredError,
    )
}


def to_trailing_metadata(error: PacelineError) -> tuple[tuple[str, bytes], ...]:
    """The error's reason and facts as gRPC trailing metadata (google.rpc.Status with one ErrorInfo)."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=dict(error.facts))
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    status.details.add().Pack(info)
    return ((STATUS_DETAILS_KEY, status.SerializeToString()),)


class FinishedCall(Protocol):
    """What grpc.aio.AioRpcError and a finished call have in common."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[Any]: ...


def from_rpc_error(call: FinishedCall) -> PacelineError:
    """The PacelineError that the far side raised; an error of gRPC itself becomes the class of its code."""
    code = call.code()
    message = call.details() or code.name
    info = _read_error_info(call.trailing_metadata() or ())
    kind = _BY_CODE.get(code, InternalError)
    if info is None:
        return kind(message)
    if info.reason == ContextLengthError.default_reason:
        kind = ContextLengthError
    return kind(message, reason=info.reason, **dict(info.metadata))


def has_error_info(call: FinishedCall) -> bool:
    """Whether a server of ours made the status, rather than gRPC itself."""
    return _read_error_info(call.trailing_metadata() or ()) is not None


def _read_error_info(metadata: Iterable[Any]) -> error_details_pb2.ErrorInfo | None:
    for key, value in metadata:
        if key != STATUS_DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except DecodeError:
            return None
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return info
    return None
