"""The compute thread's promises: what it stamps while it works, and the time that it gives a step."""

import asyncio
import threading

from paceline_worker.faults import Faults
from paceline_worker.pipeline.compute import (
    AFTER_PAUSE_LIMIT_S,
    FIRST_STEPS,
    PAUSE_S,
    SHORTEST_LIMIT_S,
    STRETCH,
    UNMEASURED_LIMIT_S,
    ComputeThread,
    Pace,
)
from paceline_worker.stamps import StampPage, make_page_file


def make_page() -> StampPage:
    with make_page_file() as fd:
        return StampPage(fd)


def test_first_steps_get_time_to_compile_and_later_ones_a_multiple_of_what_was_measured() -> None:
    pace = Pace()
    for _ in range(FIRST_STEPS - 1):
        pace.observe(1, 0.5)
    assert pace.limit_s(1) == UNMEASURED_LIMIT_S
    pace.observe(2, 2.0)
    assert pace.limit_s(1) == STRETCH
    assert pace.limit_s(10) == 10 * STRETCH
    for _ in range(100):
        pace.observe(1, 0.001)
    assert pace.limit_s(1, PAUSE_S) == SHORTEST_LIMIT_S
    assert pace.limit_s(1, PAUSE_S + 1) == AFTER_PAUSE_LIMIT_S


def test_what_one_process_stamps_another_one_reads() -> None:
    with make_page_file() as fd:
        page, other = StampPage(fd), StampPage(fd)
    page.begin_work(2.5)
    page.tick()
    seen = other.read()
    assert (seen.num_begun, seen.num_finished, seen.limit_s, seen.is_working) == (1, 0, 2.5, True)
    assert seen.tick_ns > 0
    page.end_work()
    assert not other.read().is_working


async def test_work_is_stamped_by_the_thread_that_does_it() -> None:
    page = make_page()
    compute = ComputeThread(page)
    going, done = threading.Event(), threading.Event()

    def work() -> str:
        going.set()
        done.wait(10)
        return threading.current_thread().name

    running = asyncio.create_task(compute.run(work, num_tokens=3))
    await asyncio.to_thread(going.wait, 10)
    assert page.read().is_working
    done.set()
    assert (await running).startswith("compute")
    assert page.read().num_finished == 1
    compute.close()


async def test_progress_counts_as_new_work() -> None:
    page = make_page()
    compute = ComputeThread(page)
    await compute.run(compute.note_progress)
    assert (page.read().num_begun, page.read().num_finished) == (2, 2)
    compute.close()


async def test_step_that_shall_hang_is_counted_among_steps_alone() -> None:
    compute = ComputeThread(make_page(), Faults(hang_step=3))
    for num_tokens in (0, 1, 0, 1, 0):
        await compute.run(lambda: None, num_tokens=num_tokens)
    assert compute._faults._num_steps == 2
    compute.close()
