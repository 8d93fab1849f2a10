"""How a command that built a network of namespaces ends when it is told to."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def orderly_end() -> Iterator[Callable[[], None]]:
    """A signal to end becomes SystemExit (128 + its number), so that all is removed on the way out.

    Yields a function that makes further ones wait for the end of that removal: they are ignored.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def ignore() -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    before = [signal.signal(number, end) for number in SIGNALS]
    try:
        yield ignore
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
