"""The scheduler's promises: every token is planned once and in order, prompts are cut as mlx-lm cuts them, nothing is forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_services.domain.steps import StepPlan
from paceline_services.errors import OverloadedError
from paceline_services.ids import SequenceId
from paceline_worker.pipeline.scheduler import Scheduler, SchedulerLimits


def plan_of(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.next_plan()
    assert plan is not None
    return plan


def test_nothing_to_do_is_no_plan() -> None:
    assert Scheduler().next_plan() is None


def test_prompt_runs_in_chunks_and_its_last_token_alone() -> None:
    scheduler = Scheduler(SchedulerLimits(chunk_tokens=4))
    sequence = scheduler.add(range(10))
    spans = []
    for _ in range(4):
        (step,) = plan_of(scheduler).sequences
        spans.append((step.start_position, len(step.token_ids), scheduler.wants_logits(step)))
    assert spans == [(0, 4, False), (4, 4, False), (8, 1, False), (9, 1, True)]
    assert scheduler.next_plan() is None
    scheduler.append(sequence, 77)
    assert plan_of(scheduler).sequences[0].token_ids == (77,)


def test_sequence_is_opened_once_and_closed_once() -> None:
    scheduler = Scheduler()
    sequence = scheduler.add([1])
    assert plan_of(scheduler).opened == (sequence,)
    scheduler.append(sequence, 2)
    assert plan_of(scheduler).opened == ()
    scheduler.close(sequence)
    scheduler.close(sequence)
    plan = plan_of(scheduler)
    assert plan.closed == (sequence,) and plan.sequences == ()
    assert scheduler.next_plan() is None


def test_cancelled_while_waiting_is_never_opened() -> None:
    scheduler = Scheduler(SchedulerLimits(max_running=1))
    first, second = scheduler.add([1]), scheduler.add([2])
    plan_of(scheduler)
    scheduler.close(second)
    scheduler.close(first)
    assert plan_of(scheduler).closed == (first,)
    assert scheduler.next_plan() is None


def test_token_for_a_closed_sequence_is_dropped() -> None:
    scheduler = Scheduler()
    sequence = scheduler.add([1])
    plan_of(scheduler)
    scheduler.close(sequence)
    scheduler.append(sequence, 5)
    assert plan_of(scheduler).sequences == ()


def test_decoding_goes_on_beside_one_prompt_chunk() -> None:
    scheduler = Scheduler(SchedulerLimits(chunk_tokens=4))
    decoding = scheduler.add([1])
    plan_of(scheduler)
    scheduler.append(decoding, 2)
    long_one, other = scheduler.add(range(9)), scheduler.add(range(9))
    steps = {step.sequence_id: len(step.token_ids) for step in plan_of(scheduler).sequences}
    assert steps == {decoding: 1, long_one: 4}
    assert other not in steps


def test_full_queue_is_refused_with_the_numbers() -> None:
    scheduler = Scheduler(SchedulerLimits(max_running=1, max_waiting=1))
    scheduler.check_room(2)
    scheduler.add([1])
    scheduler.add([2])
    with pytest.raises(OverloadedError, match="try again later"):
        scheduler.check_room(1)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 9), st.integers(1, 4), st.integers(0, 6))
def test_every_token_is_computed_once_in_order(prompts: list[int], chunk: int, running: int, answers: int) -> None:
    scheduler = Scheduler(SchedulerLimits(max_running=running, max_waiting=100, chunk_tokens=chunk))
    expected = {scheduler.add(range(size)): size + answers for size in prompts}
    computed: dict[SequenceId, int] = {}
    while (plan := scheduler.next_plan()) is not None:
        assert len({step.sequence_id for step in plan.sequences}) == len(plan.sequences) <= running
        for step in plan.sequences:
            assert step.start_position == computed.get(step.sequence_id, 0)
            computed[step.sequence_id] = step.start_position + len(step.token_ids)
            if scheduler.wants_logits(step):
                if computed[step.sequence_id] == expected[step.sequence_id]:
                    scheduler.close(step.sequence_id)
                else:
                    scheduler.append(step.sequence_id, 0)
    assert computed == expected
    assert scheduler.num_running == scheduler.num_waiting == 0
