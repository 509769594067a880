"""Ollama's names of models, and ours. Pure.

Ollama's names have a tag, "latest" where none is given, and may begin with the host that they were pulled from; case does not matter.
"""

from collections.abc import Iterable, Iterator

from paceline_services.errors import InvalidRequestError
from paceline_services.ids import ModelId, parse_model_id

LATEST = "latest"
_HUBS = ("hf.co/", "huggingface.co/")
_LIBRARIES = ("registry.ollama.ai/library/", "registry.ollama.ai/", "library/")


def find_model(name: str, known: Iterable[ModelId]) -> ModelId:
    """The known model that is meant, else the name as an id of ours, which may be unknown. Raises InvalidRequestError for no name."""
    by_name = {model.lower(): model for model in known}
    for candidate in _list_candidates(name):
        if found := by_name.get(candidate.lower()):
            return found
    base, tag = split_tag(name)
    try:
        if not tag:
            raise InvalidRequestError("a tag is missing")
        return parse_model_id(base if tag == LATEST else f"{base}-{tag}")
    except InvalidRequestError as error:
        raise InvalidRequestError(f"invalid model name: {name[:80]!r}", param="model") from error


def split_tag(name: str) -> tuple[str, str]:
    """The name without host and tag, and its tag."""
    rest = _cut(name, (*_HUBS, *_LIBRARIES))
    base, colon, tag = rest.rpartition(":")
    return (base, tag) if colon and "/" not in tag else (rest, LATEST)


def write_name(model_id: str) -> str:
    """The name with its tag, as Ollama lists it."""
    return f"{model_id}:{LATEST}"


def _list_candidates(name: str) -> Iterator[str]:
    yield name
    base, tag = split_tag(name)
    yield base if tag == LATEST else f"{base}-{tag}"


def _cut(name: str, prefixes: Iterable[str]) -> str:
    return next((name[len(prefix) :] for prefix in prefixes if name.lower().startswith(prefix)), name)
