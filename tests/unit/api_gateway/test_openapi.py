"""The OpenAPI document says everything of every route: what it does, an example of its body, and each error in its protocol's form."""

import json
from typing import Any

import jsonschema_rs
import pytest

from paceline_api_gateway.app import FAULT_WRITERS, make_app, make_companions
from paceline_api_gateway.faults import Fault, FaultForms
from paceline_api_gateway.generation.dispatch import Dispatcher, RequestLimits
from paceline_api_gateway.metrics import GatewayMetrics
from paceline_api_gateway.openapi import TAGS
from paceline_api_gateway.routing.table import Patience, RouteTable
from paceline_api_gateway.settings import GatewaySettings
from paceline_services.clients import ControlPlaneClient


async def make_document() -> dict[str, Any]:
    client, metrics = ControlPlaneClient(["127.0.0.1:1"]), GatewayMetrics()
    table = RouteTable(client, place_on_demand=True, patience=Patience(1.0, 1.0))
    app = make_app(
        client,
        table,
        Dispatcher(table, metrics, RequestLimits()),
        metrics,
        GatewaySettings(),
        make_companions(GatewaySettings(), metrics),
    )
    document: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    await client.close()
    return document


@pytest.fixture
async def document() -> dict[str, Any]:
    return await make_document()


def list_operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, one) for path, item in document["paths"].items() for method, one in item.items()]


async def test_document_is_the_same_every_time_and_names_itself(document: dict[str, Any]) -> None:
    assert json.dumps(document) == json.dumps(await make_document())
    assert document["info"]["title"] == "Paceline" and document["info"]["version"] and document["info"]["description"]
    assert document["servers"] and {tag["name"] for tag in document["tags"]} == set(TAGS)


async def test_every_route_says_what_it_does(document: dict[str, Any]) -> None:
    for path, method, operation in list_operations(document):
        assert operation.get("summary") and operation.get("description"), (method, path)
        assert operation.get("tags") and set(operation["tags"]) <= set(TAGS), (method, path)


async def test_every_body_has_examples_that_its_schema_accepts(document: dict[str, Any]) -> None:
    for path, method, operation in list_operations(document):
        if "requestBody" not in operation:
            continue
        content = operation["requestBody"]["content"]["application/json"]
        assert content.get("examples"), (method, path)
        schema = {**content["schema"], "components": document["components"]}
        for name, example in content["examples"].items():
            assert jsonschema_rs.is_valid(schema, example["value"]), (method, path, name)


async def test_every_error_has_the_form_of_its_protocol(document: dict[str, Any]) -> None:
    forms = FaultForms(FAULT_WRITERS)
    for path, method, operation in list_operations(document):
        responses = operation["responses"]
        assert "422" not in responses and {"400", "500"} <= set(responses), (method, path)
        faults = {status: response for status, response in responses.items() if status >= "4"}
        for status, response in faults.items():
            content = response["content"]["application/json"]
            sample = forms.write(path, Fault(int(status), "why", "field", "REASON"))
            assert jsonschema_rs.is_valid(content["schema"], sample), (method, path, status)
            assert jsonschema_rs.is_valid(content["schema"], content["example"]), (method, path, status)
            assert content["example"].keys() == sample.keys(), (method, path, status)
