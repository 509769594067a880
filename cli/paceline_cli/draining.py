"""Empties a node over the admin API and shows how far that is."""

import re
import time

from rich.console import Console

from paceline_cli.api import GatewayClient, Json
from paceline_cli.placing import POLL_S
from paceline_services.errors import InvalidRequestError, TimeoutExpiredError, UnavailableError

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds of "90", "60s", "5m" or "1h"; raises InvalidRequestError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found:
        raise InvalidRequestError(f"{text!r} is no time: write 60s, 5m or 1h")
    return float(found[1]) * _UNITS_S[found[2]]


def wait_empty(client: GatewayClient, node_id: str, timeout_s: float, console: Console) -> None:
    """Wait until no instance has layers on the node, with a line for each that is left on a terminal.

    Raises UnavailableError with the reason when one cannot leave, TimeoutExpiredError when it takes too long.
    """
    deadline = time.monotonic() + timeout_s
    left: list[str] = []
    with console.status("", spinner="dots") as status:
        while time.monotonic() < deadline:
            there = instances_on(client.get("/state"), node_id)
            if not there:
                return
            for one in there:
                if reason := why_it_stays(one):
                    raise UnavailableError(f"{one['instance_id']} cannot leave {node_id}: {reason}")
            left = [one["instance_id"] for one in there]
            status.update(f"{node_id} still holds layers of {', '.join(left)}")
            # The admin API has no event for a command to wait on; the state is read a few times a second.
            time.sleep(POLL_S)
    raise TimeoutExpiredError(f"{node_id} still holds layers of {', '.join(left)} after {timeout_s:.0f} s")


def instances_on(state: Json, node_id: str) -> list[Json]:
    """Instances that have layers on the node."""
    return [one for one in state["instances"] if any(shard["node_id"] == node_id for shard in one["shards"])]


def why_it_stays(instance: Json) -> str:
    """Why an instance that answers is left where it is; empty where it will move."""
    return str(instance["message"]) if instance["state"] == "ACTIVE" else ""
