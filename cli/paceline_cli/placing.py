"""Gets an instance ACTIVE over the admin API and shows how far it is."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from paceline_cli.api import GatewayClient, Json
from paceline_services.errors import PacelineError, TimeoutExpiredError, UnavailableError

POLL_S = 0.25


def wait_active(
    client: GatewayClient, instance_id: str, timeout_s: float, console: Console, should_stop: Callable[[], bool]
) -> Json:
    """Wait until the instance is ACTIVE, with a progress bar on a terminal.

    Raises UnavailableError with its message when it cannot be, TimeoutExpiredError when it takes too long.
    """
    deadline = time.monotonic() + timeout_s
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(instance_id, total=1.0)
        while time.monotonic() < deadline and not should_stop():
            state = _read_state(client)
            instances: list[Json] = state["instances"]
            instance = next((one for one in instances if one["instance_id"] == instance_id), None)
            if instance is not None:
                bar.update(task, completed=instance["progress"], description=_describe(instance))
                failed = _failed_everywhere(state["nodes"], instance)
                if instance["state"] == "ACTIVE":
                    return instance
                if instance["state"] in {"UNPLACEABLE", "FAILED"} or failed:
                    raise UnavailableError(f"{instance['model_id']} cannot be placed: {failed or instance['message']}")
            # The admin API has no event for a command to wait on; the state is read a few times a second.
            time.sleep(POLL_S)
    raise TimeoutExpiredError(f"{instance_id} is not ACTIVE after {timeout_s:.0f} s; see `paceline instances`")


def _read_state(client: GatewayClient) -> Json:
    """The cluster; empty while the control plane is away for a moment: the deadline bounds the patience."""
    try:
        state: Json = client.get("/state")
    except PacelineError:
        return {"nodes": [], "instances": []}
    return state


def _failed_everywhere(nodes: list[Json], instance: Json) -> str:
    """The reason when no node can get the model and all have tried; else empty."""
    reports: list[Any] = [
        model for node in nodes for model in node["models"] if model["model_id"] == instance["model_id"]
    ]
    if nodes and len(reports) == len(nodes) and all(report["state"] == "failed" for report in reports):
        return str(reports[0]["message"])
    return ""


def _describe(instance: Json) -> str:
    return f"{instance['model_id']}: {instance['state'].lower()}"
