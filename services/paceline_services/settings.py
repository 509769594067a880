"""How settings are read, and those that several services share.

Order: flags > PACELINE_* environment > TOML file (PACELINE_CONFIG, else <home>/paceline.toml) > default. Each service has one
frozen class, read once in its __main__; docs/configuration.md is generated from the descriptions.
"""

import os
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from paceline_services.errors import ConfigurationError
from paceline_services.logs import LogFormat, LogLevel

SettingsT = TypeVar("SettingsT", bound="ServiceSettings")


def default_home() -> Path:
    """PACELINE_HOME, else the XDG state folder (~/.local/state/paceline)."""
    if home := os.environ.get("PACELINE_HOME"):
        return Path(home).expanduser()
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "paceline"


class ServiceSettings(BaseSettings):
    """Base of every service's settings."""

    model_config = SettingsConfigDict(env_prefix="PACELINE_", frozen=True, extra="ignore")

    home: Path = Field(default_factory=default_home, description="Folder for everything that Paceline writes.")
    namespace: str = Field("default", pattern=r"^[a-z0-9-]{1,63}$", description="Name that keeps clusters apart.")
    log_level: LogLevel = Field("info", description="Least severe log line that is written.")
    log_format: LogFormat = Field("auto", description="json, console, or auto: console on a terminal, json elsewhere.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (init) first, then environment, then the TOML file, which lies in the home that these name."""
        home = Path(init_settings().get("home") or default_home()).expanduser()
        config = Path(os.environ.get("PACELINE_CONFIG") or home / "paceline.toml")
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config))


def read_settings(kind: type[SettingsT], **flags: Any) -> SettingsT:
    """Settings from all sources; flags that are None count as not given. Raises ConfigurationError."""
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigurationError(f"unusable settings: {faults}") from error


def split_list(text: str) -> tuple[str, ...]:
    """The parts of a list separated by commas, without blanks and empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def exit_with(error: Exception) -> int:
    """Print an error as one line for a person and return the exit code for it."""
    print(f"paceline: {error}", file=sys.stderr)
    return 1
