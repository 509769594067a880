"""Strikes a process of a cluster: finds it by what the cluster says of itself, and sends signals."""

import signal
import threading
from contextlib import suppress

import psutil

from fault.faults import Blow, Fault, Rank, Target, choose
from fault.trial import Case, Wound
from support.fleet import Fleet, wait_for

VICTIM_TIMEOUT_S = 20.0


def make_case(fleet: Fleet, seed: int, blow: Blow) -> Case:
    is_gateway = blow.target is Target.GATEWAY

    def strike() -> Wound:
        return strike_process(find_victim(fleet, blow.target, blow.timing.pick), blow.fault, blow.pause_s)

    part = "ranks" if isinstance(blow.target, Rank) else "processes"
    return Case(part, seed, blow.timing, blow.target.value, blow.fault.value, strike, is_gateway=is_gateway)


def find_victim(fleet: Fleet, target: Target | Rank, pick: float) -> psutil.Process:
    """The process that is struck now; pick (0 <= pick < 1) chooses among several. Raises FleetError when there is none for long."""

    def find() -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            if pid := _find_pid(fleet, target, pick):
                return psutil.Process(pid)
        return None

    return wait_for(find, f"there is a {target.value}", VICTIM_TIMEOUT_S)


def strike_process(victim: psutil.Process, fault: Fault, pause_s: float) -> Wound:
    """kill -9, or SIGSTOP with SIGCONT after pause_s, or SIGSTOP alone: then the harness ends it at last, if the cluster did not."""
    if fault is Fault.KILL:
        victim.kill()
        return Wound(lambda: "")
    victim.suspend()
    if fault is Fault.STOP:
        return Wound(lambda: _end_stopped(victim))
    waking = threading.Timer(pause_s, _wake, (victim,))
    waking.start()

    def wait_for_waking() -> str:
        waking.join()
        return ""

    return Wound(wait_for_waking)


def _find_pid(fleet: Fleet, target: Target | Rank, pick: float) -> int | None:
    if isinstance(target, Rank):
        shards = fleet.instance()["shards"]
        pids = [shard["pid"] for shard in shards if (shard["rank"] == 0) is (target is Rank.FIRST)]
        return choose(pids, pick) if pids else None
    if target in {Target.STAGE, Target.HEAD}:
        pids = [shard["pid"] for shard in fleet.instance()["shards"]]
        return choose(pids[-1:] if target is Target.HEAD else pids[:-1] or pids, pick) if pids else None
    if target is Target.LEADER:
        return next((keeper.pid for keeper in fleet.named("control-plane") if fleet.is_leader(keeper)), None)
    kind = {Target.AGENT: "agent", Target.ETCD: "etcd", Target.GATEWAY: "gateway"}[target]
    return choose(fleet.named(kind), pick).pid


def _wake(victim: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        victim.send_signal(signal.SIGCONT)


def _end_stopped(victim: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        if victim.status() == psutil.STATUS_STOPPED:
            victim.kill()
            return "ended the stopped process"
    return ""
