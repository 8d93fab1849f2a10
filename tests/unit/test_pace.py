"""Long work in pieces on a loop: its order, its end, and who gets a turn in between."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tunlb import pace as pace_module
from tunlb.pace import Pace


class Rig:
    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.seen: list[str] = []
        self.pace = Pace(self.failures.append)

    def work(self, name: str, steps: int) -> Iterator[None]:
        for step in range(steps):
            self.seen.append(f"{name}{step}")
            yield

    async def idle(self) -> None:
        async with asyncio.timeout(20):
            while self.pace.busy:
                await asyncio.sleep(0)


def run(test: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(Rig())

    try:
        asyncio.run(main())
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_one_after_the_other() -> None:
    async def test(rig: Rig) -> None:
        rig.pace.add(rig.work("a", 3))
        rig.pace.add(rig.work("b", 2))
        assert rig.pace.busy
        assert rig.seen == []
        await rig.idle()
        assert rig.seen == ["a0", "a1", "a2", "b0", "b1"]
        rig.pace.add(rig.work("c", 1))
        await rig.idle()
        assert rig.seen[-1] == "c0"

    run(test)


def test_others_get_a_turn_between_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "TURN_S", 1e-9)

    async def test(rig: Rig) -> None:
        turns = 0
        rig.pace.add(rig.work("a", 50))
        while rig.pace.busy:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 50

    run(test)


def test_nothing_is_collected_meanwhile() -> None:
    async def test(rig: Rig) -> None:
        enabled: list[bool] = []

        def look() -> Iterator[None]:
            enabled.append(gc.isenabled())
            yield

        rig.pace.add(look())
        await rig.idle()
        assert enabled == [False]
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0

    run(test)


def test_finished_at_once() -> None:
    async def test(rig: Rig) -> None:
        rig.pace.add(rig.work("a", 3))
        rig.pace.add(rig.work("b", 1))
        rig.pace.finish()
        assert rig.seen == ["a0", "a1", "a2", "b0"]
        assert not rig.pace.busy
        await asyncio.sleep(0)
        assert len(rig.seen) == 4

    run(test)


def test_stopped() -> None:
    async def test(rig: Rig) -> None:
        rig.pace.add(rig.work("a", 3))
        rig.pace.stop()
        await asyncio.sleep(0)
        assert rig.seen == []
        assert not rig.pace.busy

    run(test)


def test_work_that_fails_ends_all() -> None:
    async def test(rig: Rig) -> None:
        def fails() -> Iterator[None]:
            yield
            raise RuntimeError("no luck")

        rig.pace.add(fails())
        rig.pace.add(rig.work("b", 1))
        await rig.idle()
        assert [str(error) for error in rig.failures] == ["no luck"]
        assert rig.seen == []

    run(test)
