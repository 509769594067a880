"""Downloads from a Hugging Face hub (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE are respected): resumed, checked, and only what MLX needs.

Blocking code: called in a thread.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import tqdm as hub_tqdm

from paceline_services.errors import ConfigurationError

Progress = Callable[[int, int], None]

WANTED = ("*.json", "model*.safetensors", "tokenizer*", "*.jinja", "*.model", "*.txt", "*.tiktoken")
RESERVE_BYTES = 1 << 30
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; sha256 is empty for small files that are not in large-file storage."""

    name: str
    size_bytes: int
    sha256: str


def list_files(repository: str, revision: str | None) -> tuple[str, tuple[HubFile, ...]]:
    """The commit that revision names now, and its files that MLX needs. Raises ConfigurationError."""
    try:
        found = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except GatedRepoError as error:
        raise ConfigurationError(
            f"{repository} needs an accepted licence and a token: log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigurationError(
            f"there is no model {repository} on the hub (or it is private: set HF_TOKEN)"
        ) from error
    except OfflineModeIsEnabled as error:
        raise ConfigurationError(
            f"{repository} is not on this machine and HF_HUB_OFFLINE forbids fetching it"
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ConfigurationError(f"the hub at {constants.ENDPOINT} cannot be reached: {error}") from error
    files = tuple(
        HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else "")
        for file in found.siblings or ()
        if any(fnmatch(file.rfilename, pattern) for pattern in WANTED)
    )
    if not any(file.name.endswith(".safetensors") for file in files):
        raise ConfigurationError(
            f"{repository} has no model*.safetensors files: choose a repository with MLX or safetensors weights"
        )
    return str(found.sha), files


def download(repository: str, commit: str, files: tuple[HubFile, ...], folder: Path, on_progress: Progress) -> None:
    """Fetch files into folder, going on where an earlier try stopped. Raises ConfigurationError."""
    total = sum(file.size_bytes for file in files)
    present = sum(file.size_bytes for file in files if _is_whole(folder / file.name, file))
    check_disk_space(folder, total - present)
    done = 0
    for file in files:
        _fetch(repository, commit, file, folder, partial(_add_progress, on_progress, done, total))
        done += file.size_bytes
        on_progress(done, total)


def check_disk_space(folder: Path, needed_bytes: int) -> None:
    """Raise ConfigurationError when the disk of folder has not so many bytes and a reserve."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed_bytes + RESERVE_BYTES > free:
        raise ConfigurationError(
            f"{folder} has {free / 1e9:.1f} GB free, the model needs {needed_bytes / 1e9:.1f} GB and 1 GB of reserve: free some space"
        )


def _add_progress(on_progress: Progress, before: int, total: int, fetched: int) -> None:
    on_progress(min(before + fetched, total), total)


def _fetch(repository: str, commit: str, file: HubFile, folder: Path, on_bytes: Callable[[int], None]) -> None:
    path = folder / file.name
    if _is_whole(path, file) and _has_checksum(path, file):
        return
    try:
        hf_hub_download(repository, file.name, revision=commit, local_dir=folder, tqdm_class=_make_bar(on_bytes))
    except (EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConfigurationError(f"{file.name} of {repository} cannot be fetched: {error}") from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ConfigurationError(
            f"fetching {file.name} of {repository} broke off and will be resumed: {error}"
        ) from error
    if not _has_checksum(path, file):
        path.unlink(missing_ok=True)
        raise ConfigurationError(
            f"{file.name} of {repository} arrived damaged (wrong checksum) and was thrown away: try again"
        )


def _is_whole(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes


def _has_checksum(path: Path, file: HubFile) -> bool:
    if not file.sha256:
        return True
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == file.sha256


def _make_bar(on_bytes: Callable[[int], None]) -> type[Any]:
    """A progress bar class that prints nothing and tells the bytes of the file so far."""

    class Bar(hub_tqdm):  # type: ignore[misc,unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            self._fetched = int(kwargs.get("initial") or 0)
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            self._fetched += int(n or 0)
            on_bytes(self._fetched)
            return None

    return Bar
