"""Faults on purpose, for tests only: PACELINE_FAULTS makes a runner do what no signal from outside can.

hang_step=20              the compute thread stops for ever in the 20th step that this process computes
hang_step=20,once=/file   only in the first process that gets there: it makes the file, which must not be there yet
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

FAULTS_VARIABLE = "PACELINE_FAULTS"


@dataclass(slots=True)
class Faults:
    """Counts steps until one shall fail. hang_step 0: none does."""

    hang_step: int = 0
    once: str = ""
    _num_steps: int = 0

    def strike(self) -> None:
        """A step begins; does not return from the one that shall hang."""
        self._num_steps += 1
        if self._num_steps == self.hang_step and self._is_first():
            while True:
                time.sleep(3600)

    def _is_first(self) -> bool:
        if not self.once:
            return True
        try:
            Path(self.once).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def read_faults() -> Faults:
    """The faults that the environment asks for."""
    parts = dict(part.partition("=")[::2] for part in os.environ.get(FAULTS_VARIABLE, "").split(",") if part)
    return Faults(int(parts.get("hang_step", 0)), parts.get("once", ""))
