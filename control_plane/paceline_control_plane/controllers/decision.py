"""What the leader may do: changes of records, each over the revision that it was decided from."""

from dataclasses import dataclass

from paceline_services.domain.instances import Assignment
from paceline_services.domain.models import KnownModel
from paceline_services.ids import InstanceId, Revision


@dataclass(frozen=True, slots=True)
class Assign:
    """Store an assignment over the one of the given revision (0: there is none)."""

    assignment: Assignment
    over: Revision


@dataclass(frozen=True, slots=True)
class Unassign:
    """Delete the assignment of an instance that nobody wants any more, or that was wanted anew under the same id."""

    instance_id: InstanceId
    over: Revision


@dataclass(frozen=True, slots=True)
class LearnModel:
    """Store what is known of a model over the record of the given revision (0: there is none)."""

    model: KnownModel
    over: Revision


Change = Assign | Unassign | LearnModel


@dataclass(frozen=True, slots=True)
class Decision:
    """Changes to make now, and when to decide again even if nothing happens; wake_at is None when only an event matters."""

    changes: tuple[Change, ...] = ()
    wake_at: float | None = None
