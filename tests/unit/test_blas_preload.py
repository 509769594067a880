"""Which BLAS is preloaded for MLX, and that MLX then computes with it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

blas = pytest.importorskip("paceline_kernels.blas", reason="the package paceline-kernels is not installed")

DEBIAN = ("/usr/lib/x86_64-linux-gnu/openblas-pthread", ["libblas.so.3", "libopenblas.so.0", "libopenblasp-r0.3.21.so"])
CONDA = ("/conda/lib", ["libmkl_rt.so.2", "libblis.so.4", "libcblas.so.3", "libpython3.so"])
# Fedora keeps the serial, OpenMP and POSIX thread builds side by side, and those with 64-bit integers.
FEDORA = ("/usr/lib64", [f"libopenblas{kind}.so.0" for kind in ("", "o", "p", "64", "p64", "o64_", "64_")])

# A BLAS as simple as it can be: says on standard error that it was called. PREFIX and CONFIG make what must be refused.
SOURCE = """
#include <stdio.h>
#include <unistd.h>
static int calls;
__attribute__((constructor)) static void load(void) { ON_LOAD; }
__attribute__((destructor)) static void leave(void) { fprintf(stderr, "calls: %d\\n", calls); }
const char* openblas_get_config(void) { return CONFIG; }
void PREFIX(cblas_sgemm)(int order, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
                         int ldb, float beta, float* c, int ldc) {
  calls++;
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) {
      float sum = 0;
      for (int l = 0; l < k; l++)
        sum += (ta == 111 ? a[i * lda + l] : a[l * lda + i]) * (tb == 111 ? b[l * ldb + j] : b[j * ldb + l]);
      c[i * ldc + j] = alpha * sum + (beta ? beta * c[i * ldc + j] : 0);
    }
}
"""
USE = """
import os, sys
from paceline_kernels.blas import preload_blas
name = preload_blas(num_threads=3)
import mlx.core as mx
a, b = mx.arange(70 * 48, dtype=mx.float32).reshape(70, 48) % 7, mx.arange(48 * 33, dtype=mx.float32).reshape(48, 33) % 5
product = a @ b
expected = (a[:, :, None] * b[None]).sum(axis=1)
print(name, mx.array_equal(product, expected).item(), os.environ["OPENBLAS_NUM_THREADS"])
"""


def build_library(folder: Path, *, prefix: str = "", config: str = "made for a test", on_load: str = "") -> Path:
    """A libopenblas.so.0 in the folder."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler to make a BLAS")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "libopenblas.so.0"
    values = (
        f"-DPREFIX(name)={prefix}##name" if prefix else "-DPREFIX(name)=name",
        f'-DCONFIG="{config}"',
        f"-DON_LOAD={on_load}",
    )
    command = (compiler, "-shared", "-fPIC", "-O2", *values, "-x", "c", "-", "-o", str(path))
    subprocess.run(command, input=SOURCE, text=True, check=True, capture_output=True, timeout=60)
    return path


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-c", program)
    inherited = {name: value for name, value in os.environ.items() if name not in blas.THREAD_VARIABLES}
    return subprocess.run(
        command, env={**inherited, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def find_real_blas() -> str:
    """The path of a BLAS that this machine has."""
    paths = [candidate.path for candidate in blas.find_candidates() if blas.passes_trial(candidate.path)]
    if sys.platform != "linux" or not paths:
        pytest.skip("this machine has no optimised BLAS")
    return paths[0]


# -- order --


def test_openblas_comes_before_mkl_and_blis() -> None:
    candidates = blas.order_candidates([CONDA, DEBIAN])
    assert [candidate.name for candidate in candidates] == ["openblas", "openblas", "mkl", "blis"]


def test_reference_blas_is_no_candidate() -> None:
    assert (
        blas.order_candidates([("/usr/lib", ["libblas.so.3", "libcblas.so.3", "liblapack.so.3", "libgslcblas.so.0"])])
        == []
    )


def test_builds_with_threads_come_first_and_those_with_64_bit_integers_not_at_all() -> None:
    paths = [candidate.path for candidate in blas.order_candidates([FEDORA])]
    assert paths == ["/usr/lib64/libopenblasp.so.0", "/usr/lib64/libopenblaso.so.0", "/usr/lib64/libopenblas.so.0"]


def test_prefixed_libraries_of_numpy_and_scipy_are_no_candidates() -> None:
    names = ["libscipy_openblas.so", "libscipy_openblas64_-32a4b2a6.so", "libopenblas64_p-r0-0cf96a72.3.23.dev.so"]
    assert blas.order_candidates([("/site-packages/numpy.libs", names)]) == []


def test_first_folder_wins() -> None:
    folders = [("/conda/lib", ["libopenblas.so.0"]), ("/usr/lib", ["libopenblasp.so.0"])]
    assert blas.order_candidates(folders)[0].path == "/conda/lib/libopenblas.so.0"
    assert blas.order_candidates(reversed(folders))[0].path == "/usr/lib/libopenblasp.so.0"


def test_newest_version_wins_and_the_link_for_compilers_comes_last() -> None:
    names = ["libmkl_rt.so", "libmkl_rt.so.2", "libmkl_rt.so.10", "libmkl_rt.so.3"]
    paths = [candidate.path for candidate in blas.order_candidates([("/lib", names)])]
    assert paths == ["/lib/libmkl_rt.so.10", "/lib/libmkl_rt.so.3", "/lib/libmkl_rt.so.2", "/lib/libmkl_rt.so"]


def test_order_does_not_depend_on_the_order_of_a_listing() -> None:
    folder, names = FEDORA
    assert blas.order_candidates([FEDORA]) == blas.order_candidates([(folder, names[::-1])])


def test_what_the_user_set_is_searched_before_the_environment_and_the_system() -> None:
    folders = blas.list_folders(("/venv", "/conda"), "/modules/blas:", "x86_64-linux-gnu")
    assert folders[:3] == ["/modules/blas", "/venv/lib", "/conda/lib"]
    assert folders.index("/usr/lib/x86_64-linux-gnu/openblas-pthread") < folders.index(
        "/usr/lib/x86_64-linux-gnu/openblas-serial"
    )
    assert folders.index("/usr/lib/x86_64-linux-gnu/openblas-serial") < folders.index("/usr/lib/x86_64-linux-gnu")
    assert "" not in folders


def test_each_folder_is_searched_once_and_needs_no_triplet() -> None:
    folders = blas.list_folders(("/usr", "/usr"), "/usr/lib", "")
    assert len(folders) == len(set(folders))
    assert not any("{" in folder for folder in folders)


# -- threads --


def test_thread_counts_that_are_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in blas.THREAD_VARIABLES:
        monkeypatch.setenv(name, "7")  # so that monkeypatch takes them away afterwards
    monkeypatch.delenv("MKL_NUM_THREADS")
    blas.set_num_threads(2)
    assert [os.environ[name] for name in blas.THREAD_VARIABLES] == ["7", "2", "7"]


# -- loading --


def test_importing_the_package_does_not_import_mlx() -> None:
    done = run_python(
        "import sys, paceline_kernels.blas; print([name for name in sys.modules if name.startswith('mlx')])"
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_mlx_multiplies_with_the_preloaded_library(tmp_path: Path) -> None:
    build_library(tmp_path)
    done = run_python(USE, LD_LIBRARY_PATH=str(tmp_path))
    assert done.stdout.split() == ["openblas", "True", "3"], done.stderr
    assert int(done.stderr.rpartition("calls: ")[2]) > 0


def test_a_thread_count_of_the_environment_is_kept(tmp_path: Path) -> None:
    build_library(tmp_path)
    done = run_python(USE, LD_LIBRARY_PATH=str(tmp_path), OPENBLAS_NUM_THREADS="1")
    assert done.stdout.split() == ["openblas", "True", "1"], done.stderr


def test_a_real_blas_multiplies_right_in_mlx() -> None:
    name = next(candidate.name for candidate in blas.find_candidates() if candidate.path == find_real_blas())
    done = run_python(USE)
    assert done.stdout.split() == [name, "True", "3"], done.stderr


def test_nothing_is_loaded_after_mlx(tmp_path: Path) -> None:
    build_library(tmp_path)
    program = "import mlx.core; from paceline_kernels.blas import preload_blas; print(repr(preload_blas(2)))"
    done = run_python(program, LD_LIBRARY_PATH=str(tmp_path))
    assert (done.stdout.strip(), "calls:" in done.stderr) == ("''", False)


def test_nothing_is_loaded_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas.preload_blas() == ""


@pytest.mark.parametrize(
    "fault",
    [
        {"prefix": "scipy_"},
        {"config": "OpenBLAS 0.3.21 USE64BITINT DYNAMIC_ARCH"},
        {"on_load": "_exit(0)"},
        {"on_load": "*(volatile int*)0 = 1"},
    ],
    ids=["prefixed names", "64-bit integers", "ends the process", "crashes"],
)
def test_a_library_that_does_not_fit_is_passed_over(fault: dict[str, str], tmp_path: Path) -> None:
    build_library(tmp_path / "bad", **fault)
    build_library(tmp_path / "good")
    done = run_python(USE, LD_LIBRARY_PATH=f"{tmp_path}/bad:{tmp_path}/good")
    assert done.stdout.split() == ["openblas", "True", "3"], done.stderr
    assert done.stderr.count("calls:") == 1


def test_a_file_that_is_no_library_is_passed_over(tmp_path: Path) -> None:
    build_library(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/libopenblas.so.0").write_text("GROUP ( libopenblasp.so.0 )")
    done = run_python(USE, LD_LIBRARY_PATH=f"{tmp_path}/bad:{tmp_path}/good")
    assert done.stdout.split() == ["openblas", "True", "3"], done.stderr


def test_a_library_that_hangs_is_given_up(tmp_path: Path) -> None:
    assert not blas.passes_trial(str(build_library(tmp_path, on_load="pause()")), timeout_s=0.5)


def test_a_machine_without_a_blas_has_no_candidates() -> None:
    assert blas.order_candidates([]) == blas.order_candidates([("/usr/lib", [])]) == []
    assert blas.list_names("/no/such/folder") == []
