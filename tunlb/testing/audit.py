"""Does everything that a director keeps about its conns agree?"""

from __future__ import annotations

from tunlb.director import Director
from tunlb.ipvs import conn as c


def audit(director: Director) -> None:
    """Every book of the director, held against the rows of its table; ends all conns."""
    ipvs, conns = director.ipvs, director.ipvs.conns
    q, d = conns.mem.cast("Q"), conns.mem.cast("I")
    h, b = conns.mem.cast("H"), conns.mem.cast("B")
    rows = list(conns.rows())
    assert conns.count == len(rows) <= conns.conn_max
    assert ipvs.timers.count == len(rows)
    active: dict[int, int] = {}
    inactive: dict[int, int] = {}
    for row in rows:
        assert ipvs.timers.scheduled(row)
        flags, dest_id = h[row * 64 + c.H_FLAGS], d[row * 32 + c.D_DEST]
        for direction in range(1 if flags & c.ONEWAY else 2):
            at = row * 16 + 4 * direction
            ports = d[row * 32 + c.D_PORTS + direction]
            entry = conns.find(
                q[at], q[at + 1], q[at + 2], q[at + 3], ports, b[row * 128 + c.B_PROTO]
            )
            assert entry >> 1 == row
        counted = active if flags & c.ACTIVE else inactive
        counted[dest_id] = counted.get(dest_id, 0) + 1
    for dest in ipvs.dests:
        assert dest.actconns == active.pop(dest.id, 0)
        assert dest.inactconns == inactive.pop(dest.id, 0)
    assert active == inactive == {}
    # Every lport that is out belongs to a row: ending all conns gives every one of them back.
    for row in rows:
        ipvs.life.end(row)
    assert conns.count == ipvs.timers.count == 0
    ipvs.pools.sweep()
    assert len(ipvs.pools) == 0
