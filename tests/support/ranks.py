"""Runs a function in several processes that are the ranks of a ring on this machine, with a deadline.

python ranks.py MODULE FUNCTION SEAT ARGUMENT...: joins the group and calls FUNCTION(group, *ARGUMENTS), all of them text.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from paceline_services.domain.runners import GroupBackend, GroupSeat

DEADLINE_S = 120
TESTS = Path(__file__).parents[1]


def run_ranks(size: int, folder: Path, module: str, function: str, *arguments: object) -> None:
    """Call module's function in each of size ranks; what it finds, it writes to files. folder: where the ranks' files may lie.

    Raises AssertionError with a rank's errors when it fails, and subprocess.TimeoutExpired when the ranks are not done in time; no rank
    is left running.
    """
    from paceline_worker.transport.group import reserve_address

    addresses = [reserve_address("127.0.0.1") for _ in range(size)]
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                str(folder),
                module,
                function,
                json.dumps([rank, *addresses]),
                *map(str, arguments),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        _wait_for(ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def _wait_for(ranks: Sequence["subprocess.Popen[str]"]) -> None:
    for number, rank in enumerate(ranks):
        errors = rank.communicate(timeout=DEADLINE_S)[1]
        assert rank.returncode == 0, f"rank {number}: {errors}"


def main() -> None:
    """Be one rank."""
    from paceline_worker.transport.group import join_group

    folder, module, function, place, *arguments = sys.argv[1:]
    rank, *addresses = json.loads(place)
    sys.path.insert(0, str(TESTS))
    group = join_group(GroupSeat(GroupBackend.RING, rank, len(addresses), tuple(addresses)), Path(folder))
    getattr(importlib.import_module(module), function)(group, *arguments)


if __name__ == "__main__":
    main()
