"""What is said of a runner that ended, and whether it was for lack of memory."""

import signal

import pytest

from paceline_worker.agent.last_words import Ending


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (Ending(3), "the runner ended with code 3"),
        (Ending(1, last_lines=("a", "paceline: no weights", "b")), "the runner ended with code 1\nno weights"),
        (Ending(1, last_lines=("a", "b")), "the runner ended with code 1\na\nb"),
        (Ending(-signal.SIGKILL), "the runner was killed by signal 9"),
        (
            Ending(-signal.SIGKILL, num_oom_kills=1),
            "the runner was killed by signal 9, likely by the kernel for lack of memory",
        ),
        (Ending(-signal.SIGSEGV, num_oom_kills=1), "the runner was killed by signal 11"),
        (Ending(-signal.SIGKILL, "its process is stopped", 1), "the runner was wedged: its process is stopped"),
    ],
)
def test_end_is_told_in_words(ending: Ending, words: str) -> None:
    assert ending.describe() == words
    assert ending.was_killed_for_memory == ("lack of memory" in words)
