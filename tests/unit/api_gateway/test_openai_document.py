"""The OpenAPI document says what OpenAI's routes take and answer, with examples that hold."""

from typing import Any

import jsonschema_rs
import pytest
from fastapi import FastAPI

from paceline_api_gateway.faults import Fault
from paceline_api_gateway.protocols.openai.errors import write_fault
from paceline_api_gateway.protocols.openai.routes import make_router
from paceline_api_gateway.serving import Serving


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    app = FastAPI()
    app.include_router(make_router(Serving(None, None, 5.0)))  # type: ignore[arg-type]
    return app.openapi()


PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]


@pytest.mark.parametrize("path", PATHS)
def test_examples_of_bodies_are_accepted_by_their_schema(document: dict[str, Any], path: str) -> None:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert content["examples"]
    for example in content["examples"].values():
        assert jsonschema_rs.is_valid({**content["schema"], "components": document["components"]}, example["value"])


@pytest.mark.parametrize("path", PATHS[:2])
def test_answers_come_whole_or_as_a_stream(document: dict[str, Any], path: str) -> None:
    content = document["paths"][path]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}


def test_every_error_has_openai_form(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            assert operation["summary"] and operation["description"] and operation["tags"] == ["OpenAI"]
            faults = {
                status: one for status, one in operation["responses"].items() if status >= "4" and status != "422"
            }
            assert {"400", "500"} <= set(faults), path
            for status, response in faults.items():
                content = response["content"]["application/json"]
                assert jsonschema_rs.is_valid(content["schema"], write_fault(Fault(int(status), "why"))), (path, status)


def test_answer_that_is_documented_is_that_which_is_sent(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["ChatCompletion"]
    assert set(schema["required"]) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
