"""A child of the benchmark: prints the GB/s at which one thread streams through memory. python -m bench.bandwidth_process CORE."""

import sys
import time

import numpy as np

from bench.serving import pin

SIZE_BYTES, REPEATS = 1 << 29, 5


def main() -> None:
    pin(sys.argv[1])
    # The largest of int64: vectorised, one pass, nothing written; much larger than any cache.
    array = np.arange(SIZE_BYTES // 8, dtype=np.int64)
    array.max()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        array.max()
        seconds.append(time.perf_counter() - started)
    print(SIZE_BYTES / min(seconds) / 1e9)


if __name__ == "__main__":
    main()
