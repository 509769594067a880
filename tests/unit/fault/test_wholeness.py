"""What a state says is missing."""

from typing import Any

from support.wholeness import find_gaps_in_state, find_recovery_s, has_only_fewer_shards


def make_state(*, nodes: int = 3, stages: int = 3, state: str = "ACTIVE", leader: str = "one") -> dict[str, Any]:
    shards = [{"stage": stage, "pid": 100 + stage} for stage in range(stages)]
    return {
        "nodes": [{"state": "up"} for _ in range(nodes)],
        "leader_id": leader,
        "instances": [{"state": state, "message": "", "shards": shards}],
    }


def find(state: dict[str, Any], dead: int = 0) -> list[str]:
    return find_gaps_in_state(state, 3, 3, lambda pid: pid != dead)


def test_whole_cluster_lacks_nothing() -> None:
    assert find(make_state()) == []


def test_what_is_missing_is_named() -> None:
    assert find(make_state(nodes=2)) == ["2 of 3 nodes are up"]
    assert find(make_state(leader="")) == ["nobody leads"]
    assert find(make_state(state="LOADING")) == ["the instance is LOADING"]
    assert find(make_state(), dead=101) == ["the runner of stage 1 is dead"]
    assert find(make_state() | {"instances": []}) == ["0 instances in place of one"]


def test_fewer_stages_alone_are_told_apart() -> None:
    assert has_only_fewer_shards(find(make_state(stages=2)), 3)
    assert not has_only_fewer_shards(find(make_state(stages=2, nodes=2)), 3)
    assert not has_only_fewer_shards([], 3)


def test_recovery_lasts_from_the_blow_until_active_again() -> None:
    seen = [(0.0, True), (1.0, True), (2.0, False), (3.0, False), (4.0, True), (5.0, False), (9.0, True)]
    assert find_recovery_s(seen, 0.5, 4.5) == 3.5
    assert find_recovery_s(seen, 0.5, 1.5) == 0.0
    assert find_recovery_s(seen[:4], 0.5, 4.5) == 2.5
