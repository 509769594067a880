"""The gateway over HTTP, for the commands."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from paceline_cli.settings import DEFAULT_PORT, CliSettings
from paceline_services.errors import InvalidRequestError, PacelineError, UnavailableError

Json = dict[str, Any]


class GatewayClient:
    """Calls one gateway; raises PacelineError with the gateway's own message."""

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)

    def get(self, path: str, **query: str | int) -> Any:
        return self._call("GET", path, params=query)

    def post(self, path: str, body: Json) -> Any:
        return self._call("POST", path, json=body)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path)

    def stream_chat(self, body: Json) -> Iterator[str]:
        """The pieces of text of one chat completion."""
        with (
            self._explain(),
            self._http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}, timeout=None) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise _to_error(response)
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise UnavailableError(chunk["error"]["message"])
                yield from (choice["delta"].get("content") or "" for choice in chunk["choices"])

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        with self._explain():
            response = self._http.request(method, path, **arguments)
        if response.is_error:
            raise _to_error(response)
        return response.json()

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            hint = "is a cluster running? Start one with `paceline up`"
            raise UnavailableError(f"no gateway answers at {self.url} ({error}): {hint}") from error


def find_url(settings: CliSettings) -> str:
    """The gateway's URL: as set, else that of the cluster running in this home, else the default."""
    if settings.url:
        return settings.url
    recorded = read_record(settings.home)
    return str(recorded["url"]) if recorded else f"http://127.0.0.1:{DEFAULT_PORT}"


def read_record(home: Path) -> Json | None:
    """What a running `paceline up` wrote down about itself; None when none does."""
    try:
        record: Json = json.loads((home / "run" / "cluster.json").read_text())
    except (OSError, ValueError):
        return None
    return record


def _to_error(response: httpx.Response) -> PacelineError:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the gateway answered {response.status_code}: {response.text[:200]}"
    return InvalidRequestError(message) if response.status_code < 500 else UnavailableError(message)
