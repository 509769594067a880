"""What a failed call to etcd means: was it carried out, does another member or a login help, which error of ours is it.

Pure decisions over gRPC's code and etcd's text; the texts are those of etcd's api/v3rpc/rpctypes/error.go, stable since 3.4.
"""

from enum import Enum, auto

import grpc

from paceline_control_plane.store.interface import LeaseExpiredError, StoreUnavailableError
from paceline_services.errors import (
    ConfigurationError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    PacelineError,
    PreconditionError,
)


class Verdict(Enum):
    """What may be done after a failure."""

    NOT_DONE = auto()
    """Surely not carried out: any call may be tried again, at another member."""
    UNCERTAIN = auto()
    """Perhaps carried out: only what may be repeated is tried again, at another member."""
    NEEDS_LOGIN = auto()
    """Not carried out, because the token is missing, old or unknown to this member: log in, then try again."""
    REFUSED = auto()
    """A definite answer."""


class CallFault(Exception):
    """One try of one call failed. Stays inside the store; to_error gives what callers see."""

    def __init__(self, code: grpc.StatusCode, details: str, verdict: Verdict) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details
        self.verdict = verdict


_NOT_PROPOSED = (
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: too many requests",
    "etcdserver: rpc not supported for learner",
)
_LOGIN_HELPS = (
    "etcdserver: invalid auth token",
    "etcdserver: user name is empty",
    "etcdserver: revision of auth store is old",
)
_PASSING_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}


def not_connected(url: str) -> CallFault:
    """The fault of a call that was never sent, as no connection came about."""
    return CallFault(grpc.StatusCode.UNAVAILABLE, f"no connection to {url}", Verdict.NOT_DONE)


def no_stream_answer(url: str) -> CallFault:
    """The fault of a stream that ended without the answer it was opened for."""
    return CallFault(grpc.StatusCode.UNAVAILABLE, f"{url} ended the stream", Verdict.UNCERTAIN)


def judge(code: grpc.StatusCode, details: str) -> CallFault:
    """The fault that a finished call's status stands for."""
    return CallFault(code, details, _judge(code, details))


def _judge(code: grpc.StatusCode, details: str) -> Verdict:
    if details.startswith(_NOT_PROPOSED):
        return Verdict.NOT_DONE
    if code is grpc.StatusCode.UNAUTHENTICATED or any(text in details for text in _LOGIN_HELPS):
        return Verdict.NEEDS_LOGIN
    if code in _PASSING_CODES:
        return Verdict.UNCERTAIN
    return Verdict.REFUSED


def to_error(fault: CallFault) -> PacelineError:
    """The error of ours for a definite answer."""
    details = fault.details
    if "requested lease not found" in details:
        return LeaseExpiredError("the lease ran out or was revoked: its keys are gone, ask for a new one")
    if "database space exceeded" in details:
        return StoreUnavailableError("etcd's database is full: compact and defragment it, then disarm its alarm")
    if "authentication failed" in details:
        return ConfigurationError("etcd refused user name or password: check both")
    if "authentication is not enabled" in details:
        return PreconditionError("etcd has no users: authentication is not enabled")
    match fault.code:
        case grpc.StatusCode.PERMISSION_DENIED:
            return ConfigurationError(f"etcd does not let this user reach these keys ({details}): grant its role")
        case grpc.StatusCode.UNIMPLEMENTED:
            return ConfigurationError(f"what answers is no etcd of version 3.4 or later ({details}): check --etcd")
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return InvalidRequestError(f"etcd cannot use the request: {details}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return OverloadedError(f"etcd has no room for the request: {details}")
    return InternalError(f"etcd answered {fault}")


def no_login_known() -> ConfigurationError:
    """etcd asks who we are, and nobody told us."""
    return ConfigurationError("etcd asks for a user: give its user name and password")


def unreachable(urls: tuple[str, ...], fault: CallFault) -> StoreUnavailableError:
    """No member answered before the deadline."""
    return StoreUnavailableError(f"no etcd member answers at {', '.join(urls)}: is it running? Last answer: {fault}")


def uncertain(name: str, fault: CallFault) -> StoreUnavailableError:
    """A call that must not be repeated was sent, and its answer is not known."""
    return StoreUnavailableError(f"etcd's answer to {name} was lost: it may have been carried out, look ({fault})")
