"""The HTTP application: a router and a form of errors for each protocol."""

from fastapi import FastAPI

from paceline_api_gateway.admin.routes import make_router as make_admin_router
from paceline_api_gateway.connection import ConnectionGuard
from paceline_api_gateway.faults import answer_faults
from paceline_api_gateway.generation.dispatch import Dispatcher
from paceline_api_gateway.metrics import GatewayMetrics
from paceline_api_gateway.protocols.anthropic.errors import write_fault as write_anthropic_fault
from paceline_api_gateway.protocols.anthropic.routes import make_model_router as make_anthropic_model_router
from paceline_api_gateway.protocols.anthropic.routes import make_router as make_anthropic_router
from paceline_api_gateway.protocols.ollama.errors import write_fault as write_ollama_fault
from paceline_api_gateway.protocols.ollama.routes import make_router as make_ollama_router
from paceline_api_gateway.protocols.openai.errors import write_fault as write_openai_fault
from paceline_api_gateway.protocols.openai.routes import make_router as make_openai_router
from paceline_api_gateway.routing.table import RouteTable
from paceline_api_gateway.serving import Serving
from paceline_api_gateway.settings import GatewaySettings
from paceline_services.clients import ControlPlaneClient

FAULT_WRITERS = {
    "": write_openai_fault,
    "/v1/messages": write_anthropic_fault,
    "/v1/complete": write_anthropic_fault,
    "/api/": write_ollama_fault,
    "/ollama/": write_ollama_fault,
}
"""By prefix of path."""


def make_app(
    client: ControlPlaneClient,
    table: RouteTable,
    dispatcher: Dispatcher,
    metrics: GatewayMetrics,
    settings: GatewaySettings,
) -> FastAPI:
    """Everything a gateway serves."""
    app = FastAPI(title="Paceline", docs_url="/docs", redoc_url=None)
    serving = Serving(dispatcher, table, settings.keep_alive_s)
    app.include_router(make_anthropic_model_router(serving))  # before the route that it shares its path with
    app.include_router(make_openai_router(serving))
    app.include_router(make_anthropic_router(serving))
    app.include_router(make_ollama_router(serving, client))
    app.include_router(make_admin_router(client, table, metrics))
    answer_faults(app, FAULT_WRITERS)
    app.add_middleware(ConnectionGuard, metrics=metrics, max_bytes=settings.max_body_bytes)
    return app
