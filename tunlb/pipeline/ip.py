"""IP input, the routing decision, local input, forwarding and output, IPv4 and IPv6 alike (DPVS:
src/ipv4.c).

Each stage returns a verdict: ACCEPT (write the packet to ``oif``), STOLEN, or DROP with a reason. A
stage that wants the sender told leaves an ICMP error on the packet; the one who counts the drop
sends it.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.hook import Hook, Point, Verdict
from tunlb.neigh import NeighTable
from tunlb.netif import Addresses, Netif
from tunlb.packet import (
    HOST,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    Packet,
)
from tunlb.pipeline.guard import LoopGuard
from tunlb.pipeline.hooks import Chain, ErrorHandler
from tunlb.route import Route, RouteTable
from tunlb.wire.icmp import (
    ERR_NET_UNREACHABLE,
    ERR_PORT_UNREACHABLE,
    ERR_TIME_EXCEEDED,
    ERR_TOO_BIG,
)

if cython.compiled:
    from cython.cimports.tunlb.pipeline import host
    from cython.cimports.tunlb.wire import icmp, ipv4, ipv6, sctp, tcp, udp, vnet
else:
    from tunlb.pipeline import host
    from tunlb.wire import icmp, ipv4, ipv6, sctp, tcp, udp, vnet

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_HOST = cython.declare(cython.int, HOST)
_ETH_P_IP = cython.declare(cython.int, 0x0800)
_ETH_P_IPV6 = cython.declare(cython.int, 0x86DD)
_TCP = cython.declare(cython.int, IPPROTO_TCP)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_SCTP = cython.declare(cython.int, IPPROTO_SCTP)
_ICMP = cython.declare(cython.int, IPPROTO_ICMP)
_ICMPV6 = cython.declare(cython.int, IPPROTO_ICMPV6)
_LOOP = cython.declare(cython.int, DropReason.LOOP)
_LAND = cython.declare(cython.int, DropReason.LAND)
_MARTIAN = cython.declare(cython.int, DropReason.MARTIAN)
_FRAGMENT = cython.declare(cython.int, DropReason.FRAGMENT)
_TTL_EXCEEDED = cython.declare(cython.int, DropReason.TTL_EXCEEDED)
_MTU_EXCEEDED = cython.declare(cython.int, DropReason.MTU_EXCEEDED)
_NO_ROUTE = cython.declare(cython.int, DropReason.NO_ROUTE)
_NOT_FORWARDED = cython.declare(cython.int, DropReason.NOT_FORWARDED)
_PORT_UNREACHABLE = cython.declare(cython.int, DropReason.PORT_UNREACHABLE)
_ICMP_INVALID = cython.declare(cython.int, DropReason.ICMP_INVALID)
_ICMP_IGNORED = cython.declare(cython.int, DropReason.ICMP_IGNORED)
_NEIGH_TABLE_FULL = cython.declare(cython.int, DropReason.NEIGH_TABLE_FULL)
_ERR_TTL = cython.declare(cython.int, ERR_TIME_EXCEEDED)
_ERR_PORT = cython.declare(cython.int, ERR_PORT_UNREACHABLE)
_ERR_NET = cython.declare(cython.int, ERR_NET_UNREACHABLE)
_ERR_MTU = cython.declare(cython.int, ERR_TOO_BIG)
_ECHO_REPLIES = cython.declare(cython.int, Event.ICMP_ECHO_REPLIES)
_FORWARDED = cython.declare(cython.int, Event.FORWARDED)
_LOOP_REROUTED = cython.declare(cython.int, Event.LOOP_REROUTED)
_LOOP_RETURNED = cython.declare(cython.int, Event.LOOP_RETURNED)


class Ip:
    """The network layer of one worker."""

    def __init__(
        self,
        counters: Counters,
        addresses: Addresses,
        routes: RouteTable,
        neighs: NeighTable,
        on_error: ErrorHandler,
    ) -> None:
        self.counters = counters
        self.addresses = addresses
        self.routes = routes
        self.neighs = neighs
        self.guard = LoopGuard()
        self.pre_routing = Chain(counters, on_error)
        self.local_in_chain = Chain(counters, on_error)
        self.forward_chain = Chain(counters, on_error)
        self.local_out_chain = Chain(counters, on_error)
        self.post_routing = Chain(counters, on_error)

    def chain(self, point: Point) -> Chain:
        return (
            self.pre_routing,
            self.local_in_chain,
            self.forward_chain,
            self.local_out_chain,
            self.post_routing,
        )[point]

    # -- input

    def rcv(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Everything that is checked once, then PRE_ROUTING, then :meth:`rcv_fin`."""
        reason: cython.int = ipv4.parse(pkt) if pkt.ether_type == _ETH_P_IP else ipv6.parse(pkt)
        if reason == 0 and pkt.fragment == 0:
            reason = self._parse_transport(pkt)
        if reason != 0:
            return pkt.drop(reason)
        if self.guard.seen(pkt, now):
            # On a TUN the kernel routed our own packet back (class A); on a TAP another station did
            # (class D).
            self.counters.add(_LOOP_REROUTED if pkt.iif.tun else _LOOP_RETURNED, 1)
            return pkt.drop(_LOOP)
        if pkt.saddr == pkt.daddr and pkt.saddr_hi == pkt.daddr_hi:
            return pkt.drop(_LAND)
        verdict: cython.int = self.pre_routing.run(pkt, now)
        if verdict != _ACCEPT:
            return verdict
        return self.rcv_fin(pkt, now)

    def _parse_transport(self, pkt: Packet) -> cython.int:
        reason: cython.int = 0
        if pkt.proto == _TCP:
            reason = tcp.parse(pkt)
        elif pkt.proto == _UDP:
            reason = udp.parse(pkt)
        elif pkt.proto == (_ICMP if pkt.af == 4 else _ICMPV6):
            reason = icmp.parse(pkt)
        elif pkt.proto == _SCTP:
            reason = sctp.parse(pkt)
        if reason != 0:
            return reason
        return vnet.check(pkt)

    def reread(self, pkt: Packet) -> cython.int:
        """Parse again what a stage put by after :meth:`rcv` had checked it; 0 or a DropReason."""
        v6: cython.bint = pkt.p[pkt.l3] >> 4 == 6
        pkt.ether_type = _ETH_P_IPV6 if v6 else _ETH_P_IP
        pkt.l2_type = _HOST
        return ipv6.parse(pkt) if v6 else ipv4.parse(pkt)

    def rcv_fin(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """PRE_ROUTING's okfn: a hook decided, or it is for us, or it is routed."""
        if pkt.neigh != 0:
            return self.output(pkt, now)
        if (
            pkt.af == 6
            and pkt.proto == _ICMPV6
            and pkt.fragment == 0
            and 135 <= pkt.icmp_type <= 136
        ):
            return self._nd(pkt, now)
        if pkt.l2_type != _HOST or is_group(pkt):
            return self._stays(pkt)
        if pkt.saddr_hi == 0 and pkt.saddr == 0:
            return pkt.drop(_MARTIAN)
        if self.addresses.is_local(pkt.saddr_hi, pkt.saddr):
            return pkt.drop(_MARTIAN)
        if self.addresses.is_local(pkt.daddr_hi, pkt.daddr):
            return self.local_in(pkt, now)
        return self.forward(pkt, now)

    def _nd(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Ours; the host sees it as well, but for solicitations that were answered."""
        netif: Netif = pkt.iif
        verdict: cython.int = self.neighs.nd_input(pkt, now)
        if netif.host is None or verdict != _STOLEN or pkt.owner >= 0:
            return verdict
        if pkt.icmp_type == 135 and self.addresses.owned_by(
            netif, pkt.be64(pkt.l4 + 8), pkt.be64(pkt.l4 + 16)
        ):
            return verdict
        return host.pass_on(pkt, self.counters)

    def _stays(self, pkt: Packet) -> cython.int:
        """What does not leave its link may be for the host."""
        if pkt.iif.host is not None:
            return host.pass_on(pkt, self.counters)
        return pkt.drop(_NOT_FORWARDED)

    def local_in(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Addressed to us and no service took it: the host's, where it has that address; else
        answer pings, refuse the rest.
        """
        verdict: cython.int = self.local_in_chain.run(pkt, now)
        if verdict != _ACCEPT:
            return verdict
        if pkt.iif.host is not None and self.addresses.hosted(pkt.daddr_hi, pkt.daddr):
            return host.pass_on(pkt, self.counters)
        if pkt.fragment != 0:
            return pkt.drop(_FRAGMENT)
        if pkt.proto == (_ICMP if pkt.af == 4 else _ICMPV6):
            if icmp.verify(pkt) != 0:
                return pkt.drop(_ICMP_INVALID)
            if pkt.icmp_type == (8 if pkt.af == 4 else 128):
                return self._echo(pkt, now)
            return pkt.drop(_ICMP_IGNORED)
        return icmp.refuse(pkt, _PORT_UNREACHABLE, _ERR_PORT, 0)

    def _echo(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Turn an echo request into its reply, in place (RFC 792, RFC 4443 section 4.2)."""
        saddr_hi: cython.ulonglong = pkt.saddr_hi
        saddr: cython.ulonglong = pkt.saddr
        pkt.saddr_hi = pkt.daddr_hi
        pkt.saddr = pkt.daddr
        pkt.daddr_hi = saddr_hi
        pkt.daddr = saddr
        message: bytes = bytes(pkt.mem[pkt.l4 : pkt.end])
        tos: cython.int = pkt.p[pkt.l3 + 1]
        if pkt.af == 4:
            ipv4.build(pkt, _ICMP, len(message), tos)
        else:
            ipv6.build(pkt, _ICMPV6, len(message), 64)
        pkt.mem[pkt.l4 : pkt.end] = message
        pkt.p[pkt.l4] = 0 if pkt.af == 4 else 129
        pkt.csum_start = 0
        pkt.gso_type = 0
        icmp.seal(pkt)
        self.counters.add(_ECHO_REPLIES, 1)
        return self.local_out(pkt, now)

    # -- forwarding and output

    def forward(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Route a packet that no service took; the TTL goes down (loop protection, layer b)."""
        if is_link_local(pkt) or (pkt.daddr_hi == 0 and self.routes.is_broadcast(pkt.daddr)):
            return self._stays(pkt)
        route: Route | None
        if pkt.iif.host is not None:
            route = self.routes.lookup(pkt.daddr_hi, pkt.daddr)
            if route is not None and route.on_link and route.netif is pkt.iif:
                # Its sender is on that link as well, and believes that we have the address: the
                # host may (keepalived gives it some that we do not know).
                self.guard.wrote(pkt, now)
                return host.pass_on(pkt, self.counters)
        if pkt.ttl <= 1:
            return icmp.refuse(pkt, _TTL_EXCEEDED, _ERR_TTL, 0)
        route = self.routes.lookup(pkt.daddr_hi, pkt.daddr)
        if route is None:
            return icmp.refuse(pkt, _NO_ROUTE, _ERR_NET, 0)
        if pkt.wire_length() > route.mtu:
            return icmp.refuse(pkt, _MTU_EXCEEDED, _ERR_MTU, route.mtu)
        verdict: cython.int = self.forward_chain.run(pkt, now)
        if verdict != _ACCEPT:
            return verdict
        if not self._nexthop(pkt, route, now):
            return pkt.drop(_NEIGH_TABLE_FULL)
        if pkt.af == 4:
            ipv4.decrement_ttl(pkt)
        else:
            ipv6.decrement_hop_limit(pkt)
        self.counters.add(_FORWARDED, 1)
        return self.output(pkt, now)

    def local_out(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Send a packet of our own: LOCAL_OUT, route, output."""
        verdict: cython.int = self.local_out_chain.run(pkt, now)
        if verdict != _ACCEPT:
            return verdict
        route: Route | None = self.routes.lookup(pkt.daddr_hi, pkt.daddr)
        if route is None:
            return pkt.drop(_NO_ROUTE)
        if pkt.wire_length() > route.mtu:
            return pkt.drop(_MTU_EXCEEDED)  # we do not fragment, and have nobody to tell
        if not self._nexthop(pkt, route, now):
            return pkt.drop(_NEIGH_TABLE_FULL)
        return self.output(pkt, now)

    def _nexthop(self, pkt: Packet, route: Route, now: cython.longlong) -> cython.bint:
        if route.on_link:
            pkt.neigh = self.neighs.resolve(route.netif, pkt.daddr_hi, pkt.daddr, now)
        else:
            pkt.neigh = self.neighs.resolve(route.netif, route.via_hi, route.via, now)
        return pkt.neigh != 0

    def resume(self, pkt: Packet, hook: Hook, now: cython.longlong) -> cython.int:
        """Go on with a segment of a packet that ``hook`` stole at PRE_ROUTING, and gave a neigh."""
        rest: Chain | None = self.pre_routing.behind(hook)
        if rest is not None:
            verdict: cython.int = rest.run(pkt, now)
            if verdict != _ACCEPT:
                return verdict
        return self.output(pkt, now)

    def output(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """POST_ROUTING, then the neighbour's L2 header."""
        verdict: cython.int = self.post_routing.run(pkt, now)
        if verdict != _ACCEPT:
            return verdict
        self.guard.wrote(pkt, now)
        pkt.ether_type = _ETH_P_IP if pkt.af == 4 else _ETH_P_IPV6
        return self.neighs.output(pkt, now)


def is_group(pkt: Packet) -> cython.bint:
    """Is the destination a multicast or limited broadcast address?"""
    if pkt.af == 4:
        return (pkt.daddr >> 24) & 0xFF >= 224
    return pkt.daddr_hi >> 56 == 0xFF


def is_link_local(pkt: Packet) -> cython.bint:
    """Is either address bound to its link (169.254/16, fe80::/10)?"""
    if pkt.af == 4:
        return (pkt.saddr >> 16) & 0xFFFF == 0xA9FE or (pkt.daddr >> 16) & 0xFFFF == 0xA9FE
    return pkt.saddr_hi >> 54 == 0x3FA or pkt.daddr_hi >> 54 == 0x3FA
