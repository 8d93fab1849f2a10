"""ICMP and ICMPv6 errors of our own (RFC 1122 section 3.2.2, RFC 1812 section 4.3.2, RFC 4443
section 2.4).
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.netif import Addresses
from tunlb.outbox import Sender
from tunlb.packet import HOST, IPPROTO_ICMP, IPPROTO_ICMPV6, LATER_FRAGMENT, Packet
from tunlb.pipeline.ip import is_group

if cython.compiled:
    from cython.cimports.tunlb.wire import icmp, ipv4, ipv6
else:
    from tunlb.wire import icmp, ipv4, ipv6

#: Bytes of a whole error packet, IPv4 (RFC 1812 section 4.3.2.3) and IPv6 (RFC 4443 section 2.4 c).
ERROR_MAX = (576, 1280)
ERRORS_PER_SECOND = 1000  #: as Linux' icmp_msgs_per_sec
ERROR_BURST = 50  #: as Linux' icmp_msgs_burst

HEADER_LEN = 8

_ICMP = cython.declare(cython.int, IPPROTO_ICMP)
_ICMPV6 = cython.declare(cython.int, IPPROTO_ICMPV6)


class TokenBucket:
    """``rate`` tokens a second up to ``burst``; time is ms."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = burst * 1000
        self.updated = 0

    def take(self, now: int) -> bool:
        gained = (now - self.updated) * self.rate
        self.updated = now
        self.tokens = min(self.burst * 1000, self.tokens + gained)
        if self.tokens < 1000:
            return False
        self.tokens -= 1000
        return True


class IcmpErrors:
    """Builds an error about a dropped packet and sends it."""

    def __init__(self, counters: Counters, addresses: Addresses, sender: Sender) -> None:
        self.counters = counters
        self.addresses = addresses
        self.sender = sender
        self.bucket = TokenBucket(ERRORS_PER_SECOND, ERROR_BURST)

    def send(self, pkt: Packet, now: cython.longlong) -> None:
        """Send the error that ``pkt`` asks for, unless the RFCs or the rate limit say no.

        ``pkt`` must still be as its sender wrote it: errors are asked for before any rewrite.
        """
        if not self._may_send(pkt):
            return
        if not self.bucket.take(now):
            self.counters.drop(DropReason.RATE_LIMITED)
            return
        source = self._source(pkt)
        if source is None:
            return
        out = self.sender.fresh(pkt.iif)
        out.saddr_hi, out.saddr = source
        out.daddr_hi = pkt.saddr_hi
        out.daddr = pkt.saddr
        v6 = pkt.af == 6
        header = 40 if v6 else 20
        quoted = bytes(pkt.mem[pkt.l3 : min(pkt.end, pkt.l3 + ERROR_MAX[v6] - header - HEADER_LEN)])
        length = HEADER_LEN + len(quoted)
        if v6:
            ipv6.build(out, _ICMPV6, length, 64)
        else:
            # Internetwork control (RFC 1812 section 4.3.2.5).
            ipv4.build(out, _ICMP, length, 0xC0)
        out.mem[out.l4 + HEADER_LEN : out.end] = quoted
        out.p[out.l4] = pkt.err_type
        out.p[out.l4 + 1] = pkt.err_code
        out.put32(out.l4 + 4, pkt.err_info)
        icmp.seal(out)
        if self.sender.send(out, now):
            self.counters.add(Event.ICMP_ERRORS_SENT, 1)

    def _may_send(self, pkt: Packet) -> bool:
        """Never about a group, a later fragment, an ICMP error, or a source that is no host."""
        if pkt.l2_type != HOST or is_group(pkt) or pkt.fragment == LATER_FRAGMENT:
            return False
        if pkt.saddr_hi == 0 and pkt.saddr == 0:
            return False
        if pkt.proto == (_ICMP if pkt.af == 4 else _ICMPV6):
            # A redirect is no error about a conn's packet, but none may be sent about one (RFC 1122
            # 3.2.2, RFC 4443 2.4 e).
            redirect = 5 if pkt.af == 4 else 137
            return pkt.fragment == 0 and not icmp.is_error(pkt) and pkt.icmp_type != redirect
        return True

    def _source(self, pkt: Packet) -> tuple[int, int] | None:
        """The address the packet was sent to if it is ours, else ours on the interface that it came
        in by.
        """
        if self.addresses.is_local(pkt.daddr_hi, pkt.daddr):
            return pkt.daddr_hi, pkt.daddr
        return self.addresses.primary(pkt.iif, pkt.af)
