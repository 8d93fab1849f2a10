"""A packet of no conn: what decides whether it opens one, towards which dest, and its first steps
(DPVS: dp_vs_schedule).
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.hook import Verdict
from tunlb.ipvs.conn import D_DEST, D_TIMEOUT, H_FLAGS, INBOUND, OUTBOUND, RESUMED
from tunlb.ipvs.dest import CONNS, Dest
from tunlb.ipvs.life import Life
from tunlb.ipvs.matches import MatchTable
from tunlb.ipvs.persist import ELSEWHERE, Persistence
from tunlb.ipvs.persist import NO_DEST as NO_TEMPLATE
from tunlb.ipvs.protocol import Protocol
from tunlb.ipvs.rates import ConnRates
from tunlb.ipvs.service import Service, ServiceTable
from tunlb.ipvs.synpolicy import SynPolicy
from tunlb.ipvs.synproxy import SynProxy
from tunlb.ipvs.transmit import Transmit
from tunlb.netif import VIP, Addresses
from tunlb.packet import IPPROTO_TCP, IPPROTO_UDP, NOT_ASKED, Packet
from tunlb.wire.icmp import ERR_HOST_UNREACHABLE, ERR_PORT_UNREACHABLE, ERR_TIME_EXCEEDED

if cython.compiled:
    from cython.cimports.tunlb.ipvs import client_address, ops, resets
    from cython.cimports.tunlb.wire import icmp
else:
    from tunlb.ipvs import client_address, ops, resets
    from tunlb.wire import icmp

_GO_ON = cython.declare(cython.int, -2)
_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_DROP = cython.declare(cython.int, Verdict.DROP)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_NO_TEMPLATE = cython.declare(cython.int, NO_TEMPLATE)
_ELSEWHERE = cython.declare(cython.int, ELSEWHERE)
_TCP = cython.declare(cython.int, IPPROTO_TCP)
_NOT_ASKED = cython.declare(cython.int, NOT_ASKED)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_INBOUND = cython.declare(cython.int, INBOUND)
_OUTBOUND = cython.declare(cython.int, OUTBOUND)
_TTL_EXCEEDED = cython.declare(cython.int, DropReason.TTL_EXCEEDED)
_SYNPROXY_COOKIE = cython.declare(cython.int, DropReason.SYNPROXY_COOKIE)
_VIP = cython.declare(cython.int, VIP)
_TCP_UNKNOWN_PORT = cython.declare(cython.int, DropReason.TCP_UNKNOWN_PORT)
_RATE = cython.declare(cython.int, DropReason.CONN_RATE)
_UDP_TO_TCP_VIP = cython.declare(cython.int, DropReason.UDP_TO_TCP_VIP)
_NO_DEST = cython.declare(cython.int, DropReason.NO_DEST)
_SERVICE_FULL = cython.declare(cython.int, DropReason.SERVICE_FULL)
_MARTIAN = cython.declare(cython.int, DropReason.MARTIAN)
_ERR_TTL = cython.declare(cython.int, ERR_TIME_EXCEEDED)
_ERR_HOST = cython.declare(cython.int, ERR_HOST_UNREACHABLE)
_ERR_PORT = cython.declare(cython.int, ERR_PORT_UNREACHABLE)
_SYNPROXY_ON = cython.declare(cython.int, Event.SYNPROXY_ON)
_CONN_BYPASSED = cython.declare(cython.int, Event.CONN_BYPASSED)
_CONN_NEW = cython.declare(cython.int, Event.CONN_NEW)
_CONN_RESUMED = cython.declare(cython.int, Event.CONN_RESUMED)
_RESUMED = cython.declare(cython.int, RESUMED)
_DEST_CONNS = cython.declare(cython.int, CONNS)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_D_TIMEOUT = cython.declare(cython.longlong, D_TIMEOUT)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)


class Birth:
    """Services, and how a conn of theirs comes into being."""

    def __init__(
        self,
        counters: Counters,
        life: Life,
        transmit: Transmit,
        addresses: Addresses,
        synproxy: SynProxy,
        persistence: Persistence,
        rates: memoryview | None = None,
    ) -> None:
        self.counters = counters
        self.life = life
        self.transmit = transmit
        self.addresses = addresses
        self.synproxy = synproxy
        self.persistence = persistence
        self.services = ServiceTable()
        self.matches: MatchTable | None = None
        self.quiescent = False  # take no new conns: tunlb is about to stop
        self.rates = ConnRates(counters, life.conns, rates)
        self.defence_tcp = False  # drop in silence what no service of a VIP takes
        self.defence_udp = True

    def schedule(self, pkt: Packet, protocol: Protocol, now: cython.longlong) -> cython.int:
        """A packet of no conn: find its service, pick a dest, make the conn, send it on."""
        service: Service | None = self.services.lookup(
            pkt.proto, pkt.daddr_hi, pkt.daddr, pkt.dport
        )
        if (
            service is None
            and self.services.any_fallback
            and (protocol.resumes(pkt) or pkt.proto == _UDP)
        ):
            # Before any match, which would take what a dest goes on with for something new.
            if self._from_dest(pkt, protocol, now) != _ACCEPT:
                return _DROP
            if pkt.neigh != 0:
                return _ACCEPT
        if service is None:
            service = self.matching(pkt)
        if service is None:
            if pkt.proto == _TCP and self.defence_tcp:
                if self.addresses.kind(pkt.daddr_hi, pkt.daddr) == _VIP:
                    return pkt.drop(_TCP_UNKNOWN_PORT)
            if (
                pkt.proto == _UDP
                and self.defence_udp
                and self.services.vip_has(_TCP, pkt.daddr_hi, pkt.daddr)
                and not self.services.vip_has(_UDP, pkt.daddr_hi, pkt.daddr)
                and not self.addresses.hosted(pkt.daddr_hi, pkt.daddr)
            ):
                return pkt.drop(_UDP_TO_TCP_VIP)
            return _ACCEPT
        if protocol.opens(pkt):
            return self._open(pkt, service, protocol, now, -1, False)
        if service.synproxy is not None and service.synproxy.accepts(now):
            return self._proven(pkt, service, service.synproxy, protocol, now)
        if not (service.fallback and protocol.resumes(pkt)):
            return pkt.drop(protocol.refusal)
        return self._open(pkt, service, protocol, now, -1, True)

    def matching(self, pkt: Packet) -> Service | None:
        """The service without a vaddr that takes a packet like this, which none with one does."""
        if self.matches is None:
            return None
        return self.matches.find(
            self.addresses,
            self.transmit.routes,
            pkt.iif,
            pkt.af,
            pkt.proto,
            pkt.saddr_hi,
            pkt.saddr,
            pkt.sport,
            pkt.daddr_hi,
            pkt.daddr,
            pkt.dport,
        )

    def _proven(
        self,
        pkt: Packet,
        service: Service,
        policy: SynPolicy,
        protocol: Protocol,
        now: cython.longlong,
    ) -> cython.int:
        """A segment of no conn to a SYN proxy opens one if it brings a good cookie back."""
        cookie: cython.int = self.synproxy.check(pkt, policy, now)
        if cookie < 0 and service.fallback and protocol.resumes(pkt):
            return self._open(pkt, service, protocol, now, -1, True)
        if cookie < 0:
            return pkt.drop(_SYNPROXY_COOKIE)
        verdict: cython.int = self._open(pkt, service, protocol, now, cookie, False)
        if verdict == _DROP:
            pkt.err_type = -1  # an ICMP error does not end what the client takes for a conn
            self.synproxy.refuse(pkt, now)
        return verdict

    def _open(
        self,
        pkt: Packet,
        service: Service,
        protocol: Protocol,
        now: cython.longlong,
        cookie: cython.int,
        resumed: cython.bint,
    ) -> cython.int:
        """Schedule what opens a conn: a SYN, a segment in which the SYN proxy found a ``cookie``
        (>= 0), or one of a conn that the fallback goes on with (``resumed``).
        """
        verdict: cython.int = self._stopped(pkt, service, cookie, resumed, now)
        if verdict != _GO_ON:
            return verdict
        template: cython.longlong = -1
        dest: Dest | None = None
        row: cython.longlong = -1
        if service.persistence_ms != 0 and not resumed and not self.quiescent:
            template = self.persistence.template(pkt, service, self.addresses, now)
            if template >= 0:
                dest = self.life.dests[self.life.conns.d[template * 32 + _D_DEST]]
            elif template != _NO_TEMPLATE:
                return _STOLEN if template == _ELSEWHERE else _DROP
        elif resumed or not self.quiescent:
            dest = service.scheduler.schedule(pkt, now)
        if dest is not None:
            if service.ops and pkt.fragment == 0:
                return ops.forward(pkt, self.life, self.transmit, service, dest, now)
            row = self.life.new(pkt, service, dest, now)
            if row < 0 and template >= 0:
                self.persistence.let_go(template)
                template = -1
        if row < 0 and service.bypass is not None and not self.quiescent:
            dest = service.bypass
            row = self.life.new(pkt, service, dest, now)
            if row >= 0:
                self.counters.add(_CONN_BYPASSED, 1)
        if dest is None:
            return icmp.refuse(pkt, _NO_DEST, _ERR_PORT, 0)
        if row < 0:
            # An inside host has no other way out than this one (RFC 6888, REQ-8).
            return icmp.refuse(pkt, pkt.reason, _ERR_HOST, 0) if service.snat else _DROP
        if template >= 0:
            self.persistence.hold(row, template)
        if service.remembers:
            resets.remember(self.life.conns, row)
        if self.transmit.admit(pkt, row, _INBOUND, now) != 0:
            self.life.end(row)
            return _DROP
        if service.telling.what != 0 and not resumed:
            told: cython.int = service.telling.of(pkt.saddr_hi, pkt.saddr)
            if told != 0:
                client_address.arm(self.life.conns, row, told)
        dest.v[_DEST_CONNS] += 1
        self.counters.add(_CONN_RESUMED if resumed else _CONN_NEW, 1)
        policy: SynPolicy | None = service.synproxy
        if cookie >= 0 and policy is not None:
            return self.synproxy.begin(pkt, row, policy, cookie, dest, now)
        if resumed:
            self._resume(protocol, row, dest, now)
        self.transmit.track(pkt, protocol, row, _INBOUND, dest, now)
        self.life.timers.schedule(row, now, self.life.conns.d[row * 32 + _D_TIMEOUT])
        return self.transmit.send(pkt, row, _INBOUND, dest, now)

    def _stopped(
        self,
        pkt: Packet,
        service: Service,
        cookie: cython.int,
        resumed: cython.bint,
        now: cython.longlong,
    ) -> cython.int:
        """The verdict on what may not open a conn, or not yet; see _open(). Else GO_ON."""
        if self.forged(pkt):
            # Replies to such a client would come back to us: checked here once, so that packets of
            # conns need not be.
            return pkt.drop(_MARTIAN)
        if pkt.ttl <= 1:
            return icmp.refuse(pkt, _TTL_EXCEEDED, _ERR_TTL, 0)
        policy: SynPolicy | None = service.synproxy
        if cookie < 0 and not resumed and policy is not None and not self.quiescent:
            before: cython.bint = policy.on
            if policy.engaged(service.half_open.total()):
                if policy.on and not before:
                    self.counters.add(_SYNPROXY_ON, 1)
                return self.synproxy.first(pkt, policy, now)
        if (
            service.conn_rate != 0
            and not resumed
            # else it was counted before another worker was asked
            and (not pkt.handed or pkt.chosen == _NOT_ASKED)
            and not self.rates.take(pkt, service, now)
        ):
            return pkt.drop(_RATE)
        if service.max_conn != 0 and service.carried.total() >= service.max_conn and not resumed:
            return icmp.refuse(pkt, _SERVICE_FULL, _ERR_PORT, 0)
        return _GO_ON

    def _from_dest(self, pkt: Packet, protocol: Protocol, now: cython.longlong) -> cython.int:
        """A dest of a nat service speaks to a client, and we know of no conn: it answers what was
        scheduled alone (see ops.py), or goes on with a conn that another director knew, if the
        client's packets would come to this dest here as well. ACCEPT with no ``neigh`` when not.
        """
        service: Service | None
        dest: Dest | None
        service, dest = self.services.dest_of(pkt.proto, pkt.saddr_hi, pkt.saddr, pkt.sport)
        if service is None or dest is None or service.vaddr is None:
            return _ACCEPT
        if service.ops and pkt.fragment == 0:
            return ops.answer(pkt, self.life, self.transmit, service, dest, now)
        daddr_hi: cython.ulonglong = pkt.saddr_hi
        daddr: cython.ulonglong = pkt.saddr
        dport: cython.uint = pkt.sport
        # As the client's own packet would look.
        pkt.saddr_hi = pkt.daddr_hi
        pkt.saddr = pkt.daddr
        pkt.sport = pkt.dport
        pkt.daddr_hi, pkt.daddr = service.vaddr
        pkt.dport = service.first_port if dest.dport != 0 else dport
        row: cython.longlong = -1
        ours: cython.bint = service.ops or service.scheduler.schedule(pkt, now) is dest
        if ours:
            row = self.life.new(pkt, service, dest, now)
        pkt.daddr_hi = pkt.saddr_hi
        pkt.daddr = pkt.saddr
        pkt.dport = pkt.sport
        pkt.saddr_hi = daddr_hi
        pkt.saddr = daddr
        pkt.sport = dport
        if not ours:
            return _ACCEPT
        if row < 0:
            return _DROP
        if service.remembers:
            resets.remember(self.life.conns, row)
        if self.transmit.admit(pkt, row, _OUTBOUND, now) != 0:
            self.life.end(row)
            return _DROP
        dest.v[_DEST_CONNS] += 1
        self.counters.add(_CONN_NEW if service.ops else _CONN_RESUMED, 1)
        self._resume(protocol, row, dest, now)
        self.transmit.track(pkt, protocol, row, _OUTBOUND, dest, now)
        self.life.timers.schedule(row, now, self.life.conns.d[row * 32 + _D_TIMEOUT])
        return self.transmit.send(pkt, row, _OUTBOUND, dest, now)

    def _resume(
        self, protocol: Protocol, row: cython.longlong, dest: Dest, now: cython.longlong
    ) -> None:
        """It is established, for all that one packet says, which anybody can send: Life.evict takes
        it before any other until both sides have spoken.
        """
        self.transmit.set_state(protocol, row, protocol.resumed, dest, now)
        self.life.conns.h[row * 64 + _H_FLAGS] |= _RESUMED

    def forged(self, pkt: Packet) -> cython.bint:
        """Is the source nobody's, or one of our own addresses?"""
        if pkt.saddr_hi == 0 and pkt.saddr == 0:
            return True
        return self.addresses.is_local(pkt.saddr_hi, pkt.saddr)
