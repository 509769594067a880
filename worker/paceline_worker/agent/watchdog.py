"""When a runner is wedged: decided from what was seen of it at several looks. Pure.

A process that is alive may compute nothing for ever: stopped by a signal, hung in a step, its event loop blocked. Its own word is worth
nothing then, so what its threads stamped themselves (stamps.py) and the state that the kernel shows decide.

Time is counted in seconds in which the agent itself was awake and looked (Watched.look): an agent that was stopped, a machine that was
suspended or frozen, finds its runners as they are then and not as they must have been. A look counts MOST_PASSED_S at most.
"""

from dataclasses import dataclass, replace

from paceline_worker.stamps import Stamps

LOOK_INTERVAL_S = 0.25
MOST_PASSED_S = 2 * LOOK_INTERVAL_S
STOPPED_LIMIT_S = 1.0
SILENCE_LIMIT_S = 10.0
"""Of the event loop while nothing is computed. Long: swapping, or a library that holds Python's lock, is no fault."""
START_LIMIT_S = 120.0
"""From the start of the process to its first tick: imports on a slow disk."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What looks at a runner have shown: its last stamps, and for how many seconds things have been as they are.

    stopped_s: that the process has been stopped; silent_s: since the event loop's last tick; working_s: in the same piece of work.
    """

    stamps: Stamps = Stamps()
    stopped_s: float = 0.0
    silent_s: float = 0.0
    working_s: float = 0.0

    def look(self, stamps: Stamps, passed_s: float, *, is_stopped: bool) -> "Watched":
        """One more look, passed_s after the last one."""
        counted_s = min(passed_s, MOST_PASSED_S)
        has_ticked = stamps.tick_ns != self.stamps.tick_ns
        has_moved = not stamps.is_working or stamps.num_begun != self.stamps.num_begun
        return replace(
            self,
            stamps=stamps,
            stopped_s=self.stopped_s + counted_s if is_stopped else 0.0,
            # While something is computed the event loop may wait for Python's lock: the limit of the work holds then.
            silent_s=0.0 if has_ticked or stamps.is_working else self.silent_s + counted_s,
            working_s=0.0 if has_moved else self.working_s + counted_s,
        )

    def find_fault(self) -> str:
        """Why the runner is wedged; empty when it is not, or not for certain yet."""
        if self.stopped_s > STOPPED_LIMIT_S:
            return "its process is stopped"
        if self.stamps.is_working and self.working_s > self.stamps.limit_s:
            return f"it has computed for {self.working_s:.0f} s what may take {self.stamps.limit_s:.0f} s"
        if self.silent_s > (SILENCE_LIMIT_S if self.stamps.tick_ns else START_LIMIT_S):
            return f"its event loop has been blocked for {self.silent_s:.0f} s"
        return ""
