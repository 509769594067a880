"""A network switch in a process: frames go between TAP devices in network namespaces, and a test cuts, delays and slows any direction.

Stands in for netem, which not every kernel has. Run as a script, as root. Standard input has JSON lines; each is answered by a line "ok":
first {"ports": {HOST: [NAMESPACE, ADDRESS/BITS, DEVICE]}}, then any of {"cut": [FROM, TO]}, {"heal": [FROM, TO]}, {"heal": []} for
all, {"delay_s": S, "between": [FROM, TO]}, {"rate_bits": BITS_PER_S, "between": [FROM, TO]} (0: none). It ends with its input, and
its devices end with it.
"""

import ctypes
import fcntl
import heapq
import json
import os
import select
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

FRAME_BYTES = 9100
MTU = 9000
LINE_BYTES = 1 << 16
FRAMES_PER_TURN = 64
QUEUE_S = 1.0
"""A frame that would wait longer for its turn on a slow wire is dropped, as by a full buffer."""
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP_NO_PI = 0x1002


@dataclass(slots=True)
class Wire:
    """One direction between two hosts."""

    is_cut: bool = False
    delay_s: float = 0.0
    rate_bits: float = 0.0
    free_at: float = 0.0

    def find_arrival(self, now: float, num_bytes: int) -> float | None:
        """When a frame that is sent now arrives, in seconds of the same clock; None when it is lost."""
        if self.is_cut:
            return None
        if self.rate_bits:
            begin = max(now, self.free_at)
            if begin - now > QUEUE_S:
                return None
            self.free_at = begin + num_bytes * 8 / self.rate_bits
            return self.free_at + self.delay_s
        return now + self.delay_s


@dataclass(slots=True)
class Wires:
    """All directions, and what commands do to them."""

    wires: dict[tuple[str, str], Wire] = field(default_factory=dict)

    def between(self, sender: str, receiver: str) -> Wire:
        return self.wires.setdefault((sender, receiver), Wire())

    def obey(self, command: dict[str, Any]) -> None:
        """Raises ValueError for a command that is none."""
        match command:
            case {"cut": [sender, receiver]}:
                self.between(sender, receiver).is_cut = True
            case {"heal": []}:
                self.wires.clear()
            case {"heal": [sender, receiver]}:
                self.wires.pop((sender, receiver), None)
            case {"delay_s": delay_s, "between": [sender, receiver]}:
                self.between(sender, receiver).delay_s = delay_s
            case {"rate_bits": rate_bits, "between": [sender, receiver]}:
                self.between(sender, receiver).rate_bits = rate_bits
            case _:
                raise ValueError(f"{command} is no command of the switch")


class Switch:
    """Learns where addresses are, and passes frames on when their time has come."""

    def __init__(self, ports: dict[int, str]) -> None:
        self.wires = Wires()
        self._ports = ports
        self._learnt: dict[bytes, int] = {}
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._number = 0

    def run(self) -> None:
        """Until standard input ends."""
        poll = select.epoll()
        for port in (*self._ports, sys.stdin.fileno()):
            poll.register(port, select.EPOLLIN)
        while True:
            for ready, _ in poll.poll(self._wait_s()):
                if ready in self._ports:
                    self._take(ready)
                elif not self._obey():
                    return
            self._deliver()

    def _wait_s(self) -> float:
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else -1

    def _obey(self) -> bool:
        line = os.read(sys.stdin.fileno(), LINE_BYTES)
        for text in line.splitlines():
            self.wires.obey(json.loads(text))
            print("ok", flush=True)
        return bool(line)

    def _take(self, port: int) -> None:
        for _ in range(FRAMES_PER_TURN):
            try:
                frame = os.read(port, FRAME_BYTES)
            except BlockingIOError:
                return
            self._send(port, frame)

    def _send(self, port: int, frame: bytes) -> None:
        receiver, sender = frame[:6], frame[6:12]
        self._learnt[sender] = port
        known = self._learnt.get(receiver)
        targets = [known] if known is not None else [other for other in self._ports if other != port]
        now = time.monotonic()
        for target in targets:
            if target == port:
                continue
            arrival = self.wires.between(self._ports[port], self._ports[target]).find_arrival(now, len(frame))
            if arrival is not None:
                self._number += 1
                heapq.heappush(self._waiting, (arrival, self._number, target, frame))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._waiting)
            try:
                os.write(target, frame)
            except OSError:
                continue  # the receiver's queue is full, or its device is down: a frame is lost


def open_port(namespace: str, address: str, device: str) -> int:
    """A TAP device with an address, in a namespace or, for an empty name, in ours; returns its file descriptor."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    if namespace:
        _enter(os.open(f"/run/netns/{namespace}", os.O_RDONLY))
    try:
        port = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(port, _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TAP_NO_PI))
        for words in (("addr", "add", address, "dev", device), ("link", "set", device, "mtu", str(MTU), "up")):
            subprocess.run(["ip", *words], check=True)
        if namespace:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    finally:
        _enter(own)
    return port


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "a network namespace cannot be entered")
    os.close(namespace)


def main() -> None:
    first = json.loads(os.read(sys.stdin.fileno(), LINE_BYTES))
    switch = Switch({open_port(*place): host for host, place in first["ports"].items()})
    print("ok", flush=True)
    switch.run()


if __name__ == "__main__":
    main()
