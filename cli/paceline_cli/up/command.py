"""`paceline up`: runs a cluster in the foreground until Ctrl-C."""

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
from rich.console import Console

from paceline_cli.api import GatewayClient, Json
from paceline_cli.models import DEMO_MODEL, NamedModel, fetch_demo, name_model
from paceline_cli.placing import wait_active
from paceline_cli.settings import DEFAULT_PORT, UpSettings
from paceline_cli.up.cluster import Cluster, lock_home, run_cluster
from paceline_services.errors import ConfigurationError, PacelineError
from paceline_services.lifecycle import StopSignal
from paceline_services.logs import configure_logs


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command asked for: a model in so many stages."""

    model: NamedModel
    num_stages: int
    context_length: int


async def run_up(settings: UpSettings, stop: StopSignal, console: Console) -> None:
    """Start the cluster, place the model, say that it is ready, and wait for the end."""
    configure_logs(service="up", level="warning", log_format=settings.log_format)
    with lock_home(settings):
        wish = await asyncio.to_thread(_read_wish, settings, console)
        async with run_cluster(settings) as cluster:
            port = int(cluster.url.rpartition(":")[2])
            if settings.port is None and port != DEFAULT_PORT:
                console.print(f"port {DEFAULT_PORT} is taken: using {port}")
            work = asyncio.create_task(_make_ready(settings, cluster, wish, stop, console))
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                print(work.result(), flush=True)
                await stopped
            else:
                with suppress(PacelineError):
                    await work
            console.print("stopping")


def _read_wish(settings: UpSettings, console: Console) -> Wish | None:
    if settings.model is None:
        return None
    num_stages = settings.stages or settings.workers
    if settings.workers == 0:
        raise ConfigurationError("a model needs workers: start some with --workers, or leave --model out")
    library = settings.home / "models"
    if settings.model == DEMO_MODEL and not (library / DEMO_MODEL / "config.json").is_file():
        with console.status(f"fetching the demo model {DEMO_MODEL} (about 90 MB)"):
            gguf = fetch_demo(settings.home / "downloads")
        return Wish(NamedModel(settings.model_id or DEMO_MODEL, str(gguf)), num_stages, settings.context_length)
    return Wish(name_model(settings.model, settings.model_id, library), num_stages, settings.context_length)


async def _make_ready(
    settings: UpSettings, cluster: Cluster, wish: Wish | None, stop: StopSignal, console: Console
) -> str:
    """Place what is wanted and wait; returns the line that says so."""
    client = GatewayClient(cluster.url)
    if wish is None:
        return f"paceline ready {cluster.url} with {settings.workers} workers and no model"
    instance = await asyncio.to_thread(_place, client, wish)
    ready = await asyncio.to_thread(wait_active, client, instance, settings.place_timeout_s, console, stop.is_requested)
    workers = len({shard["node_id"] for shard in ready["shards"]})
    return f"paceline ready {cluster.url} model {wish.model.model_id} on {workers} worker{'s' if workers > 1 else ''}"


def _place(client: GatewayClient, wish: Wish) -> str:
    """Want the instance; one of the same model with another number of stages, kept from an earlier run, is replaced."""
    for old in client.get("/state")["instances"]:
        if old["model_id"] == wish.model.model_id and not _is_same(old, wish):
            client.delete(f"/instance/{old['instance_id']}")
    body = {
        "model_id": wish.model.model_id,
        "location": wish.model.location,
        "num_stages": wish.num_stages,
        "context_length": wish.context_length,
    }
    return str(client.post("/place_instance", body)["instance_id"])


def _is_same(old: Json, wish: Wish) -> bool:
    """Whether an instance kept from an earlier run is what is wanted now. It may have come back on fewer nodes than it was meant for."""
    has_as_many = old["num_stages"] == wish.num_stages and len(old["shards"]) in {0, wish.num_stages}
    return has_as_many and (not wish.model.location or old["location"] == wish.model.location)


def stop_cluster(record: dict[str, Any], timeout_s: float) -> bool:
    """Ask the supervisor of a recorded cluster to end and wait for it; False when it is gone already."""
    try:
        process = psutil.Process(int(record["pid"]))
        os.kill(process.pid, signal.SIGTERM)
        process.wait(timeout_s)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    except psutil.TimeoutExpired as error:
        raise ConfigurationError(
            f"the cluster (process {record['pid']}) did not end within {timeout_s:.0f} s"
        ) from error
    return True
