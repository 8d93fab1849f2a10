"""A running tunlb: started, awaited, reloaded, stopped, with every line it logged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

READY = "ready"
RELOAD_EVENTS = ("reloaded", "reload_refused")
_TAIL_LINES = 40


class TunlbError(Exception):
    """tunlb did not do what was asked; the message ends with the last lines it logged."""


class TunlbProcess:
    """One `tunlb run` and its log.

    `argv` starts it and reads `config` (a path that `reload` rewrites). Lines of standard error
    are collected by a thread for as long as the process lives, so that it never blocks on them.
    """

    def __init__(
        self,
        argv: Sequence[str],
        config: Path,
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._ended = False
        # A session of its own: Ctrl-C at a terminal reaches whoever started it, who stops it.
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=None if env is None else dict(env),
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self._reader = threading.Thread(
            target=self._collect, args=(self.process.stderr,), daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log_lines(self) -> list[str]:
        """Every line of standard error so far."""
        with self._changed:
            return list(self._lines)

    @property
    def events(self) -> list[dict[str, object]]:
        """The log lines that are JSON objects, in order."""
        return [event for line in self.log_lines if (event := _parse(line)) is not None]

    def wait_event(
        self, names: Sequence[str], *, after: int = 0, timeout: float = 15.0
    ) -> dict[str, object]:
        """The first logged object, from line `after` on, whose `event` is one of `names`.

        Raises TunlbError when the process ends or `timeout` seconds pass first.
        """
        deadline = time.monotonic() + timeout
        wanted = " or ".join(repr(name) for name in names)
        with self._changed:
            while True:
                for line in self._lines[after:]:
                    event = _parse(line)
                    if event is not None and event.get("event") in names:
                        return event
                after = len(self._lines)
                left = deadline - time.monotonic()
                if self._ended:
                    raise self._error(f"tunlb ended before it logged the event {wanted}")
                if left <= 0:
                    raise self._error(f"tunlb did not log the event {wanted} in {timeout:g} s")
                self._changed.wait(left)

    def reload(self, config_text: str, *, timeout: float = 10.0) -> dict[str, object]:
        """Replaces the configuration, sends SIGHUP, and waits for the event that answers it."""
        with self._changed:
            seen = len(self._lines)
        fresh = self.config.with_suffix(".new")
        fresh.write_text(config_text, encoding="utf-8")
        fresh.replace(self.config)
        self.process.send_signal(signal.SIGHUP)
        return self.wait_event(RELOAD_EVENTS, after=seen, timeout=timeout)

    def stop(self, timeout: float = 5.0) -> int:
        """SIGTERM, then SIGKILL after `timeout` seconds; the exit status. Idempotent."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
        status = self.process.wait()
        self._reader.join(timeout)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _collect(self, stream: IO[str]) -> None:
        with contextlib.closing(stream):
            for line in stream:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _error(self, what: str) -> TunlbError:
        status: int | None = None
        if self._ended:  # the end of its log comes just before its own
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self.process.wait(1)
        state = "still running" if status is None else f"exit status {status}"
        tail = "\n".join(f"  {line}" for line in self._lines[-_TAIL_LINES:]) or "  (nothing)"
        return TunlbError(f"{what} ({state}); it logged:\n{tail}")


def _parse(line: str) -> dict[str, object] | None:
    with contextlib.suppress(ValueError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    return None


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, in which `python -m tunlb` is the tunlb that runs here.

    An explicit PYTHONPATH in `extra` chooses another one (an uncompiled copy, say).
    """
    here = str(Path(sys.modules["tunlb"].__path__[0]).parent)
    inherited = os.environ.get("PYTHONPATH")
    path = here if not inherited else f"{here}{os.pathsep}{inherited}"
    return {**os.environ, "PYTHONPATH": path, "TUNLB_LOG_FORMAT": "json", **(extra or {})}
