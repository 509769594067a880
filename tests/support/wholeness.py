"""What a cluster's GET /state says is missing. Pure."""

from collections.abc import Callable, Sequence
from typing import Any

Json = dict[str, Any]


def find_gaps_in_state(state: Json, num_nodes: int, num_shards: int, is_living: Callable[[int], bool]) -> list[str]:
    """Everything that is not as it should be, in words: nodes, leader, and one instance of so many shards whose runners live."""
    num_up = sum(node["state"] == "up" for node in state["nodes"])
    found = [] if num_up == num_nodes else [f"{num_up} of {num_nodes} nodes are up"]
    if not state["leader_id"]:
        found.append("nobody leads")
    if len(state["instances"]) != 1:
        return [*found, f"{len(state['instances'])} instances in place of one"]
    return found + find_gaps_in_instance(state["instances"][0], num_shards, is_living)


def find_gaps_in_instance(instance: Json, num_shards: int, is_living: Callable[[int], bool]) -> list[str]:
    """As find_gaps_in_state, of the instance."""
    found = []
    if instance["state"] != "ACTIVE":
        found.append(f"the instance is {instance['state']}: {instance['message']}".rstrip(": "))
    shards = instance["shards"]
    if len(shards) != num_shards:
        found.append(f"{len(shards)} shards in place of {num_shards}")
    found += [f"no runner of stage {shard['stage']}" for shard in shards if not shard["pid"]]
    found += [
        f"the runner of stage {one['stage']} is dead" for one in shards if one["pid"] and not is_living(one["pid"])
    ]
    return found


def has_only_fewer_shards(missing: list[str], num_shards: int) -> bool:
    """Whether all that is missing is that the instance has fewer shards than it was meant for."""
    return len(missing) == 1 and missing[0].endswith(f"shards in place of {num_shards}")


def find_recovery_s(seen: Sequence[tuple[float, bool]], since: float, until: float) -> float:
    """Seconds from a blow until an instance that ceased to be ACTIVE was so again; 0 where it did not cease before until.

    seen: (when, whether it was ACTIVE), in order. Where it never was again, the time to the last look.
    """
    ceased = next((at for at, is_active in seen if since <= at <= until and not is_active), None)
    if ceased is None:
        return 0.0
    return next((at for at, is_active in seen if at > ceased and is_active), seen[-1][0]) - since
