"""llama.cpp to compare with: llama-cpp-python, built once from its source distribution into a virtual environment of its own.

The environment lies in the user's cache (paceline-bench), keyed by version and flags; PACELINE_BENCH_LLAMA_CPP names the Python of
another one that has llama_cpp, and nothing is built then. The instruction sets of this machine are switched on by name, so that AMX
stays off: with it llama.cpp 0.3.36 crashes on prompts. Where it cannot be built, find_llama says why and the benchmark goes on.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

from bench.machine import cpu_flags
from bench.system import UnavailableError

VERSION = "0.3.36"
OVERRIDE = "PACELINE_BENCH_LLAMA_CPP"
BUILD_LIMIT_S = 3600
REPORT_EVERY_S = 20
# What llama.cpp calls an instruction set, and what the kernel calls it.
_X86_SETS = {
    "GGML_AVX": "avx",
    "GGML_AVX2": "avx2",
    "GGML_FMA": "fma",
    "GGML_F16C": "f16c",
    "GGML_BMI2": "bmi2",
    "GGML_AVX512": "avx512f",
    "GGML_AVX512_VNNI": "avx512_vnni",
    "GGML_AVX512_VBMI": "avx512vbmi",
    "GGML_AVX512_BF16": "avx512_bf16",
}


def bench_cache() -> Path:
    """Where the benchmark keeps what takes long to make: llama.cpp, random models."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_llama() -> Path:
    """The Python interpreter that has llama_cpp, built now if need be; raises UnavailableError with the reason."""
    if named := os.environ.get(OVERRIDE):
        _check(Path(named))
        return Path(named)
    flags = choose_flags(cpu_flags())
    key = hashlib.sha256(" ".join([VERSION, *flags]).encode()).hexdigest()[:8]
    folder = bench_cache() / f"llama-cpp-{VERSION}-{key}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            _build(folder, flags)
            _check(folder / "bin" / "python")
            (folder / "complete").touch()
    return folder / "bin" / "python"


def choose_flags(available: frozenset[str]) -> list[str]:
    """CMake's options for a machine with these instruction sets; without any known one, what the compiler finds natively."""
    parts = ["-DLLAVA_BUILD=OFF", "-DMTMD_BUILD=OFF"]
    sets = [f"-D{option}=ON" for option, flag in _X86_SETS.items() if flag in available]
    return ["-DGGML_NATIVE=OFF", *sets, *parts] if sets else ["-DGGML_NATIVE=ON", *parts]


def _build(folder: Path, flags: list[str]) -> None:
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise UnavailableError("llama.cpp: no C++ compiler to build it with")
    shutil.rmtree(folder, ignore_errors=True)
    log = Path(f"{folder}.log")
    print(f"building llama-cpp-python {VERSION} (some minutes; log: {log})", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=300)
    # Not from the cache: pip would take a wheel that it built before with other flags.
    install = [
        "install",
        "--no-cache-dir",
        "--no-binary",
        "llama-cpp-python",
        "--disable-pip-version-check",
        "--verbose",
    ]
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), *install]
    environment = {**os.environ, "CMAKE_ARGS": " ".join(flags)}
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, f"llama-cpp-python=={VERSION}"], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        _wait(process, log, started)
    if process.returncode:
        raise UnavailableError(f"llama.cpp: it cannot be built: {_last_error(log)}")


def _wait(process: subprocess.Popen[bytes], log: Path, started: float) -> None:
    while True:
        try:
            process.wait(REPORT_EVERY_S)
            return
        except subprocess.TimeoutExpired:
            spent = time.monotonic() - started
            print(f"building llama-cpp-python: {spent:.0f} s, {_last_step(log)}", file=sys.stderr, flush=True)
            if spent > BUILD_LIMIT_S:
                process.kill()


def _last_step(log: Path) -> str:
    """How far the compiler is, as ninja says it: [done/all]."""
    steps = re.findall(r"^ *(\[\d+/\d+\])", log.read_text(errors="replace"), re.MULTILINE)
    return f"step {steps[-1]}" if steps else "preparing"


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if "error" in line.lower()]
    return lines[-1][:160] if lines else "pip failed"


def _check(python: Path) -> None:
    try:
        subprocess.run([str(python), "-c", "import llama_cpp"], check=True, timeout=120, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{python} cannot import llama_cpp: {error}", file=sys.stderr, flush=True)
        raise UnavailableError("llama.cpp: its virtual environment cannot import llama_cpp") from None
