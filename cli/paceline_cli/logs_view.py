"""Shows the logs of a cluster's processes."""

import time
from collections.abc import Iterator
from pathlib import Path

from paceline_services.errors import NotFoundError

POLL_S = 0.3


def find_logs(home: Path, name: str | None) -> list[Path]:
    """Log files by name; raises NotFoundError when there are none of that name."""
    logs = sorted((home / "logs").glob("*.log"))
    chosen = [log for log in logs if name is None or log.stem == name or log.stem.startswith(f"{name}-")]
    if not chosen:
        there = ", ".join(log.stem for log in logs) or "none"
        raise NotFoundError(f"no log {name or ''} in {home / 'logs'}; there are: {there}")
    return chosen


def read_tail(log: Path, num_lines: int) -> list[str]:
    with log.open(errors="replace") as stream:
        return [line.rstrip("\n") for line in stream.readlines()[-num_lines:]]


def follow(logs: list[Path]) -> Iterator[tuple[str, str]]:
    """(name, line) of every new line, for ever. Files have no event that works everywhere, so they are looked at a few times a second."""
    streams = {log.stem: log.open(errors="replace") for log in logs}
    for stream in streams.values():
        stream.seek(0, 2)
    while True:
        for name, stream in streams.items():
            for line in stream:
                yield name, line.rstrip("\n")
        time.sleep(POLL_S)
