"""The scheduler's promises: every token is computed once and in order on every stage, nobody is forgotten, and the room is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_services.domain.steps import SequenceStep, StepPlan
from paceline_services.errors import ContextLengthError, OverloadedError
from paceline_services.ids import SequenceId
from paceline_worker.pipeline.costs import FIRST_CHUNK_TOKENS
from paceline_worker.pipeline.memory import GROWTH_TOKENS, KvMemory
from paceline_worker.pipeline.scheduler import WORTH_WAITING, Plan, Scheduler, SchedulerLimits

Guess = Callable[[SequenceId], Sequence[int]]


def make_scheduler(*, stages: int = 1, capacity: int = 1 << 20, can_cut: bool = True, **limits: int) -> Scheduler:
    return Scheduler(SchedulerLimits(**limits), KvMemory(capacity, can_cut=can_cut), stages)


def plan_of(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.next_plan()
    assert plan is not None
    return plan.step


def submit(scheduler: Scheduler, prompt: Sequence[int], client: str = "") -> SequenceId:
    (sequence_id,), dropped = scheduler.submit(prompt, client)
    assert not dropped
    return sequence_id


def next_token(tokens: Sequence[int]) -> int:
    """What the model of these tests says after some tokens."""
    return (sum(tokens) * 31 + len(tokens)) % 97


def continue_tokens(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass
class Stages:
    """What a stage's engine does with plans, over token lists in place of caches; holds every promise of a plan to account."""

    capacity: int
    caches: dict[SequenceId, list[int]] = field(default_factory=dict)

    def run(self, step: StepPlan) -> dict[SequenceId, list[int]]:
        """The model's next token after each position whose logits are wanted."""
        for trim in step.trimmed:
            assert trim.num_tokens <= len(self.caches[trim.sequence_id])
            del self.caches[trim.sequence_id][trim.num_tokens :]
        for fork in step.forked:
            assert fork.sequence_id not in self.caches
            assert len(self.caches[fork.source_id]) >= fork.num_tokens
            self.caches[fork.sequence_id] = self.caches[fork.source_id][: fork.num_tokens]
        for closed in step.closed:
            del self.caches[closed]
        for opened in step.opened:
            assert opened not in self.caches
            self.caches[opened] = []
        logits = {}
        for part in step.sequences:
            cache = self.caches[part.sequence_id]
            assert len(cache) == part.start_position
            cache.extend(part.token_ids)
            if part.num_logits:
                ends = range(len(cache) - part.num_logits + 1, len(cache) + 1)
                logits[part.sequence_id] = [next_token(cache[:end]) for end in ends]
        taken = sum(-(-len(cache) // GROWTH_TOKENS) * GROWTH_TOKENS for cache in self.caches.values())
        assert taken <= self.capacity
        assert len({part.sequence_id for part in step.sequences}) == len(step.sequences)
        return logits


@dataclass
class Run:
    """A scheduler, its stages, and the answers so far. changes: after so many steps, so many other stages take over."""

    scheduler: Scheduler
    stages: Stages
    wanted: dict[SequenceId, int]
    prompts: dict[SequenceId, list[int]]
    answers: dict[SequenceId, list[int]] = field(default_factory=dict)
    steps: list[StepPlan] = field(default_factory=list)
    changes: dict[int, int] = field(default_factory=dict)

    def go(self, guess: Guess | None = None) -> None:
        """Steps until nothing is left; as many in flight as the scheduler wants."""
        in_flight: list[StepPlan] = []
        while True:
            draft = None if guess is None else (lambda one, _: guess(one))
            while plan := self.scheduler.next_plan(draft):
                in_flight.append(plan.step)
                assert len(in_flight) <= self.scheduler.num_stages + 1
            if not in_flight:
                return
            self.finish(in_flight.pop(0))
            if num_stages := self.changes.pop(len(self.steps), 0):
                in_flight.clear()
                self.change(num_stages)

    def change(self, num_stages: int) -> None:
        """Stages with empty caches take over."""
        memory = self.scheduler.memory
        self.stages = Stages(memory.capacity_tokens)
        self.scheduler.restart(KvMemory(memory.capacity_tokens, can_cut=memory.can_cut), num_stages)

    def finish(self, step: StepPlan) -> None:
        self.steps.append(step)
        logits = self.stages.run(step)
        self.scheduler.finish_step()
        for part in step.sequences:
            if part.num_logits:
                self.take(part.sequence_id, logits[part.sequence_id], part.token_ids[1:])

    def take(self, sequence_id: SequenceId, rows: list[int], guesses: Sequence[int]) -> None:
        answer = self.answers.setdefault(sequence_id, [])
        drawn = []
        for index, token in enumerate(rows):
            drawn.append(token)
            if len(answer) + len(drawn) == self.wanted[sequence_id] or list(guesses[index : index + 1]) != [token]:
                break
        answer += drawn
        self.scheduler.append(sequence_id, drawn)
        if len(answer) == self.wanted[sequence_id]:
            self.scheduler.close(sequence_id, keep=True)


def start_run(scheduler: Scheduler, prompts: Sequence[Sequence[int]], num_tokens: int) -> Run:
    ids = [submit(scheduler, prompt, client=str(index % 3)) for index, prompt in enumerate(prompts)]
    stages = Stages(scheduler.memory.capacity_tokens)
    return Run(scheduler, stages, dict.fromkeys(ids, num_tokens), dict(zip(ids, map(list, prompts), strict=True)))


def check_answers(run: Run) -> None:
    for sequence_id, prompt in run.prompts.items():
        assert run.answers[sequence_id] == continue_tokens(prompt, run.wanted[sequence_id])
    assert run.scheduler.num_running == run.scheduler.num_waiting == run.scheduler.num_in_flight == 0
    assert run.scheduler.memory.running_tokens == 0


def test_nothing_to_do_is_no_plan() -> None:
    assert make_scheduler().next_plan() is None


def test_prompt_runs_in_chunks_and_its_last_token_is_decoded() -> None:
    scheduler = make_scheduler(chunk_tokens=4)
    sequence = submit(scheduler, range(10))
    spans = []
    for _ in range(4):
        (part,) = plan_of(scheduler).sequences
        scheduler.finish_step()
        spans.append((part.start_position, len(part.token_ids), part.num_logits))
    assert spans == [(0, 4, 0), (4, 4, 0), (8, 1, 0), (9, 1, 1)]
    assert scheduler.next_plan() is None
    scheduler.append(sequence, [77])
    assert plan_of(scheduler).sequences[0].token_ids == (77,)


def test_cancelled_while_waiting_is_never_opened() -> None:
    scheduler = make_scheduler(max_running=1)
    first, second = submit(scheduler, [1]), submit(scheduler, [2])
    plan_of(scheduler)
    scheduler.finish_step()
    scheduler.close(second)
    scheduler.close(first)
    assert plan_of(scheduler).closed == (first,)
    scheduler.finish_step()
    assert scheduler.next_plan() is None


def test_token_for_a_closed_sequence_is_dropped() -> None:
    scheduler = make_scheduler()
    sequence = submit(scheduler, [1])
    plan_of(scheduler)
    scheduler.finish_step()
    scheduler.close(sequence)
    scheduler.append(sequence, [5])
    assert plan_of(scheduler).sequences == ()


def test_decoding_is_divided_over_as_many_steps_as_stages() -> None:
    scheduler = make_scheduler(stages=2)
    sequences = [submit(scheduler, [index]) for index in range(7)]
    first, second = plan_of(scheduler), plan_of(scheduler)
    assert [len(first.sequences), len(second.sequences)] == [4, 3]
    assert {part.sequence_id for part in (*first.sequences, *second.sequences)} == set(sequences)
    assert scheduler.next_plan() is None, "two stages, two steps in flight"
    scheduler.finish_step()
    assert scheduler.next_plan() is None, "no token of the first step is known yet"
    for part in first.sequences:
        scheduler.append(part.sequence_id, [1])
    assert [part.sequence_id for part in plan_of(scheduler).sequences] == [part.sequence_id for part in first.sequences]


def test_sequences_that_join_even_the_steps_out() -> None:
    scheduler = make_scheduler(stages=2)
    submit(scheduler, [0])
    in_flight = [plan_of(scheduler)]
    for index in range(5):
        submit(scheduler, [index])
    sizes = []
    for _ in range(8):
        while plan := scheduler.next_plan():
            in_flight.append(plan.step)
        step = in_flight.pop(0)
        scheduler.finish_step()
        sizes.append(len(step.sequences))
        for part in step.sequences:
            scheduler.append(part.sequence_id, [1])
    assert sizes[-4:] == [3, 3, 3, 3]


def test_chunks_of_a_prompt_follow_each_other_without_waiting() -> None:
    scheduler = make_scheduler(stages=2)
    submit(scheduler, range(1000))
    starts = [plan_of(scheduler).sequences[0].start_position for _ in range(3)]
    assert starts == [0, FIRST_CHUNK_TOKENS, 2 * FIRST_CHUNK_TOKENS]
    assert scheduler.next_plan() is None, "one more than stages, so that none waits for a link"


def test_prompt_is_computed_beside_those_that_decode() -> None:
    scheduler = make_scheduler(chunk_tokens=4)
    decoding = submit(scheduler, [1])
    plan_of(scheduler)
    scheduler.finish_step()
    scheduler.append(decoding, [2])
    long_one, other = submit(scheduler, range(9)), submit(scheduler, range(20, 29))
    steps = {part.sequence_id: len(part.token_ids) for part in plan_of(scheduler).sequences}
    assert steps == {decoding: 1, long_one: 4}
    assert other not in steps


def test_chunk_beside_decoding_follows_measured_times() -> None:
    scheduler = make_scheduler()
    for num_tokens, seconds in ((1, 0.010), (4, 0.020), (8, 0.024), (16, 0.030), (32, 0.050), (64, 0.100), (512, 0.8)):
        scheduler.costs.observe(num_tokens, seconds)
    for index in range(4):
        submit(scheduler, [index])
    for part in plan_of(scheduler).sequences:
        scheduler.append(part.sequence_id, [1])
    scheduler.finish_step()
    submit(scheduler, range(2000))
    step = plan_of(scheduler)
    num_tokens = sum(len(part.token_ids) for part in step.sequences)
    assert len(step.sequences) == 5
    assert 16 < num_tokens < 32, "twice the 20 ms of the four alone"


def test_second_turn_computes_only_what_is_new() -> None:
    scheduler = make_scheduler()
    run = start_run(scheduler, [list(range(100))], 20)
    run.go()
    first = run.prompts[SequenceId(1)] + run.answers[SequenceId(1)]
    second = submit(scheduler, [*first, 5, 6, 7])
    plan = scheduler.next_plan()
    assert plan is not None
    assert plan.started == {second: 119}, "all but the last token drawn, whose forward never ran"
    (fork,) = plan.step.forked
    assert (fork.source_id, fork.num_tokens) == (SequenceId(1), 119)
    assert plan.step.sequences[0].start_position == 119


def test_answer_that_is_computed_again_comes_apart_from_prompts() -> None:
    scheduler = make_scheduler(stages=2)
    decoding = submit(scheduler, [1])
    plan_of(scheduler)
    scheduler.finish_step()
    scheduler.append(decoding, [2])
    (again,), _ = scheduler.submit(range(100), answers=[range(50)])
    submit(scheduler, range(200, 300))
    parts: list[SequenceStep] = []
    while plan := scheduler.next_plan():
        kinds = [not (part.num_logits or part.is_answer) for part in plan.step.sequences]
        assert kinds == sorted(kinds)  # chunks of prompts stand last
        parts += [part for part in plan.step.sequences if part.sequence_id == again]
        scheduler.finish_step()
        scheduler.append(decoding, [3])
    assert sum(len(part.token_ids) for part in parts if not part.is_answer) == 99 + 1
    assert sum(len(part.token_ids) for part in parts if part.is_answer) == 50
    assert max(part.start_position for part in parts if not part.is_answer and not part.num_logits) < 99


def test_what_is_kept_leaves_when_others_need_the_room() -> None:
    scheduler = make_scheduler(capacity=4 * GROWTH_TOKENS)
    run = start_run(scheduler, [[index] * 40 for index in range(3)], 3)
    run.go()
    assert scheduler.memory.num_kept == 3
    run.wanted[submit(scheduler, [9] * (2 * GROWTH_TOKENS))] = 3
    run.go()
    assert scheduler.memory.num_kept == 2
    assert set(run.stages.caches) == {SequenceId(3), SequenceId(4)}, "the latest used are kept"


def test_same_prompt_twice_is_computed_once() -> None:
    scheduler = make_scheduler()
    ids, _ = scheduler.submit(list(range(300)), answers=[()] * 3)
    run = Run(scheduler, Stages(1 << 20), dict.fromkeys(ids, 5), {one: list(range(300)) for one in ids})
    run.go()
    check_answers(run)
    computed = sum(len(part.token_ids) for step in run.steps for part in step.sequences)
    assert computed < 300 + 3 * (5 + WORTH_WAITING)


def test_caches_that_cannot_be_cut_are_reused_whole_or_not_at_all() -> None:
    scheduler = make_scheduler(can_cut=False)
    run = start_run(scheduler, [list(range(50))], 10)
    run.go()
    whole = run.prompts[SequenceId(1)] + run.answers[SequenceId(1)]
    partly = submit(scheduler, [*whole[:30], 1, 2, 3])
    longer = submit(scheduler, [*whole, 1, 2, 3])
    plan = scheduler.next_plan()
    assert plan is not None
    assert plan.started == {partly: 0, longer: 59}


def test_sequence_that_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = make_scheduler(capacity=1024)
    scheduler.check_size(1024)
    with pytest.raises(ContextLengthError, match="1025 tokens, the KV cache of this instance holds 1024"):
        scheduler.check_size(1025)


def test_full_queue_is_refused_with_the_numbers() -> None:
    scheduler = make_scheduler(max_running=1, max_waiting=1)
    scheduler.submit([1], answers=[()] * 2)
    with pytest.raises(OverloadedError, match="2 requests are waiting"):
        scheduler.submit([3])


def test_burst_of_one_client_takes_no_place_from_another() -> None:
    scheduler = make_scheduler(max_running=1, max_waiting=3)
    burst, _ = scheduler.submit([1], "greedy", [()] * 4)
    (other,), dropped = scheduler.submit([2], "modest")
    assert dropped == [burst[-1]]
    plan_of(scheduler)
    scheduler.finish_step()
    scheduler.close(burst[0])
    assert plan_of(scheduler).opened == (other,), "whoever had no turn yet comes first"


@settings(deadline=None)
@given(
    prompts=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 700)), min_size=1, max_size=10),
    stages=st.integers(1, 4),
    chunk=st.integers(1, 300),
    running=st.integers(1, 6),
    room=st.integers(4, 12),
    answers=st.integers(1, 40),
    luck=st.lists(st.integers(0, 5), min_size=1, max_size=7),
    can_cut=st.booleans(),
    changes=st.dictionaries(st.integers(1, 30), st.integers(1, 4), max_size=3),
)
def test_every_answer_is_what_it_is_alone(
    prompts: list[tuple[int, int]],
    stages: int,
    chunk: int,
    running: int,
    room: int,
    answers: int,
    luck: list[int],
    can_cut: bool,
    changes: dict[int, int],
) -> None:
    """Any prompts with common beginnings, stages, chunks, room (so that sequences give theirs back), luck in guessing, and changes."""
    capacity = room * GROWTH_TOKENS
    scheduler = make_scheduler(
        stages=stages, capacity=capacity, can_cut=can_cut, max_running=running, max_waiting=100, chunk_tokens=chunk
    )
    run = start_run(scheduler, [[kind] * size for kind, size in prompts], answers)
    run.changes = dict(changes)
    counter = iter(range(1 << 30))

    def guess(sequence_id: SequenceId) -> list[int]:
        """So many right guesses, then a wrong one."""
        tokens = run.prompts[sequence_id] + run.answers.get(sequence_id, [])
        left = answers - len(run.answers.get(sequence_id, [])) - 1
        right = continue_tokens(tokens, luck[next(counter) % len(luck)])
        return [*right, 98][: max(0, left)]

    run.go(guess if can_cut else None)
    check_answers(run)


def test_who_ran_when_the_stages_changed_starts_first_in_the_old_order() -> None:
    scheduler = make_scheduler(max_running=2)
    first, second, third = (submit(scheduler, [number] * 3, client=str(number)) for number in range(3))
    assert list(scheduler.next_plan().started) == [first, second]  # type: ignore[union-attr]
    scheduler.restart(KvMemory(1 << 20), num_stages=3)
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_in_flight) == (0, 3, 0)
    plan = scheduler.next_plan()
    assert plan is not None
    assert list(plan.started) == [first, second]
    assert plan.step.step == 1
    scheduler.close(first)
    assert third not in plan.started


def test_plan_tells_who_left_the_queue() -> None:
    scheduler = make_scheduler()
    sequence = submit(scheduler, [1, 2])
    plan = scheduler.next_plan()
    assert isinstance(plan, Plan)
    assert plan.started == {sequence: 0}
    assert plan.step.is_resumed
