"""Empties a node over the admin API and shows how far that is."""

import re
import time
from collections.abc import Collection
from contextlib import suppress

from rich.console import Console

from paceline_cli.api import GatewayClient, Json
from paceline_cli.placing import POLL_S
from paceline_services.errors import InvalidRequestError, PreconditionError, TimeoutExpiredError, UnavailableError

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds of "90", "60s", "5m" or "1h"; raises InvalidRequestError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found:
        raise InvalidRequestError(f"{text!r} is no time: write 60s, 5m or 1h")
    return float(found[1]) * _UNITS_S[found[2]]


def wait_empty(client: GatewayClient, node_id: str, timeout_s: float, console: Console) -> None:
    """Wait until no instance has layers on the node and those that left it answer elsewhere, with a line of progress on a terminal.

    Raises PreconditionError with the reason when one cannot leave, TimeoutExpiredError when it takes too long.
    """
    deadline = time.monotonic() + timeout_s
    awaited: set[str] = set()
    waiting = f"{node_id} cannot be looked at"
    with console.status("", spinner="dots") as status:
        while time.monotonic() < deadline:
            # The gateway, or the control plane behind it, may be away for a moment: the deadline bounds the patience.
            with suppress(UnavailableError):
                state = client.get("/state")
                awaited |= {one["instance_id"] for one in instances_on(state, node_id)}
                waiting = describe_rest(state, node_id, awaited)
                if not waiting:
                    return
                check_may_leave(state, node_id)
                status.update(waiting)
            # The admin API has no event for a command to wait on; the state is read a few times a second.
            time.sleep(POLL_S)
    raise TimeoutExpiredError(f"{waiting} after {timeout_s:.0f} s")


def describe_rest(state: Json, node_id: str, awaited: Collection[str]) -> str:
    """What is left to wait for: instances on the node, then those of the awaited ones that do not answer yet; empty when nothing is."""
    if there := [one["instance_id"] for one in instances_on(state, node_id)]:
        return f"{node_id} still holds layers of {', '.join(there)}"
    loading = [
        one["instance_id"]
        for one in state["instances"]
        if one["instance_id"] in awaited and one["state"] in {"LOADING", "RECOVERING", "PENDING"}
    ]
    return (
        f"{', '.join(loading)} left {node_id} and {'is' if len(loading) == 1 else 'are'} not ACTIVE yet"
        if loading
        else ""
    )


def check_may_leave(state: Json, node_id: str) -> None:
    """Raise PreconditionError with the reason of the first instance that answers and is left where it is."""
    for one in instances_on(state, node_id):
        if one["state"] == "ACTIVE" and one["message"]:
            raise PreconditionError(f"{one['instance_id']} cannot leave {node_id}: {one['message']}")


def instances_on(state: Json, node_id: str) -> list[Json]:
    """Instances that have layers on the node."""
    return [one for one in state["instances"] if any(shard["node_id"] == node_id for shard in one["shards"])]
