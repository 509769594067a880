"""What an edge between two stages carries: activations in frames over gRPC, and handed off through a ring, on loopback.

python tests/bench/hand_off.py: two processes, in turns, several rounds; the median of each.
"""

import asyncio
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.edges import RemoteInbox, RemoteLink, open_edge

SIZES_BYTES = (4 << 10, 64 << 10, 1 << 20, 8 << 20)
ROUNDS = 7


async def measure(link: RemoteLink, inbox: RemoteInbox, num_bytes: int, number: int, *, is_handed_off: bool) -> float:
    """Seconds a frame, of a number of frames one after the other."""
    draining = asyncio.create_task(inbox.end.call("drain", number=number))
    await link.end.call("flood", number=number, num_bytes=num_bytes, is_handed_off=is_handed_off)
    return float((await draining)["seconds"]) / (number - 1)


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with open_edge(Path(folder)) as (link, inbox):
            print(f"{'bytes':>10} {'gRPC, us':>10} {'ring, us':>10} {'ratio':>6}")
            for num_bytes in SIZES_BYTES:
                number = 200 if num_bytes < 1 << 20 else 30
                found: dict[bool, list[float]] = {False: [], True: []}
                for _ in range(ROUNDS):
                    for is_handed_off, times in found.items():
                        times.append(await measure(link, inbox, num_bytes, number, is_handed_off=is_handed_off))
                grpc, ring = (statistics.median(found[one]) * 1e6 for one in (False, True))
                print(f"{num_bytes:>10} {grpc:>10.0f} {ring:>10.0f} {grpc / ring:>6.2f}")


if __name__ == "__main__":
    asyncio.run(main())
