"""What all loads share: a server and a client program, and what they and the subject used.

CPU time of the programs of a load is that of this process's children that have ended meanwhile
(getrusage). The subject's programs outlive every load, so they are never among them.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tunlb.bench.network import Child, Ends, Standing
from tunlb.bench.samples import BenchError

# What a program may take beyond its own time: to start, to connect, to sum up.
GRACE_S: Final = 15.0
# Of the exchanges of a load. Few failures are noted; more, and the figure would be of something
# else than it says.
TOLERATED: Final = 0.01

_POLL_S: Final = 0.01
_TAIL: Final = 1000
_ESCAPE: Final = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True)
class Run:
    """One run of a client against a server program, both over."""

    text: str  # all that the client wrote
    served: str  # all that the server wrote
    details: Mapping[str, float]  # elapsed_s, peers_busy and what is known of cpu_s and packets


def whole(seconds: float) -> int:
    """For programs that count whole seconds; to some of them 0 is for ever."""
    return max(1, math.ceil(seconds))


def finish(child: Child, timeout: float) -> str:
    """All that a program wrote, when it has ended. Raises BenchError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while child.running:
        if time.monotonic() > deadline:
            raise BenchError(f"the client was not done after {timeout:g} s: it may get no answers")
        time.sleep(_POLL_S)
    return child.text()


@contextlib.contextmanager
def serving(ends: Ends, argv: Sequence[str], sign: str) -> Iterator[Child]:
    """A program at the server's end that has said `sign`, until the end of the block."""
    with ends.child(ends.server, argv) as child:
        child.wait_for(sign)
        yield child


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Used:
    """What the subject has used since this was made."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._packets = standing.packets()
        self._cpu_s = standing.cpu_s()
        self._begun = time.monotonic()

    def details(self) -> dict[str, float]:
        elapsed = time.monotonic() - self._begun
        details = {"elapsed_s": elapsed}
        cpu_s = self._standing.cpu_s()
        if cpu_s is not None and self._cpu_s is not None:
            details["cpu_s"] = cpu_s - self._cpu_s
        packets = self._standing.packets()
        if packets is not None and self._packets is not None:
            details["packets"] = packets - self._packets
        return details


def run(
    ends: Ends,
    standing: Standing,
    *,
    server: Sequence[str],
    sign: str,
    client: Sequence[str],
    seconds: float,
    overload: bool = False,
) -> Run:
    """Runs `client`, which takes `seconds`, to its end against `server`, ready with `sign`.

    Both have one busy thread. `overload`: the client sends as much as it can whatever arrives, so
    that only the server can be too slow to count what the subject delivers.

    Raises:
        BenchError: one of them did not start or did not end; the notes say what they wrote.
    """
    with serving(ends, server, sign) as peer:
        used = Used(standing)
        begun = children_cpu_s()
        with ends.child(ends.client, client) as child:
            text = finish(child, seconds + GRACE_S)
        client_s = children_cpu_s() - begun
        details = used.details()
        begun = children_cpu_s()
        served = peer.stop()
        server_s = children_cpu_s() - begun
    busy = server_s if overload else max(client_s, server_s)
    details["peers_busy"] = min(1.0, busy / details["elapsed_s"])
    return Run(plain(text), plain(served), details)


def plain(text: str) -> str:
    """Without the colours that some programs write whoever reads."""
    return _ESCAPE.sub("", text)


def said(text: str) -> str:
    """The end of what a program wrote, for a message."""
    return text.strip()[-_TAIL:] or "nothing"


def figures(text: str, program: str) -> dict[str, Any]:
    """The JSON object that a program ended with, on one line or over many.

    Raises:
        BenchError: there is none; with what it said instead.
    """
    start = 0 if text.startswith("{") else text.rfind("\n{") + 1
    try:
        found = json.loads(text[start:])
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise BenchError(f"{program} gave no figures; it said: {said(text)}")
    return found


def check_failures(failed: float, done: float, target: str) -> tuple[str, ...]:
    """A note on exchanges that failed. Raises BenchError when there were too many of them."""
    if not failed and done:
        return ()
    what = f"{failed:.0f} of {failed + done:.0f} exchanges through {target} failed"
    if failed > TOLERATED * (failed + done) or not done:
        raise BenchError(what)
    return (what,)
