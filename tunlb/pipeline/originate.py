"""The way out of a packet of our own: LOCAL_OUT, route, POST_ROUTING, neighbour, outbox."""

from __future__ import annotations

import cython

from tunlb.counters import Counters
from tunlb.hook import Verdict
from tunlb.netif import Netif
from tunlb.outbox import Outbox, Sender
from tunlb.packet import ETHER_LEN, Packet
from tunlb.pipeline.ip import Ip

if cython.compiled:
    from cython.cimports.tunlb.outbox import copy_of
    from cython.cimports.tunlb.wire import ether, vnet
else:
    from tunlb.outbox import copy_of
    from tunlb.wire import ether, vnet

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_ETHER_LEN = cython.declare(cython.int, ETHER_LEN)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)
_DROP = cython.declare(cython.int, Verdict.DROP)


class Originate(Sender):
    """See :class:`~tunlb.outbox.Sender`. Its packet is not the one that came in, so that an answer
    can be built beside what it answers.
    """

    def __init__(self, counters: Counters, ip: Ip, outbox: Outbox) -> None:
        self.counters = counters
        self.ip = ip
        self.outbox = outbox
        self.packet = Packet()

    def fresh(self, iif: Netif) -> Packet:
        pkt: Packet = self.packet
        pkt.reset(0, 0)
        pkt.iif = iif
        pkt.oif = None
        return pkt

    def reply(self, pkt: Packet, now: cython.longlong) -> cython.bint:
        verdict: cython.int = self.ip.local_out_chain.run(pkt, now)
        if verdict == _ACCEPT:
            verdict = self.ip.post_routing.run(pkt, now)
        if verdict == _DROP:
            self.counters.drop(pkt.reason)
            return False
        if verdict != _ACCEPT:
            return True
        self.ip.guard.wrote(pkt, now)
        netif: Netif = pkt.iif
        pkt.oif = netif
        pkt.start = pkt.l3
        if not netif.tun:
            # The header that it came with is still there, without a tag.
            self._turn(pkt, netif)
        vnet.emit(pkt)
        return self.outbox.put(netif, copy_of(pkt))

    def _turn(self, pkt: Packet, netif: Netif) -> None:
        """The L2 header back to where the packet came from, whose address is still in its own."""
        at: cython.int = pkt.l3 - _ETHER_LEN
        if netif.vid != 0:
            ether.push(pkt, ether.prefix_of(netif, bytes(pkt.mem[at + 6 : at + 12])))
            return
        pkt.put32(at, pkt.be32(at + 6))
        pkt.put16(at + 4, pkt.be16(at + 10))
        pkt.put16(at + 6, cython.cast(cython.uint, netif.mac >> 32))
        pkt.put32(at + 8, cython.cast(cython.uint, netif.mac & _MASK32))
        pkt.put16(at + 12, pkt.ether_type)
        pkt.start = at

    def send(self, pkt: Packet, now: cython.longlong) -> cython.bint:
        verdict: cython.int = self.ip.local_out(pkt, now)
        if verdict == _DROP:
            self.counters.drop(pkt.reason)
            return False
        if verdict == _ACCEPT:
            vnet.emit(pkt)
            assert pkt.oif is not None
            return self.outbox.put(pkt.oif, copy_of(pkt))
        return True  # a hook has it, or it waits for its neighbour
