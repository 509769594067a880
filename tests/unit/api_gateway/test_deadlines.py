"""Deadlines end what takes too long, with a reason that fits, and nothing else."""

import asyncio

import pytest

from paceline_api_gateway.generation.deadlines import Deadlines, Phase, parse_timeout
from paceline_services.errors import InvalidRequestError, TimeoutExpiredError, UnavailableError

LONG_S = 1000.0
SHORT_S = 0.01


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


@pytest.mark.parametrize(("text", "timeout_s"), [(None, 60.0), ("60", 60.0), ("0.5", 0.5), (" 7 ", 7.0), ("1e1", 10.0)])
def test_timeout_is_what_the_client_asks_for_else_the_limit(text: str | None, timeout_s: float) -> None:
    assert parse_timeout(text, 60.0) == timeout_s


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "60.1", "nan", "inf", "1,5"])
def test_timeout_that_makes_no_sense_is_refused_by_the_name_of_its_header(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="at most 60") as caught:
        parse_timeout(text, 60.0)
    assert caught.value.facts["param"] == "X-Request-Timeout"


async def test_work_in_time_is_returned() -> None:
    with Deadlines().start(LONG_S) as deadline:
        assert [await deadline.guard(answer), await deadline.guard(answer)] == [42, 42]


@pytest.mark.parametrize("phase", Phase)
async def test_late_work_is_cancelled_and_the_error_says_what_it_was(phase: Phase) -> None:
    with Deadlines().start(SHORT_S) as deadline:
        deadline.phase = phase
        with pytest.raises(TimeoutExpiredError, match=f"0.01 s: it {phase}"):
            await deadline.guard(wait_for_ever)
        with pytest.raises(TimeoutExpiredError):
            await deadline.guard(answer)
    await asyncio.sleep(0)  # nothing of it is left in the task


async def test_deadline_that_passes_between_two_waits_is_seen_by_the_next() -> None:
    with Deadlines().start(SHORT_S) as deadline:
        await asyncio.sleep(SHORT_S)  # its timer is younger
        with pytest.raises(TimeoutExpiredError):
            await deadline.guard(answer)


async def test_cancellation_from_outside_stays_one() -> None:
    with Deadlines().start(LONG_S) as deadline:
        task = asyncio.ensure_future(deadline.guard(wait_for_ever))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancellation_from_outside_wins_over_a_deadline_of_the_same_moment() -> None:
    with Deadlines().start(LONG_S) as deadline:
        task = asyncio.ensure_future(deadline.guard(wait_for_ever))
        await asyncio.sleep(0)
        deadline.bring_forward(0.0, UnavailableError("stop"))
        asyncio.get_running_loop().call_at(0.0, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_guard_works_in_one_task_after_another() -> None:
    with Deadlines().start(SHORT_S) as deadline:
        assert await asyncio.create_task(deadline.guard(answer)) == 42
        with pytest.raises(TimeoutExpiredError):
            await asyncio.create_task(deadline.guard(wait_for_ever))


async def test_inner_timeout_is_not_taken_for_the_deadline() -> None:
    async def give_up_soon() -> None:
        async with asyncio.timeout(SHORT_S):
            await wait_for_ever()

    with Deadlines().start(LONG_S) as deadline:
        with pytest.raises(TimeoutError):
            await deadline.guard(give_up_soon)
        assert await deadline.guard(answer) == 42


async def test_stop_ends_running_requests_and_those_to_come_with_its_own_reason() -> None:
    deadlines = Deadlines()
    with deadlines.start(LONG_S) as deadline:
        task = asyncio.ensure_future(deadline.guard(wait_for_ever))
        await asyncio.sleep(0)
        deadlines.stop_within(SHORT_S)
        with pytest.raises(UnavailableError, match="stopping"):
            await task
    with deadlines.start(LONG_S) as late, pytest.raises(UnavailableError, match="stopping"):
        await late.guard(wait_for_ever)
