"""A short selection of the trials of `make chaos`: one cluster, a handful of blows, every answer as if nothing had happened.

Nothing here judges times: pauses are what `make chaos` measures.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fault.faults import Blow, Cut, Edge, Fault, Target, Timing, Way
from fault.partitions import make_cut_case, running_hosts
from fault.power import cut_while_serving, run_download_cuts
from fault.questions import make_questions, shorten
from fault.results import TrialResult, tell_line
from fault.trial import Arena, make_reference, run_trial
from fault.wounds import make_case
from support.demo import demo_folder
from support.fleet import Fleet, Size, Wish, running_fleet
from support.network import find_obstacle

SIZE = Size(members=1, control_planes=1)
QUESTIONS = shorten(make_questions(0)[:5], max_tokens=48)
TIMING = Timing(number=0, moment=0.4, pick=0.9, question_set=0)

pytestmark = pytest.mark.timeout(600)


def make_wish() -> Wish:
    return Wish(str(demo_folder()))


def make_short_arena(fleet: Fleet) -> Arena:
    return Arena(fleet, make_wish(), (make_reference(fleet, QUESTIONS),))


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with running_fleet(tmp_path_factory.mktemp("fleet"), make_wish(), size=SIZE) as fleet:
        yield make_short_arena(fleet)


def check(result: TrialResult) -> None:
    assert result.is_good, "\n".join([tell_line(result), *result.notes])
    assert result.num_answers == len(QUESTIONS)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        pytest.param(Target.STAGE, Fault.KILL, id="killed-stage"),
        pytest.param(Target.HEAD, Fault.KILL, id="killed-head"),
        pytest.param(Target.GATEWAY, Fault.KILL, id="killed-gateway"),
        pytest.param(Target.STAGE, Fault.STOP, id="stopped-stage"),
    ],
)
def test_answers_survive_the_loss_of_a_process(arena: Arena, target: Target, fault: Fault) -> None:
    check(run_trial(arena, make_case(arena.fleet, 1, Blow(TIMING, target, fault, pause_s=0.0))))


def test_placement_is_back_after_a_power_cut_without_a_command(arena: Arena) -> None:
    check(cut_while_serving(arena, 1, 0))


def test_power_cut_in_a_download_leaves_no_half_written_weights(arena: Arena, tmp_path: Path) -> None:
    (result,) = run_download_cuts(tmp_path, arena.references, 1, 1)
    check(result)


def test_answers_survive_two_workers_that_cannot_reach_each_other(tmp_path: Path) -> None:
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    with running_hosts(tmp_path, make_wish(), workers=("first", "second")) as (fleet, network):
        cut = Cut(TIMING, Edge.WORKERS, Way.BOTH, duration_s=5.0)
        check(run_trial(make_short_arena(fleet), make_cut_case(fleet, network, 1, cut)))
