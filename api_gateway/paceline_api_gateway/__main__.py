"""python -m paceline_api_gateway: serves the HTTP API for a cluster."""

import argparse
import asyncio
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI

from paceline_api_gateway.app import FAULT_WRITERS, make_app, make_companions
from paceline_api_gateway.client_connection import ConnectionLimits, make_connection_class, tune_listener
from paceline_api_gateway.faults import FaultForms
from paceline_api_gateway.generation.dispatch import Dispatcher, RequestLimits
from paceline_api_gateway.metrics import GatewayMetrics
from paceline_api_gateway.routing.table import Patience, RouteTable
from paceline_api_gateway.settings import GatewaySettings
from paceline_services.clients import ControlPlaneClient
from paceline_services.errors import ConfigurationError
from paceline_services.lifecycle import StopSignal, run_service
from paceline_services.logs import configure_logs
from paceline_services.settings import read_settings

BACKLOG = 2048


def parse_flags() -> dict[str, str | None]:
    parser = argparse.ArgumentParser(prog="python -m paceline_api_gateway", description=__doc__)
    parser.add_argument("--listen", metavar="HOST:PORT")
    parser.add_argument("--control-plane", metavar="HOST:PORT[,HOST:PORT]")
    parser.add_argument("--home")
    parser.add_argument("--namespace")
    return vars(parser.parse_args())


def bind(address: str) -> socket.socket:
    """A listening socket on host:port; raises ConfigurationError when it is taken or no address."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), int(port)))
        listener.listen(BACKLOG)  # connections wait from now on, until the server takes them
    except (OSError, ValueError, OverflowError) as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {address}: {error}; choose another address with --listen host:port"
        ) from error
    return listener


async def serve(settings: GatewaySettings, listener: socket.socket, stop: StopSignal) -> None:
    """Serve until told to stop; running responses get drain_timeout_s to finish."""
    client = ControlPlaneClient(settings.control_plane_addresses)
    metrics = GatewayMetrics()
    patience = Patience(settings.placement_wait_s, settings.recovery_wait_s)
    table = RouteTable(client, place_on_demand=settings.place_on_demand, patience=patience)
    limits = RequestLimits(
        settings.request_timeout_s, settings.max_open_requests, settings.max_open_requests_per_client
    )
    dispatcher = Dispatcher(table, metrics, limits)
    companions = make_companions(settings, metrics)
    app = make_app(client, table, dispatcher, metrics, settings, companions)
    server = _Server(make_server_config(app, settings))
    tune_listener(listener, settings.write_timeout_s)
    companions.federation.start()
    following = asyncio.create_task(table.follow())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()[:2]
    print(f"listening {host}:{port}", flush=True)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({following, serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    dispatcher.stop_within(settings.drain_timeout_s)
    server.should_exit = True
    await serving
    for task in (following, stopped):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await companions.keeper.close(settings.drain_timeout_s)
    await companions.federation.close()
    await dispatcher.close()
    await client.close()


def make_server_config(app: FastAPI, settings: GatewaySettings) -> uvicorn.Config:
    limits = ConnectionLimits(
        settings.max_url_bytes,
        settings.max_header_bytes,
        settings.max_headers,
        settings.header_timeout_s,
        settings.body_timeout_s,
        settings.write_timeout_s,
    )
    return uvicorn.Config(
        app,
        http=make_connection_class(limits, FaultForms(FAULT_WRITERS).write),
        ws="none",
        log_config=None,
        log_level="error",  # what clients send is no warning of ours
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client is whom the socket says, not a header
        lifespan="off",
        timeout_keep_alive=round(settings.idle_timeout_s),
        timeout_graceful_shutdown=round(settings.drain_timeout_s) + 2,
    )


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the process has ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> int:
    flags = parse_flags()

    async def run_gateway(stop: StopSignal) -> None:
        settings = read_settings(GatewaySettings, **flags)
        configure_logs(service="gateway", level=settings.log_level, log_format=settings.log_format)
        await serve(settings, bind(settings.listen), stop)

    return run_service(run_gateway, loop_factory=make_loop_factory())


def make_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where there is one: a twelfth less processor time for each token of streams as models write them."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


if __name__ == "__main__":
    sys.exit(main())
