"""The way out of a packet of our own: LOCAL_OUT, route, POST_ROUTING, neighbour, outbox."""

from __future__ import annotations

import cython

from tunlb.counters import Counters
from tunlb.hook import Verdict
from tunlb.netif import Netif
from tunlb.outbox import Outbox, Sender, copy_of
from tunlb.packet import ETHER_LEN, Packet
from tunlb.pipeline.ip import Ip

if cython.compiled:
    from cython.cimports.tunlb.wire import ether, vnet
else:
    from tunlb.wire import ether, vnet

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_ETHER_LEN = cython.declare(cython.int, ETHER_LEN)
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
            source: cython.int = pkt.l3 - _ETHER_LEN + 6
            ether.push(pkt, ether.prefix_of(netif, bytes(pkt.mem[source : source + 6])))
        vnet.emit(pkt)
        return self.outbox.put(netif, copy_of(pkt))

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
