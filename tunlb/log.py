"""Structured logs on standard error: JSON lines, or a console format on a terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import orjson
import structlog

from tunlb.conf import Tunlb

Logger = structlog.stdlib.BoundLogger

_STDERR = 2


class LogSettings:
    """What a reload may change while loggers are in use: the level, and the director's name.

    TUNLB_LOG_LEVEL goes before the configuration.
    """

    def __init__(self, tunlb: Tunlb, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.apply(tunlb)

    def apply(self, tunlb: Tunlb) -> None:
        level = self._environ.get("TUNLB_LOG_LEVEL") or tunlb.log_level
        self._threshold = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
        self._name = tunlb.name

    def __call__(
        self, _: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        if logging.getLevelNamesMapping()[method.upper()] < self._threshold:
            raise structlog.DropEvent
        event["director"] = self._name
        return event


def _json(_: object, __: str, event: MutableMapping[str, Any]) -> str:
    return orjson.dumps(event, default=str).decode()


class LineLogger:
    """Each line in one write, because several processes share standard error."""

    def msg(self, line: str) -> None:
        # Whoever read it may have ended, which is no reason to stop forwarding.
        with contextlib.suppress(OSError):
            os.write(_STDERR, f"{line}\n".encode(errors="backslashreplace"))

    debug = info = warning = error = critical = msg


def make_logger(settings: LogSettings, environ: Mapping[str, str]) -> Logger:
    """A logger in the format of TUNLB_LOG_FORMAT: json, console, or auto."""
    wanted = environ.get("TUNLB_LOG_FORMAT") or "auto"
    console = wanted == "console" or (wanted == "auto" and sys.stderr.isatty())
    processors: list[Any] = [
        settings,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else _json,
    ]
    logger: Logger = structlog.wrap_logger(
        LineLogger(),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
    )
    return logger
