"""Structured logs: JSON lines for services, key-value for a person at a terminal. Always on standard error.

An event is a constant in snake_case and the past tense (runner_started); everything that varies is a key.
Prompts, completions and keys of the API never appear.
"""

import logging
import sys
from typing import Literal

import structlog

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]
Logger = structlog.stdlib.BoundLogger


def configure_logs(*, service: str, level: LogLevel = "info", log_format: LogFormat = "auto") -> None:
    """Set up logging of this process; called once, from __main__. Standard library loggers are routed through too."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    # Plain tracebacks: the renderer's own show the values of variables, prompts among them.
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    renderer: structlog.types.Processor = structlog.processors.JSONRenderer() if as_json else console
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if as_json:
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(max(logging.INFO, logging.getLevelNamesMapping()[level.upper()]))
    logging.getLogger("paceline").setLevel(level.upper())
    structlog.contextvars.bind_contextvars(service=service)


def get_logger(**facts: object) -> Logger:
    """A logger that adds facts to every line."""
    logger: Logger = structlog.get_logger("paceline").bind(**facts)
    return logger
