"""Downloads from a Hugging Face hub (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE are respected): resumed, checked, and only what MLX needs.

Blocking code: called in a thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
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
