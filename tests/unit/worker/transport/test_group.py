"""Joining a group, up to the call of mx.distributed.init: what MLX finds in environment and file, and what is refused before and after."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from paceline_services.domain.runners import GroupBackend, GroupSeat, RdmaDevices
from paceline_services.errors import UnavailableError
from paceline_worker.transport.group import describe_join, join_group, reserve_address

ADDRESSES = ("10.0.0.1:40001", "10.0.0.2:40002", "10.0.0.3:40003")
DEVICES = (
    RdmaDevices(("", "rdma_en3", "rdma_en4")),
    RdmaDevices(("rdma_en5", "", "rdma_en3")),
    RdmaDevices(("rdma_en3", "rdma_en4", "")),
)
RING = GroupSeat(GroupBackend.RING, 1, 3, ADDRESSES)
JACCL = GroupSeat(GroupBackend.JACCL, 1, 3, ADDRESSES, DEVICES)
NCCL = GroupSeat(GroupBackend.NCCL, 1, 3, ADDRESSES)
VARIABLES = (
    *("MLX_RANK", "MLX_WORLD_SIZE", "MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR"),
    *("MLX_METAL_FAST_SYNCH", "NCCL_HOST_IP", "NCCL_PORT"),
)


@dataclass
class Joined:
    """A group as mx.distributed.init would return it, and what init could read when it was called."""

    members: tuple[int, int] = (1, 3)
    failure: Exception | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)

    def init(self, **arguments: Any) -> "Joined":
        self.arguments = arguments
        for name in VARIABLES:
            if (value := os.environ.get(name)) is None:
                continue
            if value.startswith(os.sep):
                self.files[name] = json.loads(Path(value).read_text())
            else:
                self.variables[name] = value
        if self.failure is not None:
            raise self.failure
        return self

    def rank(self) -> int:
        return self.members[0]

    def size(self) -> int:
        return self.members[1]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of a group before the test, nor after it."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield


def test_ring_finds_every_member_in_its_host_file(tmp_path: Path) -> None:
    joined = Joined()
    assert join_group(RING, tmp_path / "groups", joined.init) is joined
    assert joined.arguments == {"strict": True, "backend": "ring"}
    assert joined.variables == {"MLX_RANK": "1"}
    assert joined.files == {"MLX_HOSTFILE": [["10.0.0.1:40001"], ["10.0.0.2:40002"], ["10.0.0.3:40003"]]}


def test_jaccl_finds_the_device_matrix_and_the_coordinator(tmp_path: Path) -> None:
    joined = Joined()
    assert join_group(JACCL, tmp_path, joined.init) is joined
    assert joined.arguments == {"strict": True, "backend": "jaccl"}
    assert joined.variables == {
        "MLX_RANK": "1",
        "MLX_JACCL_COORDINATOR": "10.0.0.1:40001",
        "MLX_METAL_FAST_SYNCH": "1",
    }
    assert joined.files == {
        "MLX_IBV_DEVICES": [
            [None, "rdma_en3", "rdma_en4"],
            ["rdma_en5", None, "rdma_en3"],
            ["rdma_en3", "rdma_en4", None],
        ]
    }


def test_nccl_finds_rank_0_and_the_number_of_members(tmp_path: Path) -> None:
    joined = Joined()
    assert join_group(NCCL, tmp_path, joined.init) is joined
    assert joined.arguments == {"strict": True, "backend": "nccl"}
    assert joined.variables == {
        "MLX_RANK": "1",
        "MLX_WORLD_SIZE": "3",
        "NCCL_HOST_IP": "10.0.0.1",
        "NCCL_PORT": "40001",
    }
    assert not joined.files


@pytest.mark.parametrize("seat", [RING, JACCL])
@pytest.mark.parametrize("failure", [None, RuntimeError("no device")])
def test_file_does_not_stay_behind(seat: GroupSeat, failure: Exception | None, tmp_path: Path) -> None:
    with suppress(UnavailableError):
        join_group(seat, tmp_path, Joined(failure=failure).init)
    assert not list(tmp_path.iterdir())


def test_failure_of_mlx_is_told_with_the_seat(tmp_path: Path) -> None:
    joined = Joined(failure=RuntimeError("[jaccl] Couldn't open device rdma_en5"))
    with pytest.raises(UnavailableError, match=r"jaccl group of 3, rank 1, could not be joined: .*rdma_en5") as refused:
        join_group(JACCL, tmp_path, joined.init)
    assert refused.value.reason == "GROUP_FAILED"


@pytest.mark.parametrize("members", [(0, 3), (1, 2), (0, 1)])
def test_group_of_another_rank_or_size_is_refused(members: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=f"joined as rank {members[0]} of {members[1]}") as refused:
        join_group(RING, tmp_path, Joined(members).init)
    assert refused.value.reason == "GROUP_FAILED"


@pytest.mark.parametrize(
    ("seat", "reason"),
    [
        (replace(RING, addresses=()), "lacks addresses: 0 are known"),
        (replace(RING, addresses=("10.0.0.1:40001", "", "10.0.0.3:40003")), "lacks addresses: 2 are known"),
        (replace(RING, rank=3), "no such seat"),
        (replace(RING, rank=-1), "no such seat"),
        (GroupSeat(GroupBackend.RING, 0, 1, ADDRESSES[:1]), "at least 2 members"),
        (replace(JACCL, rdma_devices=()), "every pair of its 3 members"),
        (replace(JACCL, rdma_devices=DEVICES[:2]), "every pair of its 3 members"),
        (replace(JACCL, rdma_devices=(*DEVICES[:2], RdmaDevices(("rdma_en3", "")))), "every pair of its 3 members"),
        (
            replace(JACCL, rdma_devices=(*DEVICES[:2], RdmaDevices(("", "rdma_en4", "")))),
            "no RDMA device on rank 2 toward rank 0",
        ),
        (
            replace(JACCL, rdma_devices=(*DEVICES[:2], RdmaDevices(("rdma_en3", "rdma_en4", "rdma_en5")))),
            "the device 'rdma_en5' on rank 2 toward rank 2",
        ),
    ],
)
def test_seat_that_does_not_tell_everything_is_refused(seat: GroupSeat, reason: str) -> None:
    with pytest.raises(UnavailableError, match=reason) as refused:
        describe_join(seat)
    assert refused.value.reason == "GROUP_FAILED"


def test_reserved_address_can_be_listened_on() -> None:
    addresses = {reserve_address("127.0.0.1") for _ in range(4)}
    assert len(addresses) == 4
    for address in addresses:
        host, _, port = address.rpartition(":")
        with socket.create_server((host, int(port))):
            pass


def test_ipv6_address_has_brackets() -> None:
    assert reserve_address("::1").startswith("[::1]:")
    seat = replace(NCCL, addresses=("[fd00::1]:40001", *ADDRESSES[1:]))
    assert describe_join(seat).variables["NCCL_HOST_IP"] == "fd00::1"
