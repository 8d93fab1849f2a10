"""What a connection costs in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tunlb.bench.micro.bed import Bed
from tunlb.ipvs.conn import ROW_SIZE
from tunlb.testing.flow import Rig

CONNS = 1_000_000
HEAD_SIZE = 4  # bytes of a head of the hash


@dataclass(frozen=True)
class Size:
    """Bytes a conn: by the size of the tables with every row in use, and by what the process grew
    while CONNS of them were opened."""

    row: float
    heads: float
    timers: float
    resident: float

    @property
    def tables(self) -> float:
        return self.row + self.heads + self.timers


def measure(base: Bed) -> Size:
    """Opens the conns that the room `crowd-1m` uses; call it before that room is set up."""
    before = resident()
    rig = base.crowd(CONNS)
    return by_tables(rig, (resident() - before) / CONNS)


def by_tables(rig: Rig, resident_each: float) -> Size:
    life = rig.director.ipvs.life
    rows = life.conns.conn_max
    return Size(
        row=ROW_SIZE,
        heads=HEAD_SIZE * (life.conns.mask + 1) / rows,
        timers=life.timers.mem.nbytes / rows,
        resident=resident_each,
    )


def resident() -> int:
    """Bytes of this process that are in memory, shared ones included."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
