"""What a runner's end means: from how its process ended and what it said last to words for people and a fact for the leader. Pure."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ending:
    """exit_code: negative for a signal. fault: why its agent killed it, if it did. num_oom_kills: processes that the kernel ended for lack
    of memory while it lived. last_lines: of its standard error."""

    exit_code: int
    fault: str = ""
    num_oom_kills: int = 0
    last_lines: Sequence[str] = ()

    @property
    def was_killed_for_memory(self) -> bool:
        """Whether it was likely the kernel that killed it: nobody tells who sent a signal."""
        return self.exit_code == -signal.SIGKILL and not self.fault and self.num_oom_kills > 0

    def describe(self) -> str:
        """How it ended, then its own error line where it has one, else its last lines."""
        told = [line.removeprefix("paceline: ") for line in self.last_lines if line.startswith("paceline: ")]
        return "\n".join([f"the runner {self._how}", *(told[-1:] or self.last_lines)])

    @property
    def _how(self) -> str:
        if self.fault:
            return f"was wedged: {self.fault}"
        if self.exit_code >= 0:
            return f"ended with code {self.exit_code}"
        why = ", likely by the kernel for lack of memory" if self.was_killed_for_memory else ""
        return f"was killed by signal {-self.exit_code}{why}"
