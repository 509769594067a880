"""The HTTP application: a router and a form of errors for each protocol, and what stands before them all."""

from dataclasses import dataclass

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from starlette.types import Scope

from paceline_api_gateway.admin.routes import make_router as make_admin_router
from paceline_api_gateway.bodies import BodyLimits
from paceline_api_gateway.connection import BodyReader, ConnectionGuard
from paceline_api_gateway.faults import FaultForms, answer_faults
from paceline_api_gateway.federation.choice import ClusterModels
from paceline_api_gateway.federation.federation import Federation
from paceline_api_gateway.federation.gate import FederationGate
from paceline_api_gateway.generation.bounds import RequestBounds
from paceline_api_gateway.generation.dispatch import Dispatcher
from paceline_api_gateway.metrics import GatewayMetrics
from paceline_api_gateway.openapi import serve_document
from paceline_api_gateway.protocols.anthropic.errors import write_fault as write_anthropic_fault
from paceline_api_gateway.protocols.anthropic.routes import make_model_router as make_anthropic_model_router
from paceline_api_gateway.protocols.anthropic.routes import make_router as make_anthropic_router
from paceline_api_gateway.protocols.ollama.errors import write_fault as write_ollama_fault
from paceline_api_gateway.protocols.ollama.routes import make_router as make_ollama_router
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
    "/v1/complete": write_anthropic_fault,
    "/api/": write_ollama_fault,
    "/ollama/": write_ollama_fault,
}
"""By prefix of path."""
CORS_METHODS = ("DELETE", "GET", "HEAD", "POST")
EXPOSED_HEADERS = ("X-Request-Id", "Request-Id", "Retry-After")
"""What a web page may read of a response, beyond what it always may."""
CORS_MAX_AGE_S = 600


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
    bounds = RequestBounds(settings.max_messages, settings.max_tools, settings.max_stop_length)
    serving = Serving(dispatcher, table, settings.keep_alive_s, bounds)
    app.include_router(make_anthropic_model_router(serving))  # before the route that it shares its path with
    app.include_router(make_openai_router(serving))
    app.include_router(make_responses_router(serving, companions.keeper))
    app.include_router(make_anthropic_router(serving))
    app.include_router(make_ollama_router(serving, client))
    app.include_router(make_trifurcate_router(serving, FAULT_WRITERS[""]))
    app.include_router(make_admin_router(client, table, metrics, companions.federation, FAULT_WRITERS[""]))
    answer_faults(app, FAULT_WRITERS)
    serve_document(app)
    app.add_middleware(
        FederationGate,
        federation=companions.federation,
        read_cluster=lambda: read_cluster(table, settings),
        writers=FAULT_WRITERS,
    )
    guard(app, metrics, settings)
    return app


def read_cluster(table: RouteTable, settings: GatewaySettings) -> ClusterModels:
    if not table.has_state:
        return ClusterModels()
    return ClusterModels.of(table.state, place_on_demand=settings.place_on_demand)


def guard(app: FastAPI, metrics: GatewayMetrics, settings: GatewaySettings) -> None:
    """Put before all routes what holds for each of them."""

    def has_route(scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)

    reader = BodyReader(make_body_limits(settings), frozenset(settings.cors_origin_list))
    forms = FaultForms(FAULT_WRITERS)
    app.add_middleware(ConnectionGuard, metrics=metrics, reader=reader, forms=forms, has_route=has_route)
    if settings.cors_origin_list:  # outermost: a page is to be able to read refusals too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin_list,
            allow_methods=CORS_METHODS,
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=EXPOSED_HEADERS,
            max_age=CORS_MAX_AGE_S,
        )


def make_body_limits(settings: GatewaySettings) -> BodyLimits:
    lengths = {"messages": settings.max_messages, "input": settings.max_messages, "tools": settings.max_tools}
    return BodyLimits(
        settings.max_body_bytes,
        settings.body_timeout_s,
        settings.max_json_depth,
        settings.max_json_values,
        lengths,
        settings.max_held_bytes,
    )
