"""A program for tests: one member of a ring. It prints its address, reads those of all members, joins, and sums until told to end.

python -m support.group_member RANK SIZE FOLDER; each line that it reads is JSON: the addresses first, then numbers to be summed over
the members.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx

from paceline_services.domain.runners import GroupBackend, GroupSeat
from paceline_worker.transport.group import join_group, reserve_address


def main() -> None:
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    print(reserve_address("127.0.0.1"), flush=True)
    addresses = tuple(json.loads(sys.stdin.readline()))
    group = join_group(GroupSeat(GroupBackend.RING, rank, size, addresses), folder)
    print(f"{group.rank()} of {group.size()}", flush=True)
    for line in sys.stdin:
        total = mx.distributed.all_sum(mx.array(json.loads(line)), group=group)
        print(json.dumps(total.tolist()), flush=True)


if __name__ == "__main__":
    main()
