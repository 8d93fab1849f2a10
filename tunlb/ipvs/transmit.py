"""What happens to a packet whose conn is known: may it leave, what it does to the conn's state, and
how it becomes what the other side expects (DPVS: xmit_inbound, xmit_outbound).

Almost every conn needs addresses and ports rewritten and nothing else. Whatever a row wants beyond
that is one of the flags in :data:`~tunlb.ipvs.conn.SPECIAL`, so the others pay one test for all of
it.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.hook import Verdict
from tunlb.ipvs.client_address import ClientAddress
from tunlb.ipvs.conn import (
    ACTIVE,
    B_FWDMODE,
    B_STATE,
    CRC32C,
    D_DEST,
    D_EPOCH,
    D_LAST_SEEN,
    D_PACKETS,
    D_TIMEOUT,
    ECHO,
    H_FLAGS,
    H_MTU,
    H_NEIGH,
    HALF,
    INBOUND,
    MSS,
    NO_REWRITE,
    ONEWAY,
    RESETS,
    SEQUENCE,
    SPECIAL,
    SYNPROXY,
    XMIT,
)
from tunlb.ipvs.dest import (
    ACTCONNS,
    IN_BYTES,
    IN_PACKETS,
    INACTCONNS,
    NO_DEST,
    OUT_BYTES,
    OUT_PACKETS,
    Dest,
)
from tunlb.ipvs.life import Life
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.protocol import (
    DIR_INPUT,
    DIR_INPUT_ONLY,
    DIR_OUTPUT,
    ESTABLISHED,
    HALF_OPEN,
    Protocol,
)
from tunlb.ipvs.proxying import Proxying
from tunlb.neigh import NeighEntry, NeighTable
from tunlb.outbox import Sender
from tunlb.packet import CUT, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, Packet
from tunlb.route import Route, RouteTable
from tunlb.wire.icmp import ERR_NET_UNREACHABLE, ERR_TIME_EXCEEDED, ERR_TOO_BIG
from tunlb.wire.pieces import Pieces
from tunlb.wire.segment import Segments

if cython.compiled:
    from cython.cimports.tunlb.ipvs import client_address, echo, mss, resets, rewrite
    from cython.cimports.tunlb.wire import icmp, ipv4, ipv6, splice
else:
    from tunlb.ipvs import client_address, echo, mss, resets, rewrite
    from tunlb.wire import icmp, ipv4, ipv6, splice

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_CUT = cython.declare(cython.int, CUT)
_TCP = cython.declare(cython.int, IPPROTO_TCP)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_ICMP = cython.declare(cython.int, IPPROTO_ICMP)
_INBOUND = cython.declare(cython.int, INBOUND)
_ONEWAY = cython.declare(cython.int, ONEWAY)
_ACTIVE = cython.declare(cython.int, ACTIVE)
_NO_REWRITE = cython.declare(cython.int, NO_REWRITE)
_CRC32C = cython.declare(cython.int, CRC32C)
_RESETS = cython.declare(cython.int, RESETS)
_XMIT = cython.declare(cython.int, XMIT)
_ECHO = cython.declare(cython.int, ECHO)
_MSS = cython.declare(cython.int, MSS)
_SEQUENCE = cython.declare(cython.int, SEQUENCE)
_SYNPROXY = cython.declare(cython.int, SYNPROXY)
# What is done to these needs the whole segment or datagram.
_WHOLE = cython.declare(cython.int, SEQUENCE | SYNPROXY | RESETS)
_SPECIAL = cython.declare(cython.int, SPECIAL)
_HALF = cython.declare(cython.int, HALF)
_HALF_OPEN = cython.declare(cython.int, HALF_OPEN)
_ESTABLISHED = cython.declare(cython.int, ESTABLISHED)
_DIR_INPUT = cython.declare(cython.int, DIR_INPUT)
_DIR_OUTPUT = cython.declare(cython.int, DIR_OUTPUT)
_DIR_INPUT_ONLY = cython.declare(cython.int, DIR_INPUT_ONLY)
_TTL_EXCEEDED = cython.declare(cython.int, DropReason.TTL_EXCEEDED)
_MTU_EXCEEDED = cython.declare(cython.int, DropReason.MTU_EXCEEDED)
_FRAGMENT = cython.declare(cython.int, DropReason.FRAGMENT)
_NO_ROUTE = cython.declare(cython.int, DropReason.NO_ROUTE)
_NEIGH_TABLE_FULL = cython.declare(cython.int, DropReason.NEIGH_TABLE_FULL)
_ERR_TTL = cython.declare(cython.int, ERR_TIME_EXCEEDED)
_ERR_NET = cython.declare(cython.int, ERR_NET_UNREACHABLE)
_ERR_MTU = cython.declare(cython.int, ERR_TOO_BIG)
_MSS_CLAMPED = cython.declare(cython.int, Event.MSS_CLAMPED)
_SEGMENTS_CUT = cython.declare(cython.int, Event.SEGMENTS_CUT)
_FRAGMENTS_CUT = cython.declare(cython.int, Event.FRAGMENTS_CUT)
_PROXY_PIECES = cython.declare(cython.int, Event.PROXY_PIECES)
_IN_PACKETS = cython.declare(cython.int, Event.IPVS_IN_PACKETS)
_IN_BYTES = cython.declare(cython.int, Event.IPVS_IN_BYTES)
_DEST_IN_PACKETS = cython.declare(cython.int, IN_PACKETS)
_DEST_OUT_PACKETS = cython.declare(cython.int, OUT_PACKETS)
_DEST_IN_BYTES = cython.declare(cython.int, IN_BYTES)
_DEST_OUT_BYTES = cython.declare(cython.int, OUT_BYTES)
_ACTCONNS = cython.declare(cython.int, ACTCONNS)
_INACTCONNS = cython.declare(cython.int, INACTCONNS)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)

# Words of a row, see ipvs/conn.py.
_B_STATE = cython.declare(cython.longlong, B_STATE)
_B_FWDMODE = cython.declare(cython.longlong, B_FWDMODE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_H_NEIGH = cython.declare(cython.longlong, H_NEIGH)
_H_MTU = cython.declare(cython.longlong, H_MTU)
_D_LAST_SEEN = cython.declare(cython.longlong, D_LAST_SEEN)
_D_TIMEOUT = cython.declare(cython.longlong, D_TIMEOUT)
_D_PACKETS = cython.declare(cython.longlong, D_PACKETS)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_D_EPOCH = cython.declare(cython.longlong, D_EPOCH)


class Transmit:
    """Three questions to a packet and its row, asked in this order: :meth:`admit`, :meth:`track`,
    :meth:`send`.
    """

    def __init__(
        self,
        counters: Counters,
        life: Life,
        neighs: NeighTable,
        routes: RouteTable,
        sender: Sender,
    ) -> None:
        self.counters = counters
        self.client_address = ClientAddress(counters, sender)
        self.sender = sender
        self.conns = life.conns
        self.dests = life.dests
        self.modes = life.modes
        self.timers = life.timers
        self.proxying: Proxying = life.proxying
        self.neighs = neighs
        self.routes = routes
        self.segments = Segments()
        self.pieces = Pieces()
        self._cut_row = -1  # whose frame is in segments, or in pieces
        self._cut_dest = NO_DEST
        self._cut_room = 0  # bytes that each of them may have

    def admit(
        self, pkt: Packet, row: cython.longlong, direction: cython.int, now: cython.longlong
    ) -> cython.int:
        """May the packet leave? Sets ``neigh``; else not 0, with the reason and the ICMP error on
        the packet.
        """
        conns = self.conns
        if conns.d[row * 32 + _D_EPOCH] != self.neighs.epoch:
            self._resolve(row, now)
        neigh: cython.int = conns.h[row * 64 + _H_NEIGH + direction]
        if neigh == 0:
            # Nothing learnt: look again at the next packet, the table may have room by then.
            conns.d[row * 32 + _D_EPOCH] = 0
            if conns.h[row * 64 + _H_MTU + direction] == 0:
                icmp.refuse(pkt, _NO_ROUTE, _ERR_NET, 0)
            else:
                pkt.drop(_NEIGH_TABLE_FULL)
            return 1
        if pkt.ttl <= 1:
            icmp.refuse(pkt, _TTL_EXCEEDED, _ERR_TTL, 0)
            return 1
        if pkt.wire_length() > conns.h[row * 64 + _H_MTU + direction] and not self._divides(
            pkt, row
        ):
            icmp.refuse(pkt, _MTU_EXCEEDED, _ERR_MTU, conns.h[row * 64 + _H_MTU + direction])
            return 1
        pkt.neigh = neigh
        return 0

    def _divides(self, pkt: Packet, row: cython.longlong) -> cython.bint:
        """Will a packet that is too large be sent in fragments? Some modes do it, where its sender
        allows; no ICMP error is worth it.
        """
        if not self.conns.h[row * 64 + _H_FLAGS] & _XMIT:
            return False
        mode: Mode = self.modes[self.conns.b[row * 128 + _B_FWDMODE]]
        if not mode.divides or pkt.af != 4 or pkt.p[pkt.l3 + 6] & 0x40:
            return False
        if pkt.gso_type != 0 and not mode.cuts:
            return False
        return pkt.proto != _ICMP or pkt.fragment != 0 or not icmp.is_error(pkt)

    def _resolve(self, row: cython.longlong, now: cython.longlong) -> None:
        """Route and neighbour of both directions: INBOUND towards the dest, OUTBOUND towards the
        client.
        """
        conns = self.conns
        direction: cython.int
        at: cython.longlong
        route: Route | None
        index: cython.int
        entry: NeighEntry
        mode: Mode
        dest: Dest
        # Read first: to make room for one neighbour the table may forget the other.
        epoch: cython.uint = self.neighs.epoch
        for direction in range(1 if conns.h[row * 64 + _H_FLAGS] & _ONEWAY else 2):
            at = row * 16 + (1 - direction) * 4
            conns.h[row * 64 + _H_NEIGH + direction] = 0
            conns.h[row * 64 + _H_MTU + direction] = 0
            route = self.routes.lookup(conns.q[at], conns.q[at + 1])
            if route is None:
                continue
            if route.on_link:
                index = self.neighs.resolve(route.netif, conns.q[at], conns.q[at + 1], now)
            else:
                index = self.neighs.resolve(route.netif, route.via_hi, route.via, now)
            conns.h[row * 64 + _H_MTU + direction] = route.mtu
            if conns.h[row * 64 + _H_FLAGS] & _XMIT:
                mode = self.modes[conns.b[row * 128 + _B_FWDMODE]]
                dest = self.dests[conns.d[row * 32 + _D_DEST]]
                conns.h[row * 64 + _H_MTU + direction] = mode.path_mtu(dest, direction, route.mtu)
            conns.h[row * 64 + _H_NEIGH + direction] = index
            if index != 0:
                entry = self.neighs.entries[index]
                entry.pinned = True
        if self.neighs.epoch != epoch:
            # The second made its room at the first one's cost: neither the packet nor the row may
            # trust that index.
            conns.h[row * 64 + _H_NEIGH] = 0
        conns.d[row * 32 + _D_EPOCH] = epoch

    def track(
        self,
        pkt: Packet,
        protocol: Protocol,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> None:
        """Move the conn's state, and confirm the neighbour whose ACK this is."""
        conns = self.conns
        state: cython.int = conns.b[row * 128 + _B_STATE]
        column: cython.int = _DIR_OUTPUT
        if direction == _INBOUND:
            column = _DIR_INPUT_ONLY if conns.h[row * 64 + _H_FLAGS] & _ONEWAY else _DIR_INPUT
        new: cython.int = protocol.next_state(pkt, state, column)
        conns.d[row * 32 + _D_LAST_SEEN] = now & _MASK32
        if new != state:
            self.set_state(protocol, row, new, dest, now)
            if dest.telling.what != 0 and direction == _INBOUND and pkt.tcp_flags & 0x17 == 0x02:
                client_address.again(conns, row, dest.telling.of(pkt.saddr_hi, pkt.saddr))
        if pkt.proto == _TCP and pkt.tcp_flags & 0x10:
            behind: cython.int = conns.h[row * 64 + _H_NEIGH + 1 - direction]
            if behind != 0:
                entry: NeighEntry = self.neighs.entries[behind]
                entry.confirmed = now

    def set_state(
        self,
        protocol: Protocol,
        row: cython.longlong,
        state: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> None:
        """The conn is in ``state`` from now on: its timeout, and its place in the dest's counts."""
        conns = self.conns
        conns.b[row * 128 + _B_STATE] = state
        flags: cython.int = conns.h[row * 64 + _H_FLAGS]
        kind: cython.int = protocol.kind(state)
        if dest.half_opens is not None or flags & _HALF:
            if (kind == _HALF_OPEN) != (flags & _HALF != 0):
                flags ^= _HALF
                conns.h[row * 64 + _H_FLAGS] = flags
                dest.half_opened(1 if flags & _HALF else -1)
        if kind == _ESTABLISHED:
            if not flags & _ACTIVE:
                conns.h[row * 64 + _H_FLAGS] = flags | _ACTIVE
                dest.v[_ACTCONNS] += 1
                dest.v[_INACTCONNS] -= 1
        elif flags & _ACTIVE:
            conns.h[row * 64 + _H_FLAGS] = flags & ~_ACTIVE
            dest.v[_ACTCONNS] -= 1
            dest.v[_INACTCONNS] += 1
        timeout: cython.uint = dest.timeouts.of(state)
        if timeout < conns.d[row * 32 + _D_TIMEOUT]:
            self.timers.schedule(row, now, timeout)
        conns.d[row * 32 + _D_TIMEOUT] = timeout

    def send(
        self,
        pkt: Packet,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        """Rewrite, lower the TTL, count; the pipeline does the rest."""
        special: cython.int = self.conns.h[row * 64 + _H_FLAGS] & _SPECIAL
        length: cython.int = pkt.end - pkt.l3
        if special == 0:
            rewrite.apply(pkt, self.conns, row, direction)
        elif special != _NO_REWRITE:
            return self._send_special(pkt, row, direction, dest, now)
        self._lower_ttl(pkt)
        self._count(row, direction, dest, length)
        return _ACCEPT

    def _send_special(
        self,
        pkt: Packet,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        """The packet of a row that has a flag of SPECIAL."""
        flags: cython.int = self.conns.h[row * 64 + _H_FLAGS]
        reason: cython.int
        if pkt.fragment != 0 and not self._takes_fragments(row):
            return pkt.drop(_FRAGMENT)
        if flags & _SEQUENCE and direction == _INBOUND and pkt.proto == _UDP and pkt.gso_type != 0:
            return self._send_apart(pkt, row, dest, now)
        length: cython.int = pkt.end - pkt.l3
        if flags & _MSS and dest.mss_clamp != 0:
            self.counters.add(_MSS_CLAMPED, mss.clamp(pkt, self.conns, row, dest.mss_clamp))
        if flags & _SYNPROXY:
            verdict: cython.int = self.proxying.handle(pkt, row, direction, dest, now)
            if verdict != _ACCEPT:
                return verdict
        if flags & _SEQUENCE:
            if direction == _INBOUND:
                reason = self.client_address.inbound(pkt, self.conns, row, dest, now)
            else:
                reason = self.client_address.outbound(pkt, self.conns, row, dest, now)
            if reason != 0:
                return pkt.drop(reason)
        if flags & _NO_REWRITE:
            pass
        elif flags & _CRC32C:
            rewrite.apply_crc32c(pkt, self.conns, row, direction)
        elif flags & _ECHO:
            echo.apply(pkt, self.conns, row, direction)
        else:
            rewrite.apply(pkt, self.conns, row, direction)
        if flags & _RESETS:  # the numbers that the other side will see
            resets.follow(pkt, self.conns, row, direction)
        self._lower_ttl(pkt)
        if flags & _XMIT:
            mode: Mode = self.modes[self.conns.b[row * 128 + _B_FWDMODE]]
            if mode.cuts and (
                pkt.gso_type != 0 or pkt.end - pkt.l3 > self.conns.h[row * 64 + _H_MTU + direction]
            ):
                return self._cut(pkt, row, direction, dest, length)
            reason = mode.xmit(pkt, self.conns, row, direction, dest, now)
            if reason != 0:
                return pkt.drop(reason)
        self._count(row, direction, dest, length)
        return _ACCEPT

    def _takes_fragments(self, row: cython.longlong) -> cython.bint:
        """Can what is done to the conn's packets be done to a fragment, the first or a later?"""
        flags: cython.int = self.conns.h[row * 64 + _H_FLAGS]
        if flags & _WHOLE:
            return False
        # By how much other ports change a CRC depends on the length of the whole.
        if flags & _CRC32C and not flags & _ONEWAY and not rewrite.keeps_ports(self.conns, row):
            return False
        if flags & _XMIT:
            mode: Mode = self.modes[self.conns.b[row * 128 + _B_FWDMODE]]
            return mode.takes_fragments
        return True

    def _cut(
        self,
        pkt: Packet,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        length: cython.int,
    ) -> cython.int:
        """STOLEN: whoever writes frames asks for one segment or fragment after the other."""
        self._cut_room = self.conns.h[row * 64 + _H_MTU + direction]
        self.segments.left = 0
        self.pieces.left = 0
        reason: cython.int
        if pkt.gso_type != 0:
            reason = self.segments.begin(pkt)
        else:
            reason = self.pieces.begin(pkt, self._cut_room)
        if reason != 0:
            return pkt.drop(reason)
        self._cut_row = row
        self._cut_dest = dest
        self._count(row, direction, dest, length)
        pkt.owner = _CUT
        return _STOLEN

    def next_segment(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Make ``pkt`` the next segment, or fragment of one, of the frame that was stolen to be
        cut: ACCEPT with ``neigh`` still set, DROP, or -1 when that was all.
        """
        reason: cython.int
        if self.pieces.next(pkt):
            self.counters.add(_FRAGMENTS_CUT, 1)
        elif self.segments.next(pkt):
            self.counters.add(_SEGMENTS_CUT, 1)
            if pkt.end - pkt.l3 > self._cut_room:
                reason = self.pieces.begin(pkt, self._cut_room)
                if reason != 0:
                    return pkt.drop(reason)
                self.pieces.next(pkt)
                self.counters.add(_FRAGMENTS_CUT, 1)
        else:
            return -1
        mode: Mode = self.modes[self.conns.b[self._cut_row * 128 + _B_FWDMODE]]
        reason = mode.xmit(pkt, self.conns, self._cut_row, _INBOUND, self._cut_dest, now)
        return _ACCEPT if reason == 0 else pkt.drop(reason)

    def _send_apart(
        self, pkt: Packet, row: cython.longlong, dest: Dest, now: cython.longlong
    ) -> cython.int:
        """An offloaded frame of datagrams the first of which, or each, gets a header of its own:
        the first stays in ``pkt``, the others follow it by the outbox.
        """
        af: cython.int = pkt.af
        gso_type: cython.int = pkt.gso_type
        gso_size: cython.int = pkt.gso_size
        headers: bytes = bytes(pkt.mem[pkt.l3 : pkt.l4 + 8])
        rest: list[bytes] = client_address.pieces(pkt, self.conns, row)
        verdict: cython.int = self._send_special(pkt, row, _INBOUND, dest, now)
        if verdict != _ACCEPT:
            return verdict
        self.counters.add(_PROXY_PIECES, 1)
        data: bytes
        out: Packet
        for data in rest:
            out = self.sender.fresh(pkt.iif)
            out.af = af
            splice.piece(out, headers, data)
            if len(data) > gso_size:
                out.gso_type = gso_type
                out.gso_size = gso_size
            if self.send(out, row, _INBOUND, dest, now) == _ACCEPT:
                self.sender.send(out, now)
            else:
                self.counters.drop(out.reason)
        return verdict

    def _lower_ttl(self, pkt: Packet) -> None:
        if pkt.af == 4:
            ipv4.decrement_ttl(pkt)
        else:
            ipv6.decrement_hop_limit(pkt)

    def _count(
        self, row: cython.longlong, direction: cython.int, dest: Dest, length: cython.int
    ) -> None:
        at: cython.longlong = row * 32 + _D_PACKETS + direction
        self.conns.d[at] = (self.conns.d[at] + 1) & _MASK32
        if direction == _INBOUND:
            dest.v[_DEST_IN_PACKETS] += 1
            dest.v[_DEST_IN_BYTES] += length
        else:
            dest.v[_DEST_OUT_PACKETS] += 1
            dest.v[_DEST_OUT_BYTES] += length
        self.counters.add(_IN_PACKETS + direction, 1)
        self.counters.add(_IN_BYTES + direction, length)
