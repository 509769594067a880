"""Threads of Python, forks, and the end of the process: nothing hangs, nothing is mixed up."""

import os
import subprocess
import sys
import threading

import mlx.core as mx
import pytest
from kernels.comparing import SETTINGS, Setting, assert_close, computing, make_packed, make_values, multiply_exactly

TIMEOUT_S = 60
BEST = SETTINGS[0].instruction_set
PRELUDE = """
import os, sys, threading
import mlx.core as mx
from paceline_kernels import _native
_native.set_threads(2)
packed = mx.quantize(mx.random.normal((1536, 576)), group_size=64, bits=4)
def multiply(rows):
    return _native.multiply(mx.ones((rows, 576)), *packed, group_size=64, bits=4, fast=False)
def work(rows=3):
    y = multiply(rows)
    mx.eval(y)
    return y.sum().item()
first = work()
"""
PROGRAMS = {
    "exits at once": "print('done')",
    "exits while its threads sleep": "import time; time.sleep(0.2); print('done')",
    "exits by force": "print('done', flush=True); os._exit(0)",
    "exits while a thread computes": """
def repeat():
    while True:
        work()
threading.Thread(target=repeat, daemon=True).start()
print('done', flush=True)
os._exit(0)
""",
    "leaves work undone": "mx.async_eval(multiply(64)); print('done')",
    "forks and the child exits": """
child = os.fork()
if child == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert work() == first
print('done')
""",
    "forks and the child exits as Python does": """
child = os.fork()
if child == 0:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert work() == first
print('done')
""",
    "starts another program": """
import subprocess
assert subprocess.run([sys.executable, '-c', ''], preexec_fn=lambda: None).returncode == 0
assert work() == first
print('done')
""",
    "changes the number of threads": """
for count in (1, 4, 2, 7, 1, 2):
    _native.set_threads(count)
    assert work() == first and work(40) != 0
print('done')
""",
    "computes in a thread that ends": """
results = []
for _ in range(20):
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
assert results == [first] * 20
print('done')
""",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_process_hangs_that(program: str) -> None:
    command = (sys.executable, "-W", "ignore", "-c", PRELUDE + PROGRAMS[program])
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.stdout.split(), done.returncode) == (["done"], 0), done.stderr


def test_a_child_of_a_fork_computes_alone() -> None:
    """Its parent's threads are not there; the library must not wait for them. (MLX's own streams do not outlive a fork.)"""
    program = """
import ctypes, os
child = os.fork()
if child == 0:
    os._exit(_native.get_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), _native.get_threads())
"""
    command = (sys.executable, "-W", "ignore", "-c", PRELUDE + program)
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.stdout.split() == ["1", "2"], done.stderr


@pytest.mark.parametrize("num_threads", [1, 2, 4])
def test_python_threads_on_streams_of_their_own_get_their_own_results(num_threads: int) -> None:
    w = make_packed(577, 576, bits=4, group_size=64)
    inputs = [make_values(rows, 576, seed=rows) for rows in (1, 3, 20, 40)]
    expected = [multiply_exactly(x, w.values)[0] for x in inputs]
    faults: list[BaseException] = []

    def repeat(index: int) -> None:
        try:
            with mx.stream(mx.new_stream(mx.cpu)):
                for _ in range(25):
                    normed = mx.fast.rms_norm(inputs[index], None, 1e-5)
                    ours = mx.quantized_matmul(inputs[index], *w.arrays, **w.packing)
                    mx.eval(ours, normed)
                    assert_close(ours, expected[index], 3e-6, index)
        except BaseException as fault:
            faults.append(fault)

    with computing(Setting(BEST, num_threads)):
        threads = [threading.Thread(target=repeat, args=(index,)) for index in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert not any(thread.is_alive() for thread in threads)
    assert not faults, faults[0]


def test_more_threads_than_processors_give_the_same() -> None:
    w = make_packed(577, 576, bits=4, group_size=64)
    for num_inputs in (1, 40):
        x = make_values(num_inputs, 576)
        with computing(Setting(BEST, 4 * (os.cpu_count() or 1))):
            for _ in range(20):
                assert_close(mx.quantized_matmul(x, *w.arrays, **w.packing), multiply_exactly(x, w.values)[0], 3e-6)
