"""Ways to an instance's head: its own address, and through the stages before it where that cannot be reached. Pure.

Rank 0 of every stage passes calls on to the next (paceline_worker.runner.relay), so all ways through stages end with the same hop: one that
a stage refused says that none leads there.
"""

from dataclasses import dataclass

from paceline_services.addressee import Addressee
from paceline_services.domain.instances import Instance, first_ranks

RETRY_S = 10.0
"""A way that failed is tried again after so long, by one request; meanwhile all others take the next best one."""


@dataclass(frozen=True, slots=True)
class Path:
    """An address to ask, and whom a stage there passes the call on to; None: the head is there itself."""

    address: str
    addressee: Addressee | None = None

    @property
    def is_relayed(self) -> bool:
        return self.addressee is not None


def list_paths(instance: Instance) -> list[Path]:
    """The ways to an ACTIVE instance's head, shortest first."""
    addressee = Addressee(instance.spec.instance_id, instance.epoch)
    before_head = reversed(first_ranks(instance.shards)[:-1])
    reports = [shard.runner for shard in before_head if shard.runner is not None]
    current = [report.address for report in reports if report.epoch == instance.epoch and report.address]
    return [Path(instance.head_address), *(Path(address, addressee) for address in current)]


class PathMemory:
    """Which ways failed lately. Times are seconds of any one clock."""

    def __init__(self, retry_s: float = RETRY_S) -> None:
        self._retry_s = retry_s
        self._failed: dict[Path, float] = {}
        """When each is to be tried again."""

    def choose(self, instance: Instance, now: float) -> Path:
        """The shortest way that did not fail lately, else the head's own; one whose time has come is given to one request."""
        paths = list_paths(instance)
        for path in paths:
            if (until := self._failed.get(path)) is None:
                return path
            if until <= now:
                self._failed[path] = now + self._retry_s
                return path
        return paths[0]

    def has_way(self, instance: Instance, now: float) -> bool:
        """Whether any way did not fail lately."""
        return any(self._failed.get(path, now) <= now for path in list_paths(instance))

    def note_reached(self, path: Path) -> None:
        """Something came back from the head."""
        self._failed.pop(path, None)

    def note_failed(self, path: Path, now: float) -> None:
        """Nobody could be reached at its address."""
        self._failed = {known: until for known, until in self._failed.items() if until + self._retry_s > now}
        self._failed[path] = now + self._retry_s

    def note_refused(self, instance: Instance, now: float) -> None:
        """A stage could not pass a call on: no way through stages is left."""
        for path in list_paths(instance)[1:]:
            self.note_failed(path, now)
