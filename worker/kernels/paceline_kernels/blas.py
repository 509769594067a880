"""The fallback of machines without the compiled kernels: MLX's float32 matrix products through an optimised BLAS.

MLX's Linux wheels bring the reference BLAS (about 2 GMAC/s on one core; OpenBLAS does 50 to 170). A library that was loaded with
RTLD_GLOBAL before mlx is found first when mlx's own calls of cblas_sgemm are bound, so loading is all that is needed. It helps models
in float32 only: quantised and half precision products never reach BLAS. Decided here: which library, and whether it fits. Standard
library only; mlx must not be imported before.

python blas.py PATH: prints "usable" when the library at PATH is; the process that will compute starts this first, since a BLAS
may end its process (MKL without its parts, code for another processor).
"""

import ctypes
import ctypes.util
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TRIAL_TIMEOUT_S = 30.0
USABLE = "usable"
# Best first. Not matched on purpose: libopenblas64 and libblis64 (64-bit integers), numpy's and scipy's own (prefixed names).
NAME_PATTERNS = {
    "openblas": re.compile(r"libopenblas([po]?)(?:-r[\d.]+\d)?\.so((?:\.\d+)*)"),
    "mkl": re.compile(r"libmkl_rt()\.so((?:\.\d+)*)"),
    "blis": re.compile(r"libblis(-mt)?\.so((?:\.\d+)*)"),
}
THREADING_ORDER = ("p", "-mt", "o", "")  # POSIX threads, OpenMP, as the distribution pleases
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
SYSTEM_FOLDERS = ("/usr/lib/{triplet}", "/usr/lib64", "/usr/lib", "/usr/local/lib")
# Debian keeps each build in a folder of its own.
BUILDS = ("openblas-pthread", "openblas-openmp", "openblas-serial", "blis-pthread", "blis-openmp", "blis-serial")
INTEL_FOLDERS = ("/opt/intel/oneapi/mkl/latest/lib", "/opt/intel/oneapi/mkl/latest/lib/intel64")
ROW_MAJOR, NOT_TRANSPOSED = 101, 111


@dataclass(frozen=True, slots=True)
class Candidate:
    """A library that may do. name: openblas, mkl or blis; path: of its file, or a name that the loader finds."""

    name: str
    path: str


def preload_blas(num_threads: int | None = None) -> str:
    """Load the best BLAS of this machine for mlx to find: "openblas", "mkl" or "blis"; "" where there is none that fits.

    To be called before mlx is imported: afterwards, and on other systems than Linux, it changes nothing and answers "". num_threads goes
    to the library through the environment, where that does not say it already.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return ""
    for candidate in find_candidates():
        if num_threads is not None:
            set_num_threads(num_threads)
        if passes_trial(candidate.path) and load_globally(candidate.path):
            return candidate.name
    return ""


def set_num_threads(num_threads: int) -> None:
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, str(num_threads))


def find_candidates() -> Iterator[Candidate]:
    """Libraries of this machine, best first: those in known folders, then those that only the loader knows."""
    folders = list_folders(
        (sys.prefix, sys.base_prefix),
        os.environ.get("LD_LIBRARY_PATH", ""),
        getattr(sys.implementation, "_multiarch", ""),
    )
    yield from order_candidates((folder, list_names(folder)) for folder in folders)
    for name in NAME_PATTERNS:  # asks ldconfig, and a compiler where there is one: slow
        path = ctypes.util.find_library("mkl_rt" if name == "mkl" else name)
        if path:
            yield Candidate(name, path)


def list_folders(prefixes: Sequence[str], library_path: str, triplet: str) -> list[str]:
    """Where libraries lie, most specific first: what the user set, the Python environment's own (conda, pip), the system's."""
    own = [f"{prefix}/lib" for prefix in prefixes]
    users = [folder for folder in library_path.split(":") if folder]
    system = [folder.format(triplet=triplet) for folder in SYSTEM_FOLDERS if triplet or "{triplet}" not in folder]
    builds = [f"{folder}/{build}" for folder in system for build in BUILDS]
    return list(dict.fromkeys([*users, *own, *builds, *system, *INTEL_FOLDERS]))


def list_names(folder: str) -> list[str]:
    try:
        return [path.name for path in Path(folder).iterdir()]
    except OSError:
        return []


def order_candidates(listing: Iterable[tuple[str, Sequence[str]]]) -> list[Candidate]:
    """The libraries among the files of folders, best first: by kind, then folder, threading, and the newest version."""
    ranked = []
    for place, (folder, names) in enumerate(listing):
        for name in names:
            for rank, (kind, pattern) in enumerate(NAME_PATTERNS.items()):
                if found := pattern.fullmatch(name):
                    threading, version = found[1] or "", tuple(-int(part) for part in found[2].split(".") if part)
                    # A file without a version is for linking, and may be a text: it comes after those that have one.
                    key = (rank, place, THREADING_ORDER.index(threading), not version, version, name)
                    ranked.append((key, Candidate(kind, str(Path(folder, name)))))
    return [candidate for _, candidate in sorted(ranked, key=lambda pair: pair[0])]


def passes_trial(path: str, timeout_s: float = TRIAL_TIMEOUT_S) -> bool:
    """Whether another process could load and use the library."""
    command = (sys.executable, "-I", "-S", __file__, path)
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.decode(errors="replace").strip() == USABLE


def load_globally(path: str) -> bool:
    try:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def is_usable(path: str) -> bool:
    """Whether the library loads, has cblas_sgemm by that name with 32-bit integers, and multiplies. It may end the process."""
    try:
        library = ctypes.CDLL(path)
    except OSError:
        return False
    return hasattr(library, "cblas_sgemm") and not has_wide_integers(library) and multiplies(library)


def has_wide_integers(library: ctypes.CDLL) -> bool:
    """Whether sizes are 64-bit, under the usual names: mlx passes 32-bit ones."""
    if hasattr(library, "openblas_get_config"):
        library.openblas_get_config.restype = ctypes.c_char_p
        return b"USE64BITINT" in library.openblas_get_config()
    if hasattr(library, "bli_info_get_blas_int_type_size"):
        return int(library.bli_info_get_blas_int_type_size()) != 32
    return "ILP64" in os.environ.get("MKL_INTERFACE_LAYER", "").upper()


def multiplies(library: ctypes.CDLL) -> bool:
    """Whether [1 2; 3 4] x [5 6; 7 8] comes out right."""
    four = ctypes.c_float * 4
    a, b, c = four(1, 2, 3, 4), four(5, 6, 7, 8), four()
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    library.cblas_sgemm.restype = None
    library.cblas_sgemm(ROW_MAJOR, NOT_TRANSPOSED, NOT_TRANSPOSED, 2, 2, 2, one, a, 2, b, 2, zero, c, 2)
    return list(c) == [19, 22, 43, 50]


if __name__ == "__main__":
    if is_usable(sys.argv[1]):
        print(USABLE)
