"""Whom a call to a runner is meant for, as gRPC metadata: an instance at an epoch.

Frames between stages always carry it. A call of GenerationService that does reaches the head through any of the instance's stages: each
passes it on to the next; one of another epoch refuses it. A call without is for the runner that it reaches.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from paceline_services.ids import Epoch, InstanceId

INSTANCE_KEY = "paceline-instance-id"
EPOCH_KEY = "paceline-epoch"


@dataclass(frozen=True, slots=True)
class Addressee:
    """An instance's runners at one epoch."""

    instance_id: InstanceId
    epoch: Epoch

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (INSTANCE_KEY, self.instance_id), (EPOCH_KEY, str(self.epoch))


def read_addressee(metadata: Iterable[tuple[str, Any]]) -> Addressee | None:
    """Whom a call names; None where it names nobody, which an epoch that is no number does not either."""
    known = dict(metadata)
    epoch = str(known.get(EPOCH_KEY, ""))
    if not epoch.isdecimal():
        return None
    return Addressee(InstanceId(str(known.get(INSTANCE_KEY, ""))), Epoch(int(epoch)))
