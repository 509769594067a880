"""What macOS tells of Thunderbolt ports: `system_profiler SPThunderboltDataType -json` and `networksetup -listallhardwareports`. Pure.

Each port of a Mac with Apple silicon is a bus of its own with one receptacle. A Mac at the other end of the cable is an item of the bus
with the domain of its port; docks and drives are items without one, and a Mac behind a dock is an item of the dock, to which RDMA does
not reach. Formats: MLX's mlx.distributed_config, and the outputs that tests/fixtures/thunderbolt tells of.
"""

import re

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paceline_services.domain.nodes import ThunderboltPort
from paceline_services.errors import InvalidRequestError

THUNDERBOLT_5_GBPS = 80
"""Thunderbolt 4 does 40; Thunderbolt 5 does 80 both ways, or 120 one way."""
_BESIDE_ETHERNET = {"Mac Studio": "1"}
"""By the name of the machine, the receptacle next to the Ethernet socket on which RDMA does not work: en2 of a Mac Studio, as exo's users
found (exo pull request 1551). A Mac mini has no such port: Apple's TN3205 shows all three in use."""
_SPEED = re.compile(r"(\d+) ?Gb/s")


class _Receptacle(BaseModel):
    model_config = ConfigDict(frozen=True)

    number: str = Field("", alias="receptacle_id_key")
    speed: str = Field("", alias="current_speed_key")
    status: str = Field("", alias="receptacle_status_key")

    @property
    def gbps(self) -> int:
        """What the link does, or could do where nothing is connected ("Up to 120 Gb/s")."""
        found = _SPEED.search(self.speed)
        return int(found[1]) if found else 0

    @property
    def is_connected(self) -> bool:
        return self.status == "receptacle_connected"


class _Item(BaseModel):
    model_config = ConfigDict(frozen=True)

    domain: str = Field("", alias="domain_uuid_key")


class _Bus(BaseModel):
    model_config = ConfigDict(frozen=True)

    machine: str = Field("", alias="device_name_key")
    domain: str = Field("", alias="domain_uuid_key")
    receptacle: _Receptacle | None = Field(None, alias="receptacle_1_tag")
    items: tuple[_Item, ...] = Field((), alias="_items")

    @property
    def peer_domain(self) -> str:
        return next((item.domain for item in self.items if item.domain), "")


class _Profile(BaseModel):
    model_config = ConfigDict(frozen=True)

    buses: tuple[_Bus, ...] = Field((), alias="SPThunderboltDataType")


def parse_ports(profile: str, hardware_ports: str) -> tuple[ThunderboltPort, ...]:
    """The ports by number, without what RDMA makes of them; none where the machine has no Thunderbolt 5.

    profile: JSON of system_profiler; hardware_ports: text of networksetup. Raises InvalidRequestError for a profile that is not one.
    """
    try:
        buses = _Profile.model_validate_json(profile).buses
    except ValidationError as error:
        raise InvalidRequestError(
            "system_profiler told nothing readable of Thunderbolt: is its output complete?"
        ) from error
    if not any(bus.receptacle and bus.receptacle.gbps >= THUNDERBOLT_5_GBPS for bus in buses):
        return ()
    interfaces = parse_interfaces(hardware_ports)
    ports = [_make_port(bus, bus.receptacle, interfaces) for bus in buses if bus.receptacle and bus.domain]
    return tuple(sorted(ports, key=lambda port: (len(port.receptacle), port.receptacle)))


def parse_interfaces(hardware_ports: str) -> dict[str, str]:
    """Network interface by the name of the hardware port, such as "en2" by "Thunderbolt 1"."""
    interfaces: dict[str, str] = {}
    name = ""
    for line in hardware_ports.splitlines():
        key, _, value = line.partition(": ")
        if key == "Hardware Port":
            name = value.strip()
        elif key == "Device" and name:
            interfaces[name] = value.strip()
            name = ""
    return interfaces


def _make_port(bus: _Bus, receptacle: _Receptacle, interfaces: dict[str, str]) -> ThunderboltPort:
    return ThunderboltPort(
        receptacle.number,
        interfaces.get(f"Thunderbolt {receptacle.number}", ""),
        domain=bus.domain,
        peer_domain=bus.peer_domain,
        speed_gbps=receptacle.gbps if receptacle.is_connected else 0,
        is_beside_ethernet=_BESIDE_ETHERNET.get(bus.machine) == receptacle.number,
    )
