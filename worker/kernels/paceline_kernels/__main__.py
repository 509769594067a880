"""python -m paceline_kernels [--json]: what this machine computes with."""

import argparse
import json
import os
import sys
from dataclasses import asdict, replace

from paceline_kernels.loading import KernelReport, check_kernels, preload_fallback


def describe(report: KernelReport) -> str:
    if not report.in_use:
        return f"kernels are not used: {report.reason}" + (f" (float32 products: {report.blas})" if report.blas else "")
    threads = f"{report.num_threads} thread{'' if report.num_threads == 1 else 's'}"
    return f"kernels: {report.instruction_set}, {threads}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m paceline_kernels", description="Check Paceline's CPU kernels.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores, help="threads that compute (the processors it may use)")
    arguments = parser.parse_args()
    blas = preload_fallback(arguments.threads)
    report = replace(check_kernels(arguments.threads), blas=blas)
    print(json.dumps(asdict(report)) if arguments.json else describe(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
