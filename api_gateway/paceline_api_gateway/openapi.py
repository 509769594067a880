"""The OpenAPI document: what every protocol's routes say alike of themselves, and the document as a whole.

A router names its tag and its errors when it is made, APIRouter(tags=["OpenAI"], responses=describe_faults(write_fault)), and each route
that takes a body shows one: openapi_extra=show_examples(hello={...}). Summary and description are a route's own: name and docstring of its
function.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from paceline_api_gateway.faults import Fault, WriteFault

Json = dict[str, Any]

SUMMARY = "One inference server out of the machines you already own"
DESCRIPTION = (
    "Answers clients of OpenAI, Claude and Ollama at one address, and shows and changes the cluster behind it. Errors have the form of the"
    " protocol whose path was asked. docs/api.md says more of every field."
)
TAGS = {
    "OpenAI": "OpenAI's API, with a few of vLLM's extensions.",
    "Claude": "Anthropic's Messages API.",
    "Ollama": "Ollama's API.",
    "Trifurcated inference": "Three models on one request, side by side.",
    "Cluster": "Nodes, instances and models of the cluster.",
    "Operation": "For load balancers and monitoring.",
}
_FAULTS = {
    400: Fault(400, "temperature: Input should be less than or equal to 2", "temperature", "INVALID_REQUEST"),
    404: Fault(404, "the model 'other' does not exist here. Models: demo", None, "MODEL_NOT_FOUND"),
    405: Fault(405, "GET is not allowed on this path"),
    408: Fault(408, "the request body did not come within 60 s: send it faster"),
    409: Fault(409, "the instance is wanted with another precision", None, "ALREADY_EXISTS"),
    413: Fault(413, "the request body is larger than 16777216 bytes: send less"),
    415: Fault(415, "a body of type text/xml is not read: send JSON, with Content-Type: application/json"),
    429: Fault(429, "8 requests run and 64 wait: try again later", None, "QUEUE_FULL", 2.0),
    500: Fault(500, "the gateway failed by a defect; its log has the traceback"),
    503: Fault(503, "the model is not ready yet: 40 % of it are loaded", None, "UNAVAILABLE", 5.0),
    504: Fault(504, "the request took longer than 600 s: it was generating", None, "DEADLINE_EXCEEDED"),
}
_MEANINGS = {
    400: "The request cannot be understood, or asks for what is not supported",
    404: "The model, instance or path does not exist",
    405: "The path does not have this method",
    408: "The body came too slowly",
    409: "Something else is wanted under this name",
    413: "The body is too large",
    415: "The body is no JSON by its headers",
    429: "Too many requests; Retry-After says when to come back",
    500: "A defect of the server",
    503: "Not ready, or cannot run; Retry-After says when to come back",
    504: "It took too long",
}
GENERATION_STATUSES = (400, 404, 408, 413, 415, 429, 500, 503, 504)
"""What a route that generates may answer instead."""
ADMIN_STATUSES = (400, 404, 408, 409, 413, 415, 500, 503)


def describe_faults(write: WriteFault, statuses: tuple[int, ...] = GENERATION_STATUSES) -> dict[int | str, Json]:
    """The responses of a router whose errors have a protocol's form."""
    return {status: _describe_fault(write, _FAULTS[status]) for status in statuses}


def show_examples(**bodies: Json) -> Json:
    """A route's bodies by name, in the words of openapi_extra."""
    examples = {name: {"value": body} for name, body in bodies.items()}
    return {"requestBody": {"content": {"application/json": {"examples": examples}}}}


def serve_document(app: FastAPI) -> None:
    """Have the application's document made here, once, when it is first asked for."""
    made: list[Json] = []

    def make() -> Json:
        if not made:
            made.append(make_document(app))
        return made[0]

    app.openapi = make  # type: ignore[method-assign]


def make_document(app: FastAPI) -> Json:
    """The same in every process of a version."""
    document = get_openapi(
        title="Paceline",
        version=version("paceline-api-gateway"),
        summary=SUMMARY,
        description=DESCRIPTION,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        servers=[{"url": "/", "description": "This gateway"}],
    )
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own; ours are 400 and have the protocol's form
            for response in operation["responses"].values():
                _restore_nulls(response.get("content", {}).get("application/json", {}))
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)
    return document


def _restore_nulls(content: Json) -> None:
    """FastAPI leaves every null out, those of examples too."""
    if isinstance(example := content.get("example"), dict):
        _fill(example, content["schema"])


def _fill(example: Json, schema: Json) -> None:
    for name in schema.get("required", ()):
        example.setdefault(name, None)
    for name, part in example.items():
        if isinstance(part, dict):
            _fill(part, schema["properties"][name])


def _describe_fault(write: WriteFault, fault: Fault) -> Json:
    example = write(fault)
    schema = _describe_value([example, *(write(one) for one in _FAULTS.values())])
    content: Json = {"application/json": {"schema": schema, "example": example}}
    response: Json = {"description": _MEANINGS[fault.status], "content": content}
    if fault.retry_after_s is not None:
        seconds = {"description": "Seconds after which another try is worth it", "schema": {"type": "string"}}
        response["headers"] = {"Retry-After": seconds}
    return response


def _describe_value(samples: list[Any]) -> Json:
    """A schema that all samples have: objects, texts, null."""
    if all(isinstance(sample, Mapping) for sample in samples):
        members = sorted({name for sample in samples for name in sample})
        having = {name: [sample[name] for sample in samples if name in sample] for name in members}
        properties = {name: _describe_value(parts) for name, parts in having.items()}
        required = [name for name in members if len(having[name]) == len(samples)]
        return {"type": "object", "properties": properties, "required": required}
    kinds = sorted({"null" if sample is None else "string" for sample in samples})
    return {"type": kinds[0] if len(kinds) == 1 else kinds}
