"""Timeouts of protocol states, per service."""

from __future__ import annotations

from collections.abc import Mapping

import cython

SLOTS = 16  #: states of one protocol, at most


class Timeouts:
    """Milliseconds by state number; ``of(state)`` is what the packet path reads."""

    def __init__(self, milliseconds: Mapping[int, int]) -> None:
        self.mem = memoryview(bytearray(4 * SLOTS)).cast("I")
        for state, value in milliseconds.items():
            self.mem[state] = value
        if cython.compiled:
            view: cython.uint[::1] = self.mem
            self.v = cython.address(view[0])
        else:
            self.v = self.mem

    def of(self, state: cython.int) -> cython.uint:
        return self.v[state]


NO_TIMEOUTS = Timeouts({})  #: of a dest that no service has yet
