"""The leader's decisions for tests: fed with views at times of their choice, and what was decided."""

from paceline_control_plane.controllers.changes import next_changes, see
from paceline_control_plane.controllers.decision import Assign, Change, Decision
from paceline_control_plane.controllers.memory import Memory
from paceline_control_plane.controllers.patience import Patience
from paceline_control_plane.topology.view import ClusterView
from paceline_services.domain.instances import Assignment

PATIENCE = Patience()


class Leader:
    """Feeds views to the pure core as the real leader does, at times of the test's choice."""

    def __init__(self, settling_since: float = 0.0) -> None:
        self.memory = Memory(settling_since)

    def decide(self, view: ClusterView, now: float) -> Decision:
        self.memory = see(self.memory, view, now, PATIENCE)
        return next_changes(view, now, self.memory, PATIENCE)


def assigned(decision: Decision | tuple[Change, ...]) -> list[Assignment]:
    """The assignments that a decision makes."""
    changes = decision.changes if isinstance(decision, Decision) else decision
    return [change.assignment for change in changes if isinstance(change, Assign)]


def only_assignment(decision: Decision | tuple[Change, ...]) -> Assignment:
    """The one assignment that a decision makes; asserts that there is just one."""
    assignments = assigned(decision)
    assert len(assignments) == 1, decision
    return assignments[0]
