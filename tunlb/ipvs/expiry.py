"""What else there is to do when the time of a row is over: a template that still holds conns stays,
and an established conn that remembers sequence numbers resets both its sides.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, Event
from tunlb.ipvs.conn import (
    B_STATE,
    D_DEST,
    D_LAST_SEEN,
    D_TIMEOUT,
    H_FLAGS,
    TEMPLATE,
    X_CONTROL,
)
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.life import Ending, Life
from tunlb.ipvs.persist import HELD_MS, Persistence
from tunlb.ipvs.protocol import ESTABLISHED
from tunlb.ipvs.resets import Resets

_TEMPLATE = cython.declare(cython.int, TEMPLATE)
_ESTABLISHED = cython.declare(cython.int, ESTABLISHED)
_HELD_MS = cython.declare(cython.longlong, HELD_MS)
_CONN_EXPIRED = cython.declare(cython.int, Event.CONN_EXPIRED)
_TEMPLATE_EXPIRED = cython.declare(cython.int, Event.TEMPLATE_EXPIRED)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)

# Words of a row, see ipvs/conn.py.
_B_STATE = cython.declare(cython.longlong, B_STATE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_D_LAST_SEEN = cython.declare(cython.longlong, D_LAST_SEEN)
_D_TIMEOUT = cython.declare(cython.longlong, D_TIMEOUT)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_X_CONTROL = cython.declare(cython.longlong, X_CONTROL)


class Expiry(Ending):
    """The ends of templates and of conns with RESETS."""

    def __init__(
        self, counters: Counters, life: Life, persistence: Persistence, resets: Resets
    ) -> None:
        self.counters = counters
        self.life = life
        self.conns = life.conns
        self.persistence = persistence
        self.resets = resets

    def due(self, row: cython.int, now: cython.longlong) -> cython.int:
        """As Life.check_expiry."""
        conns = self.conns
        age: cython.longlong = (now - conns.d[row * 32 + _D_LAST_SEEN]) & _MASK32
        left: cython.longlong = conns.d[row * 32 + _D_TIMEOUT] - age
        dest: Dest = self.life.dests[conns.d[row * 32 + _D_DEST]]
        if conns.h[row * 64 + _H_FLAGS] & _TEMPLATE:
            return self._template(row, dest, left, now)
        drained: cython.bint = dest.drain_until >= 0 and now > dest.drain_until
        if left > 0 and not drained:
            return left
        protocol = self.life.protocol_of(row)
        if (
            dest.reset_on_expire
            and protocol.kind(conns.b[row * 128 + _B_STATE]) == _ESTABLISHED
            and self.resets.both(row, now)
        ):
            return conns.d[row * 32 + _D_TIMEOUT]
        self.life.end(row)
        self.counters.add(_CONN_EXPIRED, 1)
        return 0

    def _template(
        self, row: cython.longlong, dest: Dest, left: cython.longlong, now: cython.longlong
    ) -> cython.int:
        if dest.available:
            self.persistence.remind(row, max(left, 0), now)
            if left > 0:
                return self.persistence.look_again(row, left)
        if self.conns.x[row * 16 + _X_CONTROL] != 0:
            return _HELD_MS
        self.life.end(row)
        self.counters.add(_TEMPLATE_EXPIRED, 1)
        return 0
