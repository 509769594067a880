"""The plain-C library without Python and MLX: every instruction set against float64, on buffers that end where reading is forbidden.

For 64-bit Arm it is built with a cross compiler and run in an emulator, where there are both.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "worker" / "kernels" / "library"
CHECK = Path(__file__).parent / "library" / "check.c"
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
INSTRUCTION_SETS = {
    "x86_64": {
        "portable": ("-Wno-psabi",),
        "avx2": AVX2,
        "avx512": AVX512,
        "avx512_vnni": (*AVX512, "-mavx512vnni"),
    },
    "aarch64": {"portable": ("-Wno-psabi",), "neon": ()},
}


def build(compiler: str, machine: str, folder: Path, *link: str) -> Path:
    """The check as a program; warnings are errors."""
    options = (compiler, "-std=gnu11", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", f"-I{LIBRARY}")
    objects = []
    for name, flags in INSTRUCTION_SETS[machine].items():
        objects.append(folder / f"{name}.o")
        compile_isa = (*options, *flags, "-c", str(LIBRARY / "isa" / f"{name}.c"), "-o", str(objects[-1]))
        subprocess.run(compile_isa, check=True, timeout=300)
    program = folder / "check"
    sources = (str(CHECK), *map(str, sorted(LIBRARY.glob("*.c"))), *map(str, objects))
    subprocess.run((*options, *sources, *link, "-o", str(program), "-lm", "-lpthread"), check=True, timeout=300)
    return program


def run(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout} {done.stderr}"
    return [line.partition(":")[0] for line in done.stdout.splitlines()]


def test_every_instruction_set_is_right_and_reads_nothing_past_its_buffers(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    machine = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if compiler is None or platform.system() != "Linux" or machine not in INSTRUCTION_SETS:
        pytest.skip("there is no C compiler, or the kernels are not built for this machine")
    checked = run(str(build(compiler, machine, tmp_path)))
    assert "portable" in checked


@pytest.mark.long
def test_arm_is_right_in_an_emulator(tmp_path: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("gcc-aarch64-linux-gnu and qemu-user-static are not installed")
    program = build(compiler, "aarch64", tmp_path, "-static")
    assert run(emulator, str(program)) == ["neon", "portable"]
