"""The supervisor's side of a real keeper, whose imports a test makes fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunlb.keeper import KeeperError, KeeperGone, KeeperSilent, client
from tunlb.supervisor.keeping import Keeping, how

MODULE = "hooks_of_mine"
HOOK = "hook hooks_of_mine:Deny"


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.events.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a user's module, which every keeper of this test finds."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / f"{MODULE}.py"


@pytest.fixture
def keeping(source: Path) -> Iterator[Keeping]:
    made = Keeping({"json": "hook json:Hook", MODULE: HOOK}, Log())  # type: ignore[arg-type]
    made.spawn()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("import os\nos._exit(3)", "exit status 3"),
        ("import os\nos._exit(0)", "exit status 0"),
        ("import os\nos.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import os\nos.kill(os.getpid(), 40)", "signal 40"),
    ],
)
def test_a_module_that_ends_the_keeper_is_named(
    keeping: Keeping, source: Path, code: str, end: str
) -> None:
    source.write_text(code, "utf-8")
    with pytest.raises(KeeperGone) as gone:
        keeping.preload()
    told = str(gone.value)
    assert told.startswith(f"{HOOK}: importing {MODULE} ended the process ({end}); ")
    assert told.endswith(f" -c 'import {MODULE}'")


def test_a_module_that_waits_is_named(
    keeping: Keeping, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_text("import signal\nsignal.pause()", "utf-8")
    keeping._get().preload(())  # an interpreter takes longer to start than this test waits
    monkeypatch.setattr(client, "START_S", 0.5)
    with pytest.raises(KeeperSilent, match=rf"^{HOOK}: importing {MODULE} is not done"):
        keeping.preload()
    with pytest.raises(KeeperGone, match="SIGKILL"):
        keeping._get().fetch()


@pytest.mark.parametrize(
    "code", ["1 / 0", "import sys\nsys.exit(0)", "raise KeyboardInterrupt", "raise GeneratorExit"]
)
def test_a_module_that_raises_is_for_the_worker_to_name(
    keeping: Keeping, source: Path, code: str
) -> None:
    source.write_text(code, "utf-8")
    keeping.preload()
    keeping.fill()


def test_a_keeper_that_cannot_start_is_no_modules_fault(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_text("", "utf-8")
    (source.parent / "msgspec.py").write_text("import os\nos._exit(4)", "utf-8")
    keeping = Keeping({MODULE: HOOK}, Log())  # type: ignore[arg-type]
    keeping.spawn()
    try:
        with pytest.raises(KeeperError, match=r"did not start \(exit status 4\)"):
            keeping.preload()
    finally:
        keeping.close()


def test_a_keeper_that_its_modules_end_is_started_until_it_lives(source: Path) -> None:
    """While it runs, a module is spoiled and mended: each start that failed is followed by one."""
    log = Log()

    async def until(event: str, count: int) -> None:
        async with asyncio.timeout(60):
            while len(log.of(event)) < count:
                await asyncio.sleep(0.02)

    async def live() -> None:
        source.write_text("", "utf-8")
        keeping = Keeping({MODULE: HOOK}, log)  # type: ignore[arg-type]
        keeping.spawn()
        try:
            await asyncio.to_thread(keeping.fill)
            keeping.watch()
            source.write_text("import os\nos._exit(3)", "utf-8")
            with contextlib.suppress(FileNotFoundError):
                for cached in (source.parent / "__pycache__").iterdir():
                    cached.unlink()
            os.kill(keeping._get().pid, signal.SIGKILL)
            await until("keeper_failed", 2)
            source.write_text("", "utf-8")
            await until("keeper_started", 1)
            keeping.unwatch()
        finally:
            await asyncio.to_thread(keeping.close)

    asyncio.run(live())
    died = log.of("keeper_died")
    assert died[0]["signal"] == "SIGKILL"
    assert [fields["restarts"] for fields in died] == list(range(1, len(died) + 1))
    for fields in log.of("keeper_failed"):
        assert fields["error"].startswith(f"{HOOK}: importing {MODULE} ended the process")


def test_how_a_process_ended() -> None:
    assert how(-9) == {"signal": "SIGKILL"}
    assert how(-40) == {"signal": "signal 40"}
    assert how(3) == {"status": 3}
    assert how(None) == {"status": None}
