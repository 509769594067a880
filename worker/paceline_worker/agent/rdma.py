"""RDMA over Thunderbolt on this Mac: macOS is asked at the start and every now and then, as cables come and go. Changes nothing on it.

`ibv_devices` and `ibv_devinfo` come with macOS 26.2. They list a device for each Thunderbolt port once RDMA was turned on in recovery;
a device is active when RDMA is on at both ends of its cable (Apple's TN3205). Parsers are pure; read_rdma asks the machine.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from paceline_services.domain.nodes import NodeInventory, RdmaInventory
from paceline_services.errors import PacelineError, UnavailableError
from paceline_services.logs import get_logger
from paceline_worker.agent.thunderbolt import parse_ports

PROGRAM_FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where macOS has the programs; an agent that launchd starts has a short PATH."""
LOOK_INTERVAL_S = 30.0
TIMEOUT_S = 15.0
"""For all programs together; system_profiler takes longest."""
TURNED_OFF = "start this Mac in recovery, choose Utilities, Terminal, run `rdma_ctl enable`, and restart; macOS lets nobody do it otherwise"
TOO_OLD = "this macOS has no RDMA over Thunderbolt: update to macOS 26.2 or newer"
_DEVICE = re.compile(r"^\s*(rdma_\S+)\s", re.MULTILINE)
_STATE = re.compile(r"^\s*(hca_id|state):\s+(\S+)", re.MULTILINE)


async def with_rdma(inventory: NodeInventory, *, folders: str = PROGRAM_FOLDERS) -> NodeInventory:
    """The inventory with RDMA as it is now, which only Macs with Apple silicon are asked for; as it was where they do not answer."""
    if not _has_apple_silicon(inventory):
        return inventory
    try:
        return replace(inventory, rdma=await read_rdma(folders))
    except PacelineError as error:
        get_logger().warning("rdma_not_read", reason=error.message)
        return inventory


async def watch_rdma(
    inventory: NodeInventory,
    on_change: Callable[[NodeInventory], None],
    *,
    interval_s: float = LOOK_INTERVAL_S,
    folders: str = PROGRAM_FOLDERS,
) -> None:
    """Call on_change with the inventory whenever RDMA has changed on this machine. Returns where there can be none."""
    while _has_apple_silicon(inventory):
        await asyncio.sleep(interval_s)
        looked = await with_rdma(inventory, folders=folders)
        if looked != inventory:
            inventory = looked
            on_change(inventory)


async def read_rdma(folders: str, timeout_s: float = TIMEOUT_S) -> RdmaInventory | None:
    """RDMA on this Mac; None without Thunderbolt 5.

    Raises UnavailableError when macOS does not answer within timeout_s, InvalidRequestError when not sensibly.
    """
    try:
        async with asyncio.timeout(timeout_s):
            profile, hardware_ports, devices, states = await asyncio.gather(
                _ask(folders, "system_profiler", "SPThunderboltDataType", "-json"),
                _ask(folders, "networksetup", "-listallhardwareports"),
                _ask(folders, "ibv_devices"),
                _ask(folders, "ibv_devinfo"),
            )
    except TimeoutError as error:
        raise UnavailableError(f"macOS did not tell of Thunderbolt within {timeout_s:g} s") from error
    return describe_rdma(profile or "", hardware_ports or "", devices, states or "")


def describe_rdma(profile: str, hardware_ports: str, devices: str | None, states: str) -> RdmaInventory | None:
    """The inventory that four outputs tell; None without Thunderbolt 5. devices is None where there is no such program."""
    ports = parse_ports(profile, hardware_ports)
    if not ports:
        return None
    names = parse_devices(devices or "")
    active = parse_active(states)
    found = {port.interface: f"rdma_{port.interface}" for port in ports if f"rdma_{port.interface}" in names}
    described = tuple(
        replace(port, rdma_device=found.get(port.interface, ""), is_active=found.get(port.interface) in active)
        for port in ports
    )
    absent_reason = "" if names else TURNED_OFF if devices is not None else TOO_OLD
    return RdmaInventory(is_enabled=bool(names), absent_reason=absent_reason, ports=described)


def parse_devices(text: str) -> tuple[str, ...]:
    """Names of the devices that `ibv_devices` lists; none where RDMA is off, when it prints a heading alone."""
    return tuple(_DEVICE.findall(text))


def parse_active(text: str) -> frozenset[str]:
    """Names of the devices whose port is active for `ibv_devinfo`."""
    active = set()
    name = ""
    for key, value in _STATE.findall(text):
        if key == "hca_id":
            name = value
        elif value == "PORT_ACTIVE":
            active.add(name)
    return frozenset(active)


def _has_apple_silicon(inventory: NodeInventory) -> bool:
    return (inventory.os, inventory.architecture) == ("darwin", "arm64")


async def _ask(folders: str, program: str, *arguments: str) -> str | None:
    """What a program prints; None where there is no such program."""
    path = shutil.which(program, path=folders)
    if path is None:
        return None
    process = await asyncio.create_subprocess_exec(
        path,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return output.decode(errors="replace")
