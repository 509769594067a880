"""Errors in Ollama's form."""

from typing import Any

from paceline_api_gateway.faults import Fault


def write_fault(fault: Fault) -> dict[str, Any]:
    return {"error": fault.message}
