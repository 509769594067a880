"""Writes docs/configuration.md from the settings classes: python docs/generate_configuration.py [--check]."""

import sys
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from paceline_api_gateway.settings import GatewaySettings
from paceline_cli.settings import CliSettings, UpSettings
from paceline_control_plane.settings import ControlPlaneSettings
from paceline_services.settings import ServiceSettings
from paceline_worker.agent.settings import AgentSettings
from paceline_worker.runner.settings import RunnerSettings

PAGE = Path(__file__).with_name("configuration.md")
SERVICES: dict[str, type[ServiceSettings]] = {
    "`paceline up`": UpSettings,
    "Other commands": CliSettings,
    "Control plane (`python -m paceline_control_plane`)": ControlPlaneSettings,
    "Agent (`python -m paceline_worker.agent`)": AgentSettings,
    "Runner (started by agents)": RunnerSettings,
    "Gateway (`python -m paceline_api_gateway`)": GatewaySettings,
}
INTRODUCTION = """# Configuration

Written by `make docs` from the settings classes; do not edit.

Every setting can be given as a flag of its process (where the process has flags), as an environment variable, or in
a TOML file (`PACELINE_CONFIG`, else `<home>/paceline.toml`). A flag wins over the environment, the environment over the file, the file
over the default. A setting that several processes have, such as `PACELINE_LISTEN`, applies to each of them when it is given in the
environment or the file: give addresses as flags.
"""


def render() -> str:
    parts = [INTRODUCTION]
    for title, settings in SERVICES.items():
        parts.append(
            f"## {title}\n\n| setting | environment | default | meaning |\n|---|---|---|---|\n"
            + "\n".join(rows(settings))
            + "\n"
        )
    return "\n".join(parts)


def rows(settings: type[ServiceSettings]) -> list[str]:
    return [
        f"| `{name}` | `PACELINE_{name.upper()}` | {describe_default(field)} | {field.description} |"
        for name, field in settings.model_fields.items()
    ]


def describe_default(field: Any) -> str:
    if field.default_factory is not None:
        return "from the machine"
    return "" if field.default in {None, PydanticUndefined} else f"`{field.default}`"


def main() -> int:
    page = render()
    if "--check" in sys.argv:
        return 0 if PAGE.exists() and PAGE.read_text() == page else 1
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
