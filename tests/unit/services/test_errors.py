"""Errors cross the wire with class, message, reason and facts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from paceline_services.errors import (
    ContextLengthError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PacelineError,
    UnavailableError,
    from_rpc_error,
    to_trailing_metadata,
)


@dataclass(frozen=True)
class Finished:
    error: PacelineError
    metadata: tuple[tuple[str, Any], ...]

    def code(self) -> grpc.StatusCode:
        return self.error.code

    def details(self) -> str:
        return self.error.message

    def trailing_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self.metadata


KINDS = [ContextLengthError, InvalidRequestError, NotFoundError, OverloadedError, UnavailableError, InternalError]


@pytest.mark.parametrize("kind", KINDS)
def test_error_survives_the_wire(kind: type[PacelineError]) -> None:
    error = kind("what is wrong and what to do", limit="5")
    arrived = from_rpc_error(Finished(error, to_trailing_metadata(error)))
    assert type(arrived) is kind
    assert (arrived.message, arrived.reason, arrived.facts) == (error.message, error.reason, {"limit": "5"})


@pytest.mark.parametrize("metadata", [(), (("grpc-status-details-bin", b"\xff\xff"),)])
def test_status_without_our_details_keeps_its_class(metadata: tuple[tuple[str, Any], ...]) -> None:
    arrived = from_rpc_error(Finished(OverloadedError("full"), metadata))
    assert type(arrived) is OverloadedError


def walk(kind: type[PacelineError]) -> Iterator[type[PacelineError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from walk(child)


def test_every_error_fixes_code_status_and_reason() -> None:
    for kind in walk(PacelineError):
        assert isinstance(kind.code, grpc.StatusCode)
        assert 400 <= kind.http_status < 600
        assert kind.default_reason == kind.default_reason.upper()
