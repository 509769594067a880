"""Runs a function in several processes that are the ranks of a ring on this machine, with a deadline.

python ranks.py MODULE FUNCTION SEAT ARGUMENT...: joins the group and calls FUNCTION(group, *ARGUMENTS), all of them text.
"""

import importlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
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
    with ThreadPoolExecutor(size) as pool:
        waiting = {pool.submit(rank.communicate, timeout=DEADLINE_S): number for number, rank in enumerate(ranks)}
        try:
            for done in as_completed(waiting):
                number, errors = waiting[done], done.result()[1]
                assert ranks[number].returncode == 0, f"rank {number}: {errors}"
        finally:
            for rank in ranks:
                rank.kill()


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
