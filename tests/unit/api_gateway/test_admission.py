"""So many requests are open and no more, and a refusal says when to come back."""

from contextlib import ExitStack

import pytest

from paceline_api_gateway.generation.admission import OpenRequests, choose_soonest, read_retry_after
from paceline_services.errors import OverloadedError, UnavailableError


def test_client_beyond_its_bound_is_refused_and_others_are_not() -> None:
    requests = OpenRequests(max_total=10, max_per_client=2)
    with requests.admit("one"), requests.admit("one"), requests.admit("two"):
        with pytest.raises(OverloadedError, match="2 requests of this client") as caught, requests.admit("one"):
            pass
        assert caught.value.reason == "CLIENT_TOO_BUSY"


def test_gateway_beyond_its_bound_refuses_everybody() -> None:
    requests = OpenRequests(max_total=2, max_per_client=2)
    with requests.admit("one"), requests.admit("two"):
        with pytest.raises(OverloadedError) as caught, requests.admit("three"):
            pass
        assert caught.value.reason == "GATEWAY_FULL"


def test_ended_requests_make_room_however_they_end() -> None:
    requests = OpenRequests(max_total=1, max_per_client=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), requests.admit("one"):
            raise ZeroDivisionError
    with ExitStack() as stack:
        stack.enter_context(requests.admit("one"))


@pytest.mark.parametrize(
    ("fact", "seconds"),
    [("2.5", 2.5), ("0", 0.0), ("", None), ("soon", None), ("inf", None), ("nan", None), ("-1", None)],
)
def test_retry_after_is_read_where_it_makes_sense(fact: str, seconds: float | None) -> None:
    assert read_retry_after(OverloadedError("full", retry_after_s=fact)) == seconds


def test_error_that_does_not_say_when_has_no_retry_after() -> None:
    assert read_retry_after(UnavailableError("gone")) is None


def test_of_several_refusals_the_soonest_is_passed_on() -> None:
    late, soon = OverloadedError("late", retry_after_s="9"), OverloadedError("soon", retry_after_s="2.5")
    assert choose_soonest([late, soon]) is soon
