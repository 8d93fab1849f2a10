"""Structured logs on standard error: JSON lines, or a console format on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import orjson
import structlog

Logger = structlog.stdlib.BoundLogger


def _json(_: object, __: str, event: dict[str, Any]) -> str:
    return orjson.dumps(event, default=str).decode()


def make_logger(level: str, environ: Mapping[str, str]) -> Logger:
    """A logger; TUNLB_LOG_LEVEL and TUNLB_LOG_FORMAT (json, console, auto) go before ``level``."""
    level = environ.get("TUNLB_LOG_LEVEL") or level
    wanted = environ.get("TUNLB_LOG_FORMAT") or "auto"
    console = wanted == "console" or (wanted == "auto" and sys.stderr.isatty())
    threshold = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else _json,
    ]
    logger: Logger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
    )
    return logger
