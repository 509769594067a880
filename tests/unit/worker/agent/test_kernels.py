"""Which kernels a node tells of: what the command answers, and that nothing that goes wrong with it is an error."""

import asyncio
import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from paceline_services.domain.nodes import KernelInventory, NodeInventory
from paceline_services.ids import NodeId
from paceline_worker.agent.kernels import MAX_REASON_CHARS, ask_kernels, parse_answer, parse_failure, with_kernels
from paceline_worker.processors import ProcessorSettings

VNNI = {"in_use": True, "instruction_set": "avx512-vnni", "num_threads": 2, "reason": "", "blas": ""}
ABSENT = {"in_use": False, "instruction_set": "", "num_threads": 0, "reason": "no C++ compiler was found", "blas": ""}
UNREADABLE = "the kernels gave an answer that cannot be read: install the same version of every package"


def program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def answering(answer: object) -> tuple[str, ...]:
    return program(f"print({json.dumps(answer)!r})")


def inventory(accelerator: str = "cpu") -> NodeInventory:
    return NodeInventory(NodeId("n"), "agent", accelerator=accelerator)


@pytest.mark.parametrize(
    ("answer", "kernels"),
    [
        (VNNI, KernelInventory("avx512-vnni", 2)),
        (VNNI | {"blas": "openblas"}, KernelInventory("avx512-vnni", 2, blas="openblas")),
        (ABSENT, KernelInventory(absent_reason="no C++ compiler was found")),
        (ABSENT | {"blas": "openblas"}, KernelInventory("", 0, "no C++ compiler was found", "openblas")),
        (ABSENT | {"reason": "two\n lines"}, KernelInventory(absent_reason="two lines")),
        (ABSENT | {"reason": ""}, KernelInventory(absent_reason="the kernels gave no reason")),
        (VNNI | {"added_later": 1}, KernelInventory("avx512-vnni", 2)),
    ],
)
def test_an_answer_is_the_inventory(answer: object, kernels: KernelInventory) -> None:
    assert parse_answer(json.dumps(answer).encode()) == kernels


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"hello",
        b"\xff",
        b"[]",
        b"{}",
        json.dumps(VNNI | {"in_use": "yes"}).encode(),
        json.dumps(VNNI | {"num_threads": -1}).encode(),
        json.dumps(VNNI | {"num_threads": 1 << 40}).encode(),
        json.dumps(VNNI | {"instruction_set": "x" * 100}).encode(),
        json.dumps(VNNI | {"blas": "\ud800"}).encode(),
    ],
)
def test_an_answer_that_cannot_be_read_is_no_kernels(answer: bytes) -> None:
    assert parse_answer(answer) == KernelInventory(absent_reason=UNREADABLE)


def test_a_reason_is_one_line_of_bounded_length() -> None:
    kernels = parse_answer(json.dumps(ABSENT | {"reason": "why " * 1000}).encode())
    assert len(kernels.absent_reason) == MAX_REASON_CHARS


@pytest.mark.parametrize(
    ("code", "errors", "reason"),
    [
        (
            1,
            f"{sys.executable}: No module named paceline_kernels\n",
            "the check of the kernels ended with code 1: No module named paceline_kernels",
        ),
        (3, "Traceback ...\nOSError: full\n", "the check of the kernels ended with code 3: OSError: full"),
        (-4, "", "the check of the kernels was killed by signal 4"),
    ],
)
def test_a_failure_tells_its_last_line(code: int, errors: str, reason: str) -> None:
    assert parse_failure(code, errors) == KernelInventory(absent_reason=reason)


async def test_the_command_is_asked() -> None:
    assert await ask_kernels(answering(VNNI), 30) == KernelInventory("avx512-vnni", 2)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (program("raise SystemExit('no luck')"), "ended with code 1: no luck"),
        (program("import os; os.kill(os.getpid(), 9)"), "was killed by signal 9"),
        ((sys.executable, "-m", "no_such_package"), "ended with code 1: No module named no_such_package"),
        (("/no/such/python",), "the kernels could not be asked for: No such file or directory"),
        (program("print('no JSON')"), UNREADABLE),
    ],
)
async def test_a_command_that_fails_is_no_kernels(command: tuple[str, ...], reason: str) -> None:
    kernels = await ask_kernels(command, 30)
    assert not kernels.instruction_set
    assert kernels.absent_reason.endswith(reason)


async def test_a_command_that_hangs_is_ended_with_all_that_it_started() -> None:
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
    started = time.monotonic()
    assert (await ask_kernels(program(child), 1)).absent_reason == "the kernels did not answer within 1 s"
    assert time.monotonic() - started < 20
    assert [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE] == []


async def test_a_question_that_is_given_up_leaves_no_process() -> None:
    asking = asyncio.create_task(ask_kernels(program("import time; time.sleep(600)"), 600))
    while not psutil.Process().children():  # noqa: ASYNC110 (a process that starts sends no event)
        await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait({asking})
    assert psutil.Process().children() == []


async def test_threads_that_are_set_are_those_told() -> None:
    told = await with_kernels(inventory(), ProcessorSettings(num_threads=7), command=answering(VNNI))
    assert told.kernels == KernelInventory("avx512-vnni", 7)
    assert (await with_kernels(inventory(), ProcessorSettings(), command=answering(VNNI))).kernels.num_threads == 2


@pytest.mark.parametrize("accelerator", ["metal", "cuda"])
async def test_only_cpu_nodes_are_asked(accelerator: str, tmp_path: Path) -> None:
    mark = tmp_path / "asked"
    asking = program(f"open({str(mark)!r}, 'w')")
    assert await with_kernels(inventory(accelerator), ProcessorSettings(), command=asking) == inventory(accelerator)
    assert not mark.exists()


async def test_kernels_that_are_turned_off_are_not_asked_for() -> None:
    told = await with_kernels(inventory(), ProcessorSettings(kernels="off"), command=answering(VNNI))
    assert told.kernels == KernelInventory(absent_reason="turned off by the setting kernels")
