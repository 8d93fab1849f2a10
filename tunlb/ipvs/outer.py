"""ICMP errors about the outer packets that a tunnel sent (RFC 2003 sections 4 and 5, RFC 2473
section 8).

They are addressed to us. One that says how large a packet may be lowers the path MTU of the far
end, for ten minutes; where it quotes enough of the inner packet, the client is told at once, else
by its next packet that is too large. That a host cannot be reached, or that the TTL ran out, the
client is told as well: the TTL was its own. The rest ends here.

What is quoted was ours, so it is held against the conn whose packet it claims to be. A quote too
short for that is believed as far as the path MTU goes, a few times a second.
"""

from __future__ import annotations

import struct

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.ipvs.conn import B_FWDMODE, D_DEST
from tunlb.ipvs.dest import FWD_TUNNEL, Dest
from tunlb.ipvs.far import MTU_MIN, FarEnd
from tunlb.ipvs.life import Life
from tunlb.ipvs.service import ServiceTable
from tunlb.ipvs.sharding import Sharding
from tunlb.ipvs.xmit.tunnel import Tunnel
from tunlb.neigh import NeighTable
from tunlb.netif import Addresses
from tunlb.packet import (
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    Packet,
)
from tunlb.peers import Peers

if cython.compiled:
    from cython.cimports.tunlb.ipvs import related
    from cython.cimports.tunlb.wire import checksum, encap
else:
    from tunlb.ipvs import related
    from tunlb.wire import checksum, encap

PATH = 16  #: the first byte of a message to other workers: a path MTU
NEWS_MAX = 32  #: path MTUs lowered in a second; further errors are not believed
NOT_OURS = -1

_MESSAGE = struct.Struct(">B3xIQQ")
_DROPPED = DropReason.TUNNEL_ERROR
_WITH_PORTS = frozenset((IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP))
_PINGS = frozenset(((4, IPPROTO_ICMP, 8), (6, IPPROTO_ICMPV6, 128)))
_TOO_BIG, _UNREACHABLE, _EXPIRED, _OTHER = range(4)


class Quote:
    """The outer packet that an error quotes, and the inner one as far as it is there.

    ``inner`` is where that begins, ``end`` where it ends in the quote; -1 when it is cut off before
    its ports, or has none that a conn is found by: a later fragment, an ICMP error, an extension
    header. Addresses are (hi, lo), ``ports`` as in a key.
    """

    def __init__(self, pkt: Packet) -> None:
        at = pkt.l4 + 8
        self.src = related.address(pkt, at, pkt.af, 0)
        self.dst = related.address(pkt, at, pkt.af, 1)
        self.length = pkt.be16(at + 2) if pkt.af == 4 else 40 + pkt.be16(at + 4)
        self.proto = int(related.inner_proto(pkt))
        self.inner = -1
        self.ports = 0
        self.af = self.l4 = self.end = self.inner_proto = self.inner_length = 0
        self.caddr = self.vaddr = (0, 0)
        l4 = int(related.inner_l4(pkt))
        start = int(encap.peel(pkt, l4, self.proto))
        self.ours = start >= 0
        self.port = pkt.be16(l4 + 2) if self.proto == 17 else 0
        if start >= 0:
            self._peel(pkt, start)

    def _peel(self, pkt: Packet, at: int) -> None:
        room = pkt.end - at
        if room < 28:
            return
        version = pkt.p[at] >> 4
        header = 40
        if version == 4:
            header = (pkt.p[at] & 15) * 4
            if header < 20 or room < header + 8 or checksum.sum16(pkt, at, header) != 0xFFFF:
                return
            if pkt.be16(at + 6) & 0x1FFF:
                return
            length = pkt.be16(at + 2)
            self.inner_proto = pkt.p[at + 9]
        elif version == 6 and room >= 48:
            length = 40 + pkt.be16(at + 4)
            self.inner_proto = pkt.p[at + 6]
        else:
            return
        self.l4 = at + header
        if length < header + 8 or not self._find_ports(pkt, version):
            return
        self.af = version
        self.end = min(pkt.end, at + length)
        self.inner_length = length
        self.caddr = related.address(pkt, at, version, 0)
        self.vaddr = related.address(pkt, at, version, 1)
        self.inner = at

    def _find_ports(self, pkt: Packet, version: int) -> bool:
        """Of a question, a ping has its identifier (see wire/icmp.py)."""
        if self.inner_proto in _WITH_PORTS:
            self.ports = pkt.be32(self.l4)
            return True
        if (version, self.inner_proto, pkt.p[self.l4]) in _PINGS:
            self.ports = pkt.be16(self.l4 + 4) << 16
            return True
        return False


