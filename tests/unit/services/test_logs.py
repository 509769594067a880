"""Logs of a process, as they come out of it."""

import subprocess
import sys

import pytest

FAILING = """
from paceline_services.logs import configure_logs, get_logger
configure_logs(service="test", log_format="{format}")
prompt = "a secret of" + " the user"
try:
    raise ValueError("odd")
except ValueError as error:
    get_logger().error("request_failed", exc_info=error)
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_traceback_shows_no_values_of_variables(log_format: str) -> None:
    program = FAILING.replace("{format}", log_format)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "request_failed" in run.stderr and "ValueError: odd" in run.stderr
    assert "secret of the user" not in run.stderr
