"""npm's packages for a test, installed once and kept in the user's cache."""

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from support.demo import cache_folder

INSTALL_TIMEOUT_S = 240.0


def install_packages(source: Path) -> Path:
    """A copy of the folder source, with what its package.json asks for. Skips the test where that cannot be had."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    folder = cache_folder() / source.name
    wanted = (source / "package.json").read_text()
    with FileLock(cache_folder() / f"{source.name}.lock"):
        mark = folder / "installed.json"
        if not (mark.exists() and mark.read_text() == wanted):
            folder.mkdir(exist_ok=True)
            shutil.copy(source / "package.json", folder)
            _install(folder)
            mark.write_text(wanted)
        for script in source.glob("*.mjs"):
            shutil.copy(script, folder)
    return folder


def _install(folder: Path) -> None:
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries", "0"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not install its packages in time")
    if done.returncode:
        pytest.skip(f"npm could not install its packages: {done.stderr.decode()[-300:]}")
