"""What a supervisor knows, in the form in which its successor gets it.

The keeper holds a copy, replaced at each change. JSON with a format number: a successor may be
another version, and what it would misread it must refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

import tunlb
from tunlb.boot import Applied, decoder, encode
from tunlb.conf import Config, IPAddress
from tunlb.destids import DestKey
from tunlb.links import Change

#: Raise it with every change that a supervisor of the other version would misunderstand. A new key
#: with a default is none, unless it says what the other version would do otherwise: one that knows
#: neither tunnels nor lists must not go on with a configuration that has them.
FORMAT = 2
HISTORY_MAX = 64  #: configurations remembered for dests that still drain


class StateError(Exception):
    """The state cannot be taken over; the text says what was found."""


class Upgrade(msgspec.Struct, kw_only=True):
    """The last order to replace the program: how many there were, and what became of it.

    ``outcome`` is "" (none yet), "wanted", "upgraded" or "refused".
    """

    number: int = 0
    outcome: str = ""
    text: str = ""
    from_version: str = ""
    by_pid: int = 0


class State(msgspec.Struct, kw_only=True):
    """All that must survive a supervisor, beside the descriptors.

    ``history`` ends with the running configuration, whose number is ``serial``. ``numbers`` are all
    dests' numbers that are taken. ``undo`` takes back what was changed in the kernel. ``draining``:
    until when (ms of the monotonic clock) addresses that a reload took away stay routed. ``pids``:
    the processes that may be forwarding, by worker. ``active``: see Boot.
    """

    workers: int
    secret: bytes
    seed: int
    history: Annotated[tuple[Applied, ...], msgspec.Meta(min_length=1)]
    format: int = FORMAT
    version: str = tunlb.__version__
    serial: int = 0
    macs: dict[str, int] = {}
    offloads: dict[str, tuple[str, ...]] = {}
    numbers: tuple[tuple[DestKey, int], ...] = ()
    undo: tuple[Change, ...] = ()
    draining: tuple[tuple[int, tuple[IPAddress, ...]], ...] = ()
    pids: dict[int, int] = {}
    active: tuple[int, ...] = ()
    quiescent: bool = False
    upgrade: Upgrade = msgspec.field(default_factory=Upgrade)

    @property
    def config(self) -> Config:
        return self.history[-1].config

    def applied(self, applied: Applied) -> None:
        """A new configuration runs from now on."""
        self.history = pruned((*self.history, applied), applied.at_ms)
        self.serial += 1


class _Head(msgspec.Struct):
    """What every format has in common."""

    format: int
    version: str


def write_state(state: State) -> bytes:
    state.version = tunlb.__version__
    return encode(state)


def read_state(data: bytes) -> State:
    """Raises StateError for another format, or for what is no state at all."""
    try:
        head = msgspec.json.decode(data, type=_Head)
    except msgspec.DecodeError as error:
        raise StateError(f"what the keeper holds is not a tunlb's state: {error}") from None
    if head.format != FORMAT:
        raise StateError(
            f"the state was written by tunlb {head.version} in format {head.format}, "
            f"and tunlb {tunlb.__version__} reads format {FORMAT}"
        )
    try:
        return decoder(State).decode(data)
    except msgspec.DecodeError as error:
        raise StateError(
            f"the state that tunlb {head.version} wrote means nothing to "
            f"tunlb {tunlb.__version__}: {error}"
        ) from None


def pruned(history: Sequence[Applied], now_ms: int) -> tuple[Applied, ...]:
    """``history`` without its oldest configurations of which nothing drains, or ramps, any more.

    What a configuration took away, or made quiescent, drains for as long as the service says. At
    most HISTORY_MAX stay: then a worker that is forked again ends the oldest drains early.
    """
    kept = list(history[-HISTORY_MAX:])
    while len(kept) > 1:
        longest_s = max(
            (
                max(service.drain_s, service.slow_start_s)
                for applied in kept[:2]
                for service in applied.config.services
            ),
            default=0,
        )
        if kept[1].at_ms + round(longest_s * 1000) > now_ms:
            break
        del kept[0]
    return tuple(kept)
