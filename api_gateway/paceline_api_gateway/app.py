"""The HTTP application: a router and a form of errors for each protocol."""

from dataclasses import dataclass

from fastapi import FastAPI

from paceline_api_gateway.admin.routes import make_router as make_admin_router
from paceline_api_gateway.connection import ConnectionGuard
from paceline_api_gateway.faults import answer_faults
from paceline_api_gateway.federation.choice import ClusterModels
from paceline_api_gateway.federation.federation import Federation
from paceline_api_gateway.federation.gate import FederationGate
from paceline_api_gateway.generation.dispatch import Dispatcher
from paceline_api_gateway.metrics import GatewayMetrics
from paceline_api_gateway.protocols.anthropic.errors import write_fault as write_anthropic_fault
from paceline_api_gateway.protocols.ollama.errors import write_fault as write_ollama_fault
from paceline_api_gateway.protocols.openai.errors import write_fault as write_openai_fault
from paceline_api_gateway.protocols.openai.responses.errors import write_fault as write_responses_fault
from paceline_api_gateway.protocols.openai.responses.keeper import Keeper
from paceline_api_gateway.protocols.openai.responses.routes import make_router as make_responses_router
from paceline_api_gateway.protocols.openai.responses.store import Bounds, ResponseStore
from paceline_api_gateway.protocols.openai.routes import make_router as make_openai_router
from paceline_api_gateway.protocols.trifurcate.routes import make_router as make_trifurcate_router
from paceline_api_gateway.routing.table import RouteTable
from paceline_api_gateway.serving import Serving
from paceline_api_gateway.settings import GatewaySettings
from paceline_services.clients import ControlPlaneClient

FAULT_WRITERS = {
    "": write_openai_fault,
    "/v1/messages": write_anthropic_fault,
    "/v1/responses": write_responses_fault,
    "/api/": write_ollama_fault,
    "/ollama/": write_ollama_fault,
}
"""By prefix of path."""


@dataclass(frozen=True, slots=True)
class Companions:
    """What requests use beside the cluster, and what lives longer than they do."""

    keeper: Keeper
    federation: Federation


def make_companions(settings: GatewaySettings, metrics: GatewayMetrics) -> Companions:
    """Those of one gateway; whoever makes them starts and closes them. Raises ConfigurationError."""
    bounds = Bounds(settings.stored_responses_max_bytes, settings.stored_responses_max_age_s)
    federation = Federation(
        settings.backends,
        registry=metrics.registry,
        health_interval_s=settings.backend_health_interval_s,
        max_connections=settings.max_open_requests,
    )
    return Companions(Keeper(ResponseStore(settings.home / "responses", bounds)), federation)


def make_app(
    client: ControlPlaneClient,
    table: RouteTable,
    dispatcher: Dispatcher,
    metrics: GatewayMetrics,
    settings: GatewaySettings,
    companions: Companions,
) -> FastAPI:
    """Everything a gateway serves."""
    app = FastAPI(title="Paceline", docs_url="/docs", redoc_url=None)
    serving = Serving(dispatcher, table, settings.keep_alive_s)
    federation = companions.federation
    app.include_router(make_openai_router(serving))
    app.include_router(make_responses_router(serving, companions.keeper))
    app.include_router(make_trifurcate_router(serving))
    app.include_router(make_admin_router(client, table, metrics, federation))
    answer_faults(app, FAULT_WRITERS)

    def read_cluster() -> ClusterModels:
        return (
            ClusterModels.of(table.state, place_on_demand=settings.place_on_demand)
            if table.has_state
            else ClusterModels()
        )

    app.add_middleware(FederationGate, federation=federation, read_cluster=read_cluster, writers=FAULT_WRITERS)
    app.add_middleware(ConnectionGuard, metrics=metrics, max_bytes=settings.max_body_bytes)
    return app
