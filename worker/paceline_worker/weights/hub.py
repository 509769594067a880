"""Downloads from a Hugging Face hub (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE are respected): resumed, checked, and only what MLX needs.

The hub's library lists a repository's files. They are fetched here, because that library throws a broken file away when the process or
the call ends; a part file stays, named by the checksum of what it will be. Blocking code: called in a thread.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from threading import Event

import httpx2
from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from paceline_services.backoff import Backoff
from paceline_services.errors import ConfigurationError

Progress = Callable[[int, int], None]

WANTED = ("*.json", "model*.safetensors", "tokenizer*", "*.jinja", "*.model", "*.txt", "*.tiktoken")
RESERVE_BYTES = 1 << 30
PART_SUFFIX = ".part"
MAX_TRIES_WITHOUT_PROGRESS = 5
TIMEOUT_S = 10.0
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; checksum is the sha256 of a file in large-file storage, git's blob hash of a small one."""

    name: str
    size_bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Download:
    """Files of one commit on their way into a folder. Setting stopped ends it within TIMEOUT_S; what has arrived stays."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]
    folder: Path
    on_progress: Progress
    stopped: Event = field(default_factory=Event)


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
    except RevisionNotFoundError as error:
        raise ConfigurationError(f"{repository} has no revision {revision!r} on the hub") from error
    except HFValidationError as error:
        raise ConfigurationError(f"{repository!r} is no id of a model on the hub: it must be owner/name") from error
    except OfflineModeIsEnabled as error:
        raise ConfigurationError(
            f"{repository} is not on this machine and HF_HUB_OFFLINE forbids fetching it"
        ) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise ConfigurationError(f"the hub at {constants.ENDPOINT} cannot be reached: {_first_line(error)}") from error
    files = tuple(
        HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in found.siblings or ()
        if _is_wanted(file.rfilename)
    )
    if not any(file.name.endswith(".safetensors") for file in files):
        raise ConfigurationError(
            f"{repository} has no model*.safetensors files: choose a repository with MLX or safetensors weights"
        )
    return str(found.sha), files


def fetch_files(download: Download) -> None:
    """Fetch what the folder lacks, going on where an earlier try stopped. Raises ConfigurationError."""
    total = sum(file.size_bytes for file in download.files)
    missing = [file for file in download.files if not _is_there(download.folder / file.name, file)]
    arrived = sum(_size(_part_path(download.folder, file)) for file in missing)
    check_disk_space(download.folder, sum(file.size_bytes for file in missing) - arrived)
    done = total - sum(file.size_bytes for file in missing)
    for file in missing:
        _fetch(download, file, lambda fetched, before=done: download.on_progress(before + fetched, total))  # type: ignore[misc]
        done += file.size_bytes
    download.on_progress(total, total)
    for leftover in download.folder.glob(f"*{PART_SUFFIX}"):
        leftover.unlink()


def check_disk_space(folder: Path, needed_bytes: int) -> None:
    """Raise ConfigurationError when the disk of folder has not so many bytes and a reserve."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed_bytes + RESERVE_BYTES > free:
        raise ConfigurationError(
            f"{folder} has {free / 1e9:.1f} GB free, the model needs {needed_bytes / 1e9:.1f} GB and 1 GB of reserve: free some space"
        )


def _is_wanted(name: str) -> bool:
    """Files in folders are never wanted, which also refuses names that lead out of the model's folder."""
    return Path(name).name == name and any(fnmatch(name, pattern) for pattern in WANTED)


def _fetch(download: Download, file: HubFile, on_bytes: Callable[[int], None]) -> None:
    part, backoff = _part_path(download.folder, file), Backoff()
    failures = 0
    while True:
        before = _size(part)
        try:
            _append(download, file, part, on_bytes)
            break
        except httpx2.TransportError as error:
            failures = failures + 1 if _size(part) == before else 1
            if failures == MAX_TRIES_WITHOUT_PROGRESS or download.stopped.wait(backoff.pause_s(failures)):
                raise ConfigurationError(
                    f"fetching {file.name} of {download.repository} broke off and will be resumed: {_first_line(error)}"
                ) from error
        except (HfHubHTTPError, OSError) as error:
            raise ConfigurationError(
                f"{file.name} of {download.repository} cannot be fetched: {_first_line(error)}"
            ) from error
    if not _has_checksum(part, file):
        part.unlink()
        raise ConfigurationError(
            f"{file.name} of {download.repository} arrived damaged (wrong checksum) and was thrown away: try again"
        )
    part.rename(download.folder / file.name)


def _append(download: Download, file: HubFile, part: Path, on_bytes: Callable[[int], None]) -> None:
    """One request for what the part file lacks. Raises httpx2.TransportError when the connection breaks."""
    first = _size(part)
    if first and first >= file.size_bytes:
        return
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"} | ({"Range": f"bytes={first}-"} if first else {})
    url = hf_hub_url(download.repository, file.name, revision=download.commit)
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S) as response:
        hf_raise_for_status(response)
        is_rest = response.status_code == httpx2.codes.PARTIAL_CONTENT
        with part.open("ab" if is_rest else "wb", buffering=0) as stream:
            for chunk in response.iter_raw():
                if download.stopped.is_set():
                    raise ConfigurationError(f"fetching {download.repository} was stopped and can be resumed")
                stream.write(chunk)
                on_bytes(min(stream.tell(), file.size_bytes))


def _part_path(folder: Path, file: HubFile) -> Path:
    """Named by checksum, so the parts of two versions are never put together."""
    return folder / f".{file.name}.{file.checksum[:16]}{PART_SUFFIX}"


def _is_there(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes and _has_checksum(path, file)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _has_checksum(path: Path, file: HubFile) -> bool:
    if path.stat().st_size != file.size_bytes:
        return False
    digest = hashlib.sha256()
    if len(file.checksum) != digest.digest_size * 2:
        digest = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return not file.checksum or digest.hexdigest() == file.checksum


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
