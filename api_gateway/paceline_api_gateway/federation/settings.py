"""What is said of a backend in the gateway's settings."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError("must be http://host:port or https://host:port, with a path where the server has one")
    return re.sub(r"/v1$", "", url.rstrip("/"))


class BackendSettings(BaseModel):
    """One [[backends]] table. It claims the ids and patterns in models, and models of its size class; with neither, all that it lists."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Name in /health, errors and owned_by.")
    url: Annotated[str, AfterValidator(_check_url)] = Field(description="Where it serves; a final /v1 is left out.")
    api_key_env: str = Field("", description="Environment variable with its API key; empty: none is sent.")
    models: tuple[str, ...] = Field((), description="Model ids, and patterns of them with *, ? and [].")
    min_parameters_b: float | None = Field(
        None, ge=0, description="Smallest model of its size class, in 10^9 parameters."
    )
    max_parameters_b: float | None = Field(
        None, gt=0, description="Largest model of its size class, in 10^9 parameters."
    )
    timeout_s: float = Field(600.0, gt=0, description="Seconds without a byte of it after which it is given up.")

    @model_validator(mode="after")
    def _check_sizes(self) -> "BackendSettings":
        least, most = self.min_parameters_b, self.max_parameters_b
        if least is not None and most is not None and least > most:
            raise ValueError("min_parameters_b is larger than max_parameters_b")
        return self


def check_names(backends: tuple[BackendSettings, ...]) -> tuple[BackendSettings, ...]:
    names = [one.name for one in backends]
    if len(set(names)) < len(names):
        raise ValueError("two backends have the same name")
    return backends


Backends = Annotated[tuple[BackendSettings, ...], AfterValidator(check_names)]
