"""When the file is written: one writer at a time, and what fails is said."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests.unit.supervisor.test_state import applied
from tunlb.conf import loads
from tunlb.lab import TOPOLOGIES
from tunlb.supervisor import snapshot
from tunlb.supervisor.saving import Saving
from tunlb.supervisor.state import State


class Log:
    """What was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, event: str, **_: object) -> None:
        self.said.append(event)

    warning = info


class Writer:
    """snapshot.write, that takes until it is let go."""

    def __init__(self, error: OSError | None = None) -> None:
        self.go = threading.Event()
        self.error = error
        self.running = self.most = self.count = 0

    def __call__(self, path: Path, head: object, tables: object) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        self.count += 1
        assert self.go.wait(10)
        self.running -= 1
        if self.error is not None:
            raise self.error
        return 3


def saving(
    monkeypatch: pytest.MonkeyPatch, path: Path, writer: Writer, seconds: float = 0
) -> tuple[Saving, State, Log]:
    keys = f'"kind":"tunlb","snapshot":"{path}","snapshot_s":{seconds}'
    config = loads(TOPOLOGIES["one-arm"].config_text.replace('"kind":"tunlb"', keys, 1))
    state = State(workers=1, secret=b"s" * 32, seed=1, history=(applied(config),))
    monkeypatch.setattr(snapshot, "write", writer)
    log = Log()
    return Saving([], log, lambda _: None), state, log  # type: ignore[arg-type]


def test_the_last_one_waits_for_the_one_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The end comes while an interval's file is being written: its thread cannot be stopped."""

    async def run() -> None:
        writer = Writer()
        made, state, log = saving(monkeypatch, tmp_path / "conns", writer, 0.001)
        made.plan(state)
        while not writer.running:
            await asyncio.sleep(0.001)
        made.cancel()
        last = asyncio.ensure_future(made.write(state))
        await asyncio.sleep(0.02)
        assert (writer.running, last.done()) == (1, False)
        writer.go.set()
        await last
        assert (writer.count, writer.most) == (2, 1)
        assert log.said == ["snapshot_written"]

    asyncio.run(run())


@pytest.mark.parametrize("cancelled", [False, True])
def test_one_that_fails_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cancelled: bool
) -> None:
    async def run() -> None:
        writer = Writer(OSError("disk full"))
        made, state, log = saving(monkeypatch, tmp_path / "conns", writer)
        first = asyncio.ensure_future(made.write(state))
        while not writer.running:
            await asyncio.sleep(0.001)
        if cancelled:
            first.cancel()
        writer.go.set()
        await asyncio.wait({first})
        writer.error = None
        await made.write(state)
        before = [] if cancelled else ["snapshot_failed"]
        assert log.said == [*before, "snapshot_written"]

    asyncio.run(run())