class OuterErrors:
    """``peers`` leads to the other workers, which send to the same far ends; None: there is nobody
    else.
    """

    def __init__(
        self, counters: Counters, life: Life, neighs: NeighTable, sharding: Sharding | None
    ) -> None:
        self.counters = counters
        self.life = life
        self.neighs = neighs
        self.sharding = sharding
        self.peers: Peers | None = None
        mode = life.modes[FWD_TUNNEL]
        self.tunnel: Tunnel | None = mode if isinstance(mode, Tunnel) else None
        self._second = 0
        self._news = 0

    def receive(
        self, pkt: Packet, addresses: Addresses, services: ServiceTable, now: cython.longlong
    ) -> cython.int:
        """The verdict on a verified ICMP error that quotes a packet; NOT_OURS when that is no outer
        one of ours.
        """
        if self.tunnel is None or related.inner_l4(pkt) < 0:
            return NOT_OURS
        quote = Quote(pkt)
        hi, lo = quote.src
        if not quote.ours or not addresses.is_local(hi, lo):
            return NOT_OURS
        far: FarEnd | None = self.tunnel.ends.get(quote.dst)
        if quote.inner >= 0:
            far = self._of_conn(quote)
            if far is None and _scheduled_alone(quote, services):
                far = self.tunnel.ends.get(quote.dst)
            if far is None:
                return self._elsewhere(pkt, quote, addresses)
        elif far is None or (quote.proto == 17 and quote.port != far.port):
            return NOT_OURS
        kind, mtu = _meaning(pkt)
        if kind == _TOO_BIG:
            return self._too_big(pkt, quote, far, mtu, now)
        if quote.inner >= 0 and kind == _UNREACHABLE:
            return self._tell(pkt, quote, (3, 1) if quote.af == 4 else (1, 3), 0)
        if quote.inner >= 0 and kind == _EXPIRED:
            return self._tell(pkt, quote, (11, 0) if quote.af == 4 else (3, 0), 0)
        return pkt.drop(_DROPPED)

    def _of_conn(self, quote: Quote) -> FarEnd | None:
        """The far end of the conn whose packet is quoted; None when there is none, or it is not
        where that packet went.
        """
        conns = self.life.conns
        chi, clo = quote.caddr
        vhi, vlo = quote.vaddr
        entry = conns.find(chi, clo, vhi, vlo, quote.ports, quote.inner_proto)
        if entry < 0 or entry & 1:
            return None
        row = entry >> 1
        if conns.b[row * 128 + B_FWDMODE] != FWD_TUNNEL:
            return None
        dest: Dest = self.life.dests[conns.d[row * 32 + D_DEST]]
        return dest.far if (dest.daddr_hi, dest.daddr) == quote.dst else None

    def _elsewhere(self, pkt: Packet, quote: Quote, addresses: Addresses) -> int:
        """It may be about a conn of another worker."""
        if self.sharding is not None and not pkt.handed:
            chi, clo = quote.caddr
            vhi, vlo = quote.vaddr
            sport, dport = quote.ports >> 16, quote.ports & 0xFFFF
            owner = 0  # pings are its
            if quote.inner_proto in _WITH_PORTS:
                owner = self.sharding.owner(addresses, chi, clo, sport, vhi, vlo, dport)
            if owner != self.sharding.worker:
                pkt.owner = owner
                return 2
        return pkt.drop(DropReason.ICMP_UNRELATED)

    def _too_big(self, pkt: Packet, quote: Quote, far: FarEnd, mtu: int, now: int) -> int:
        if not MTU_MIN[far.af] <= mtu < quote.length:
            return pkt.drop(_DROPPED)  # it would have passed, or nothing passes there
        known = self._believe(quote.dst, mtu, now)
        if known == 0:
            return pkt.drop(_DROPPED)
        room = far.room(known)
        if quote.inner < 0 or quote.inner_length <= room:
            return pkt.drop(_DROPPED)
        return self._tell(pkt, quote, (3, 4) if quote.af == 4 else (2, 0), room)

    def _believe(self, dst: tuple[int, int], mtu: int, now: int) -> int:
        """The path MTU that is known now; 0: there is too much news."""
        assert self.tunnel is not None
        if now - self._second >= 1000:
            self._second = now
            self._news = 0
        if self._news >= NEWS_MAX:
            return 0
        if self._learn(dst, mtu, now):
            self._news += 1
            if self.peers is not None:
                self.peers.tell_all(_MESSAGE.pack(PATH, mtu, dst[0], dst[1]))
        return self.tunnel.paths.mtu(dst[0], dst[1])

    def _learn(self, dst: tuple[int, int], mtu: int, now: int) -> bool:
        assert self.tunnel is not None
        if not self.tunnel.paths.learn(dst[0], dst[1], mtu, now):
            return False
        self.counters.add(Event.TUNNEL_PMTU, 1)
        self.neighs.epoch += 1  # rows look up their path MTUs again
        return True

    def _tell(self, pkt: Packet, quote: Quote, error: tuple[int, int], info: int) -> int:
        """DROP, with an error of our own about the inner packet, which ``pkt`` becomes."""
        pkt.l3 = quote.inner
        pkt.l4 = quote.l4
        pkt.end = quote.end
        pkt.af = quote.af
        pkt.proto = quote.inner_proto
        pkt.icmp_type = pkt.p[quote.l4]  # of a ping; the error's own would forbid to tell anybody
        pkt.saddr_hi, pkt.saddr = quote.caddr
        pkt.daddr_hi, pkt.daddr = quote.vaddr
        return pkt.drop_with_error(_DROPPED, error[0], error[1], info)

    def hear(self, message: bytes, now: int) -> None:
        """What another worker learnt; as little trusted as what the wire says."""
        if self.tunnel is None or len(message) != _MESSAGE.size:
            return
        _, mtu, hi, lo = _MESSAGE.unpack(message)
        far: FarEnd | None = self.tunnel.ends.get((hi, lo))
        if far is not None and MTU_MIN[far.af] <= mtu <= 65535:
            self._learn((hi, lo), mtu, now)

    def expire(self, now: cython.longlong) -> None:
        """Let time pass."""
        if self.tunnel is None or not self.tunnel.paths.known:
            return
        gone = self.tunnel.paths.expire(now)
        if gone:
            self.counters.add(Event.TUNNEL_PMTU_EXPIRED, gone)
            self.neighs.epoch += 1


def _scheduled_alone(quote: Quote, services: ServiceTable) -> bool:
    """Is it a datagram that opened no conn (see ipvs/ops.py)?"""
    vhi, vlo = quote.vaddr
    service = services.lookup(quote.inner_proto, vhi, vlo, quote.ports & 0xFFFF)
    return service is not None and bool(service.ops)


def _meaning(pkt: Packet) -> tuple[int, int]:
    """What the error says, and the MTU. That fragments of an outer packet got lost (time exceeded,
    code 1) is no word about the client's TTL.
    """
    kind, code = pkt.icmp_type, pkt.p[pkt.l4 + 1]
    if pkt.af == 4:
        if kind == 3 and code == 4:
            return _TOO_BIG, pkt.be16(pkt.l4 + 6)
        if kind == 3 and code != 5:
            return _UNREACHABLE, 0
        return (_EXPIRED, 0) if kind == 11 and code == 0 else (_OTHER, 0)
    if kind == 2:
        return _TOO_BIG, min(pkt.be32(pkt.l4 + 4), 65535)
    if kind == 1:
        return _UNREACHABLE, 0
    return (_EXPIRED, 0) if kind == 3 and code == 0 else (_OTHER, 0)
