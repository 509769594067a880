"""Gets instances ACTIVE over the admin API and shows how far they are."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from paceline_cli.api import GatewayClient, Json
from paceline_services.errors import NotFoundError, PacelineError, TimeoutExpiredError, UnavailableError

POLL_S = 0.25


def wait_active(
    client: GatewayClient,
    instance_ids: Sequence[str],
    timeout_s: float,
    console: Console,
    should_stop: Callable[[], bool],
) -> list[Json]:
    """Wait until every one of the instances is ACTIVE, with a progress bar for each on a terminal.

    Raises UnavailableError with the message of the first that cannot be, TimeoutExpiredError when it takes too long.
    """
    deadline = time.monotonic() + timeout_s
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    found: Mapping[str, Json] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {instance_id: bar.add_task(instance_id, total=1.0) for instance_id in instance_ids}
        while time.monotonic() < deadline and not should_stop():
            state = _read_state(client)
            found = {one["instance_id"]: one for one in state["instances"] if one["instance_id"] in tasks}
            for instance_id, instance in found.items():
                bar.update(tasks[instance_id], completed=instance["progress"], description=_describe(instance))
                _check_possible(state["nodes"], instance)
            if len(found) == len(tasks) and all(map(_is_active, found.values())):
                return [found[instance_id] for instance_id in instance_ids]
            # The admin API has no event for a command to wait on; the state is read a few times a second.
            time.sleep(POLL_S)
    waiting = [name for name in instance_ids if name not in found or not _is_active(found[name])]
    names = ", ".join(waiting or instance_ids)
    verb = "is" if len(waiting) == 1 else "are"
    raise TimeoutExpiredError(f"{names} {verb} not ACTIVE after {timeout_s:.0f} s; see `paceline instances`")


def _is_active(instance: Json) -> bool:
    return bool(instance["state"] == "ACTIVE")


def _check_possible(nodes: list[Json], instance: Json) -> None:
    failed = _failed_everywhere(nodes, instance)
    if instance["state"] in {"UNPLACEABLE", "FAILED"} or (failed and not _is_active(instance)):
        raise UnavailableError(f"{instance['instance_id']} cannot be placed: {failed or instance['message']}")


def choose_removed(instances: Sequence[Json], name: str, *, is_all: bool) -> tuple[list[str], list[str]]:
    """Ids of the instances that a name means, and of others of their model that stay.

    An instance's own id means that one alone, unless all are wanted; a model's id means every instance of it. Raises NotFoundError.
    """
    named = next((one for one in instances if one["instance_id"] == name), None)
    of_model = [one["instance_id"] for one in instances if one["model_id"] == name]
    if named is None and not of_model:
        there = ", ".join(one["instance_id"] for one in instances) or "none"
        raise NotFoundError(f"there is no instance and no model {name!r}; there are: {there}")
    if named is None or (is_all and of_model):
        return of_model, []
    if is_all:
        return [one["instance_id"] for one in instances if one["model_id"] == named["model_id"]], []
    return [name], [other for other in of_model if other != name]


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
    return f"{instance['instance_id']}: {instance['state'].lower()}"
