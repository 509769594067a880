"""A machine without a C++ compiler: the package installs all the same, and MLX computes alone."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = ROOT / ".venv-tool" / "bin" / "uv"
# An editable install finds its package before any path is looked at: here the built one must be found.
ASK = """
import runpy, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable")]
sys.argv[1:] = ["--json", "--threads", "1"]
runpy.run_module("paceline_kernels", run_name="__main__")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is installed where no compiler works."""
    if not UV.exists():
        pytest.skip("uv is not in .venv-tool: run make install")
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    ignored = ("build", "__pycache__")
    for path in (ROOT / "worker" / "kernels").rglob("*"):
        if path.is_file() and not any(part in ignored for part in path.parts) and path.suffix != ".so":
            target = copy / path.relative_to(ROOT / "worker" / "kernels")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    build = (str(UV), "build", "--wheel", str(copy), "--out-dir", str(folder), "--python", sys.executable)
    environment = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    done = subprocess.run(build, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def test_package_installs_without_its_compiled_part(installed: Path) -> None:
    assert (installed / "paceline_kernels" / "takeover.py").exists()
    assert not list(installed.rglob("*.so"))


def test_check_says_what_is_missing_and_what_to_do(installed: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    ask = (sys.executable, "-c", ASK)
    done = subprocess.run(ask, env=environment, capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(done.stdout)
    assert (report["in_use"], report["instruction_set"]) == (False, "")
    assert "install g++ and run `make kernels`" in report["reason"]


def test_process_without_kernels_loads_and_computes_with_stock_mlx(installed: Path) -> None:
    program = ASK.partition("sys.argv")[0] + (
        "import paceline_kernels\n"
        "report = paceline_kernels.use_kernels(precision='fast', num_threads=2)\n"
        "from paceline_worker.model import shard\n"
        "import mlx.core as mx\n"
        "assert not report.in_use and not paceline_kernels.are_kernels_in_use(), report\n"
        "assert paceline_kernels.speed_up_layers({'layers': []}, None, None) == 0\n"
        "assert type(mx.quantized_matmul).__name__ == 'nb_func'\n"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        (sys.executable, "-c", program), env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
