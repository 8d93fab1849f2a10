"""SNAT: inside hosts go out by addresses that they share (DPVS: src/ipvs/ip_vs_xmit.c, sa_pool.c).

Heads up: read RFC 4787 (UDP), RFC 5382 (TCP) and RFC 5508 (ICMP) first. The inside host is the
client and the packet's own destination takes the place of the dest, so the OUTBOUND key is
(remote, laddr, rport, lport). Endpoints outside are without number, so there are no pools of
ports: an lport is free when no conn has that key, and the conn table itself says so. The same
laddr:lport serves towards as many remote endpoints as there are rows.

- The laddr is chosen by the inside host's address: a host keeps it (RFC 4787 REQ-2, "paired").
- The host's own port is kept where it is free (so a resolver's random ports stay random), else
  PROBES others are tried, in an order that a secret hash of the host's endpoint gives. So an
  endpoint looks the same from everywhere, but where another host was first (RFC 4787 REQ-1).
- A worker has all ports: everything towards one remote endpoint is one worker's, in both directions
  (see ipvs/sharding.py).
- A ping has its identifier for a port: two hosts that ping the same address with the same
  identifier get different ones outside.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.ipvs.conn import B_AF, B_PROTO, D_PORTS, ConnTable
from tunlb.ipvs.dest import FWD_SNAT, Dest
from tunlb.ipvs.laddr import FIRST_PORT, LAST_PORT, LportPools
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service

PROBES = 128  #: lports tried on a host's laddr, on each further one half as many, but
PROBES_MIN = 8
LADDRS_TRIED = 16  #: of a service

_EXHAUSTED = cython.declare(cython.int, DropReason.LPORT_EXHAUSTED)
_PROBES = cython.declare(cython.int, PROBES)
_PROBES_MIN = cython.declare(cython.int, PROBES_MIN)
_LADDRS_TRIED = cython.declare(cython.int, LADDRS_TRIED)
_B_AF = cython.declare(cython.longlong, B_AF)
_B_PROTO = cython.declare(cython.longlong, B_PROTO)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_SPREAD = cython.declare(cython.ulonglong, 0x9E3779B97F4A7C15)  # golden ratio: mixing, no secret
_MASK64 = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)


class SourceNat(Mode):
    """``size`` ports from ``first`` on."""

    number = FWD_SNAT

    def __init__(self, pools: LportPools) -> None:
        super().__init__(pools)
        self.first = FIRST_PORT
        self.size = LAST_PORT - FIRST_PORT + 1

    def bind(
        self,
        conns: ConnTable,
        row: cython.longlong,
        service: Service,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        n: cython.int = len(service.laddrs)
        cport: cython.uint = conns.d[row * 32 + _D_PORTS] >> 16
        chance: cython.uint = self.chance(conns, row)
        start: cython.int = self.paired(conns, row, n)
        lport: cython.uint
        probes: cython.int = _PROBES
        probe: cython.int
        laddr_hi: cython.ulonglong
        laddr: cython.ulonglong
        i: cython.int
        for i in range(min(n, _LADDRS_TRIED)):
            laddr_hi, laddr = service.laddrs[(start + i) % n]
            if self.ours(cport) and self.holder(conns, row, laddr_hi, laddr, cport) < 0:
                self.take(conns, row, laddr_hi, laddr, cport)
                return 0
            for probe in range(probes):
                lport = self.candidate(chance, probe)
                if self.holder(conns, row, laddr_hi, laddr, lport) < 0:
                    self.take(conns, row, laddr_hi, laddr, lport)
                    return 0
            probes = max(probes >> 1, _PROBES_MIN)
        return _EXHAUSTED

    def rival(
        self, conns: ConnTable, row: cython.longlong, service: Service, at: cython.int
    ) -> cython.longlong:
        n: cython.int = len(service.laddrs)
        laddr_hi: cython.ulonglong
        laddr: cython.ulonglong
        laddr_hi, laddr = service.laddrs[self.paired(conns, row, n)]
        lport: cython.uint = self.candidate(self.chance(conns, row), at)
        return self.holder(conns, row, laddr_hi, laddr, lport)

    def rebind(self, conns: ConnTable, row: cython.longlong) -> cython.bint:
        """Nothing to take but the key, which ConnTable.adopt does."""
        return self.ours(conns.d[row * 32 + _D_PORTS + 1] & 0xFFFF)

    def fits(self, conns: ConnTable, row: cython.longlong, dest: Dest) -> cython.bint:
        at: cython.longlong = row * 16
        return (
            dest.af == conns.b[row * 128 + _B_AF]
            and conns.q[at + 4] == conns.q[at + 2]
            and conns.q[at + 5] == conns.q[at + 3]
            and self.addresses.is_local(conns.q[at + 6], conns.q[at + 7])
            and conns.d[row * 32 + _D_PORTS + 1] >> 16 == conns.d[row * 32 + _D_PORTS] & 0xFFFF
        )

    def paired(self, conns: ConnTable, row: cython.longlong, n: cython.int) -> cython.int:
        """Which of ``n`` laddrs the inside host has; every worker and successor says the same."""
        mixed: cython.ulonglong = conns.q[row * 16] ^ conns.q[row * 16 + 1]
        high: cython.uint = ((mixed * _SPREAD) & _MASK64) >> 40
        return high % n

    def ours(self, lport: cython.uint) -> cython.bint:
        return self.first <= lport < self.first + self.size

    def chance(self, conns: ConnTable, row: cython.longlong) -> cython.uint:
        """A secret hash of the host's endpoint: who is outside cannot foretell an lport by it."""
        at: cython.longlong = row * 16
        return conns.hash_tuple(
            conns.q[at],
            conns.q[at + 1],
            0,
            0,
            conns.d[row * 32 + _D_PORTS] >> 16,
            conns.b[row * 128 + _B_PROTO],
        )

    def candidate(self, chance: cython.uint, probe: cython.int) -> cython.uint:
        """The port to try ``probe``-th; the step between two is the host's endpoint's own."""
        at: cython.ulonglong = chance
        at = at + probe * ((at >> 5) | 1)
        return self.first + at % self.size

    def holder(
        self,
        conns: ConnTable,
        row: cython.longlong,
        laddr_hi: cython.ulonglong,
        laddr: cython.ulonglong,
        lport: cython.uint,
    ) -> cython.longlong:
        """The conn that has this laddr and lport towards the row's remote endpoint, or -1."""
        at: cython.longlong = row * 16
        rport: cython.uint = conns.d[row * 32 + _D_PORTS] & 0xFFFF
        proto: cython.int = conns.b[row * 128 + _B_PROTO]
        return conns.find(
            conns.q[at + 2], conns.q[at + 3], laddr_hi, laddr, (rport << 16) | lport, proto
        )

    def take(
        self,
        conns: ConnTable,
        row: cython.longlong,
        laddr_hi: cython.ulonglong,
        laddr: cython.ulonglong,
        lport: cython.uint,
    ) -> None:
        at: cython.longlong = row * 16
        conns.q[at + 4] = conns.q[at + 2]
        conns.q[at + 5] = conns.q[at + 3]
        conns.q[at + 6] = laddr_hi
        conns.q[at + 7] = laddr
        conns.d[row * 32 + _D_PORTS + 1] = ((conns.d[row * 32 + _D_PORTS] & 0xFFFF) << 16) | lport


XMIT = SourceNat
