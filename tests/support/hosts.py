"""Hosts that a cluster of real processes is spread over: names and addresses, and which of them runs what. Pure.

All of them may be this machine (trials of processes), or each a network namespace of its own (support.network: trials of partitions).
"""

from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Host:
    """Where processes run: the address at which others reach them, and the network namespace; empty: this machine's own."""

    name: str
    address: str = LOOPBACK
    namespace: str = ""

    def prefix(self) -> tuple[str, ...]:
        """Words before a command that make it run here; the process id is the command's own."""
        return ("ip", "netns", "exec", self.namespace) if self.namespace else ()


@dataclass(frozen=True, slots=True)
class Sites:
    """Which host runs what: brain has etcd and control planes, front the gateways, each worker an agent and its runners."""

    brain: Host
    front: Host
    workers: tuple[Host, ...]

    @classmethod
    def on_this_machine(cls, num_workers: int) -> "Sites":
        """No host but this one."""
        here = Host("here")
        return cls(here, here, (here,) * num_workers)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Each host once."""
        return tuple(dict.fromkeys((self.brain, self.front, *self.workers)))
