"""Does everything that a director keeps about its conns agree?"""

from __future__ import annotations

from tunlb.director import Director
from tunlb.ipvs import conn as c
from tunlb.ipvs.dest import TEMPLATES


def audit(director: Director) -> None:
    """Every book of the director, held against the rows of its table; ends all conns."""
    ipvs, conns = director.ipvs, director.ipvs.conns
    q, d = conns.mem.cast("Q"), conns.mem.cast("I")
    h, b = conns.mem.cast("H"), conns.mem.cast("B")
    rows = list(conns.rows())
    assert conns.count == len(rows) <= conns.conn_max
    assert ipvs.life.timers.count == len(rows)
    audit_templates(director)
    active: dict[int, int] = {}
    inactive: dict[int, int] = {}
    for row in rows:
        assert ipvs.life.timers.scheduled(row)
        flags, dest_id = h[row * 64 + c.H_FLAGS], d[row * 32 + c.D_DEST]
        for direction in range(1 if flags & c.ONEWAY else 2):
            at = row * 16 + 4 * direction
            ports = d[row * 32 + c.D_PORTS + direction]
            entry = conns.find(
                q[at], q[at + 1], q[at + 2], q[at + 3], ports, b[row * 128 + c.B_PROTO]
            )
            assert entry >> 1 == row
        if flags & c.TEMPLATE:
            continue
        counted = active if flags & c.ACTIVE else inactive
        counted[dest_id] = counted.get(dest_id, 0) + 1
    for dest in ipvs.dests:
        assert dest.actconns == active.pop(dest.id, 0)
        assert dest.inactconns == inactive.pop(dest.id, 0)
    assert active == inactive == {}
    # Every lport that is out belongs to a row: ending all conns gives every one of them back.
    templates = [row for row in rows if h[row * 64 + c.H_FLAGS] & c.TEMPLATE]
    for row in [*(row for row in rows if row not in templates), *templates]:
        if conns.valid(row):  # a template may have ended with its last conn
            ipvs.life.end(row)
    assert conns.count == ipvs.life.timers.count == 0
    ipvs.life.pools.sweep()
    assert len(ipvs.life.pools) == 0


def audit_templates(director: Director) -> None:
    """Does every template know how many conns it holds, and every dest and service what it has?"""
    ipvs, conns = director.ipvs, director.ipvs.conns
    d, h = conns.mem.cast("I"), conns.mem.cast("H")
    held: dict[int, int] = {}
    led: dict[int, int] = {}
    for row in conns.rows():
        flags = h[row * 64 + c.H_FLAGS]
        if flags & c.TEMPLATE:
            held.setdefault(row, 0)
            dest_id = d[row * 32 + c.D_DEST]
            led[dest_id] = led.get(dest_id, 0) + 1
        elif flags & c.CONTROLLED:
            template = extra(director, row, c.X_CONTROL)
            held[template] = held.get(template, 0) + 1
    for row, count in held.items():
        assert h[row * 64 + c.H_FLAGS] & c.TEMPLATE
        assert extra(director, row, c.X_CONTROL) == count
    assert ipvs.life.templates == len(held)
    carried: dict[int, int] = {}
    for dest in ipvs.dests:
        assert dest.stats[TEMPLATES] == led.get(dest.id, 0)
        carried[id(dest.carried)] = carried.get(id(dest.carried), 0) + dest.load()
    for service in director.services():
        if service.max_conn and service.dests:
            assert service.carried.count == carried[id(service.carried)]


def extra(director: Director, row: int, word: int) -> int:
    """A word of a row's extra."""
    return int(director.ipvs.conns.extra_mem[row * 16 + word])
