"""The services and dests of a director, and how those of a new configuration take their place.

A :class:`Draft` is drawn up beside what packets use, piece by piece, and changes nothing of it.
:meth:`Catalog.adopt` then puts it in place at once: no packet sees a part of it. What a new
configuration leaves as it was keeps its objects, so a reload costs what it changes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import cython
import msgspec

from tunlb.conf import Config, IPNetwork, PortRange
from tunlb.conf import Dest as DestConf
from tunlb.conf import Service as ServiceConf
from tunlb.conf.match import Match as MatchConf
from tunlb.counters import Event
from tunlb.destids import DestIds, DestKey, dest_key, service_key
from tunlb.ipvs import client_address
from tunlb.ipvs.core import Ipvs
from tunlb.ipvs.dest import (
    CARRIED,
    FWD_BYPASS,
    FWD_FNAT,
    FWD_LOCAL,
    FWD_NAT64,
    HALF_OPEN,
    KEEP,
    NO_DEST,
    POLICIES,
    STATS_SIZE,
    STATS_WORDS,
    TEMPLATES,
    Dest,
)
from tunlb.ipvs.far import FarEnd
from tunlb.ipvs.match import Match, Prefix, Prefixes
from tunlb.ipvs.matches import MatchTable
from tunlb.ipvs.mss import AUTO as MSS_AUTO
from tunlb.ipvs.nat64 import HEADERS_DIFFER
from tunlb.ipvs.protocol import Protocol
from tunlb.ipvs.ramp import Ramp, Ramps, weights
from tunlb.ipvs.sched import find as find_scheduler
from tunlb.ipvs.scheduler import Scheduler
from tunlb.ipvs.service import Service, ServiceTable
from tunlb.ipvs.synpolicy import SynPolicy
from tunlb.ipvs.tally import Others, Tally
from tunlb.ipvs.telling import Telling
from tunlb.ipvs.xmit import find as find_mode
from tunlb.ipvs.xmit import names as mode_names
from tunlb.netif import Key
from tunlb.pipeline.hooks import ErrorHandler
from tunlb.wire.encap import KINDS
from tunlb.wire.tcp_options import NO_WSCALE
from tunlb.wiring import pair

PIECE = 32  #: dests looked at in one piece of work


def _prefixes(networks: Iterable[IPNetwork]) -> Prefixes:
    return Prefixes(
        [
            Prefix(*pair(net.network_address), net.prefixlen + (96 if net.version == 4 else 0))
            for net in networks
        ]
    )


def _both_ends(ports: PortRange | None) -> tuple[int, int]:
    return (0, 65535) if ports is None else (ports.first, ports.last)


def _match(line: MatchConf) -> Match:
    return Match(
        _prefixes(line.src),
        _prefixes(line.dst),
        _both_ends(line.sport),
        _both_ends(line.dport),
        line.iport or "",
        line.oport or "",
    )


def _syn_policy(line: ServiceConf) -> SynPolicy:
    policy = SynPolicy(
        line.synproxy_above,
        line.synproxy_mss or 0,
        line.synproxy_wscale or NO_WSCALE,
        line.synproxy_sack,
        line.synproxy_timestamps,
    )
    if line.mss_clamp is not False and line.mss_clamp is not True:
        policy.most = line.mss_clamp
    if line.client_ip == "toa":
        policy.less = 8 if line.version == 4 else 20
    if line.version == 4 and any(dest.daddr.version == 6 for dest in line.dests):
        policy.less += HEADERS_DIFFER
    return policy


def _same(one: ServiceConf, other: ServiceConf) -> Generator[None, None, bool]:
    if msgspec.structs.replace(one, dests=other.dests) != other:
        return False
    if len(one.dests) != len(other.dests):
        return False
    for at in range(0, len(one.dests), PIECE):
        if one.dests[at : at + PIECE] != other.dests[at : at + PIECE]:
            return False
        yield
    return True


def far_end(line: ServiceConf, dest: DestConf) -> FarEnd | None:
    if dest.fwdmode != "tunnel":
        return None
    keys = dest.tunnel
    wanted = (0, 0) if keys.src is None else pair(keys.src)
    kind = KINDS.index(keys.type)
    versions = dest.daddr.version, line.version
    return FarEnd(kind, *versions, keys.port, keys.csum, wanted)


class Setting(NamedTuple):
    """Of a dest; ``since`` is when its slow start began, -1: it has none (see ipvs/ramp.py)."""

    weight: int
    fwdmode: int
    max_conn: int
    min_conn: int
    since: int


class Change:
    """A service that is new or differs: ``settings`` are those of its ``dests``, ``weights`` what
    their schedulers see at first; ``old`` is the service of that name until now. ``bypass`` see
    Service.
    """

    def __init__(self, service: Service, old: Service | None) -> None:
        self.service = service
        self.old = old
        self.dests: list[Dest] = []
        self.bypass: Dest | None = None
        self.settings: list[Setting] = []
        self.weights: list[int] = []
        self.ends: list[FarEnd | None] = []  # of those that a tunnel reaches


class Draft:
    """What :meth:`Catalog.adopt` puts in place.

    ``now`` is when drains begin. ``late`` are new dests whose number another one has that drained
    and is not forgotten yet. ``gone`` are the dests that the configuration has no more, with the ms
    that their conns may live on.
    """

    def __init__(self, now: int) -> None:
        self.now = now
        self.table = ServiceTable()
        self.matches: MatchTable | None = None
        self.lines: dict[str, ServiceConf] = {}
        self.services: dict[str, Service] = {}
        self.changes: list[Change] = []
        self.late: list[Dest] = []
        self.gone: list[tuple[DestKey, Dest, int]] = []


class Catalog:
    """``services`` and ``lines`` are what runs, by name; ``dests`` also has those that drain."""

    def __init__(
        self,
        ipvs: Ipvs,
        protocols: Mapping[str, Protocol],
        seed: int,
        dest_stats: memoryview | None,
        fleet: Sequence[memoryview],
        on_error: ErrorHandler,
    ) -> None:
        self.services: dict[str, Service] = {}
        self.lines: dict[str, ServiceConf] = {}
        self.dests: dict[DestKey, Dest] = {}
        self.ids = DestIds()
        self._ipvs = ipvs
        self._protocols = protocols
        self._seed = seed
        self._dest_stats = dest_stats
        self._first = fleet[0] if fleet else dest_stats
        self._others: Others | None = None
        if ipvs.sharding is not None and fleet:
            own = ipvs.sharding.worker
            self._others = Others([rows for i, rows in enumerate(fleet) if i != own])
        self._on_error = on_error
        self._modes = {name: find_mode(name).number for name in mode_names()}
        self._timeouts: object = None
        self._draining: dict[DestKey, Dest] = {}
        self.ramps = Ramps()
        self._tallies: dict[tuple[str, int, int], Tally] = {}  # by service, protocol, word
        self._unpublished = False
        self.lapsing = False  # there may be something for Lapse.sweep

    def draw_up(self, draft: Draft, config: Config, ids: Mapping[DestKey, int]) -> Iterator[None]:
        """Fill ``draft`` with what ``config`` means, a service at a time. ``ids``: see DestIds."""
        same_timeouts = config.timeouts == self._timeouts
        host_side = {pair(a.ip) for port in config.ports for a in port.host_addresses}
        for line in config.services:
            known = self.lines.get(line.name)
            same = False
            if known is not None and same_timeouts:
                same = yield from _same(known, line)
            if known is not None and same:
                draft.lines[line.name] = known
                service = self.services[line.name]
                yield from self._index_dests(draft, service, line, service.dests)
            else:
                draft.lines[line.name] = line
                change = self._change(config, line, ids)
                yield
                yield from self._draw_dests(draft, change, line, ids)
                service = change.service
                yield from self._index_dests(draft, service, line, change.dests)
                if known is not None:
                    self._miss_dests(draft, known, change)
            draft.services[line.name] = service
            draft.table.add(service)
            if service.match is not None:
                draft.matches = draft.matches or MatchTable(host_side)
                draft.matches.services.append(service)
            yield
        for name, line in self.lines.items():
            if name not in draft.lines:
                self._miss_dests(draft, line, None)
                yield

    def _change(self, config: Config, line: ServiceConf, ids: Mapping[DestKey, int]) -> Change:
        """A new Service; it keeps the old one's scheduler where it can."""
        old = self.services.get(line.name)
        cls = find_scheduler(line.scheduler)
        scheduler = (
            old.scheduler
            if old is not None
            and type(old.scheduler) is cls
            and old.scheduler.table_size == line.mh_table_size
            else cls(self._seed, line.mh_table_size)
        )
        v6_ping = line.proto == "icmp" and line.version == 6
        protocol = self._protocols["icmpv6" if v6_ping else line.proto]
        service = Service(
            line.name,
            line.version,
            protocol.number,
            None if line.vaddr is None else pair(line.vaddr),
            line.vport.first,
            line.vport.last,
            scheduler,
            protocol.timeouts(config.timeouts_ms(line)),
            tuple(pair(address) for address in line.laddrs_expanded),
            round(line.drain_s * 1000),
            None if line.match is None else _match(line.match),
        )
        service.snat = line.fwdmode == "snat"
        service.telling = Telling(
            client_address.how(line.client_ip, line.client_ip_udp),
            _prefixes(line.client_ip_trust) if line.client_ip_trust else None,
        )
        service.fallback = line.fallback
        if line.mss_clamp is not False:
            service.mss_clamp = MSS_AUTO if line.mss_clamp is True else line.mss_clamp
        if line.synproxy:
            service.synproxy = _syn_policy(line)
        self._set_policies(service, line)
        key = service_key(line)
        if key is not None and line.max_conn:
            service.carried = self._tally(ids[key], CARRIED)
        if key is not None and line.synproxy_above:
            service.half_open = self._tally(ids[key], HALF_OPEN)
        service.conn_rate = line.conn_rate
        service.conn_burst = line.conn_burst
        return Change(service, old)

    def _set_policies(self, service: Service, line: ServiceConf) -> None:
        service.persistence_ms = round(line.persistence_s * 1000)
        if line.persistence_mask is not None:
            length = line.persistence_mask + (96 if service.af == 4 else 0)
            mask = (1 << 128) - (1 << (128 - length))
            service.mask_hi, service.mask = mask >> 64, mask & 0xFFFF_FFFF_FFFF_FFFF
        service.ops = line.ops
        service.max_conn = line.max_conn
        service.expire_nodest = POLICIES[line.expire_nodest]
        service.expire_quiescent = POLICIES[line.expire_quiescent]
        service.reset_on_expire = line.reset_on_expire
        service.remembers = line.proto == "tcp" and (
            line.reset_on_expire or "reset" in (line.expire_nodest, line.expire_quiescent)
        )
        service.slow_start_ms = round(line.slow_start_s * 1000)

    def _tally(self, number: int, word: int) -> Tally:
        """A service's count, in the row of this number."""
        at = number * STATS_WORDS + word
        part = None if self._dest_stats is None else self._dest_stats[8 * at : 8 * (at + 1)]
        return Tally(part, at, self._others)

    def _draw_dests(
        self, draft: Draft, change: Change, line: ServiceConf, ids: Mapping[DestKey, int]
    ) -> Iterator[None]:
        up = self._up(change.old) if change.service.slow_start_ms else set()
        for dest_line in line.dests:
            key = dest_key(line, dest_line)
            dest = self.dests.get(key)
            if dest is None:
                dest = self._new_dest(draft, key, ids[key], dest_line.daddr.version)
            if dest_line.fwdmode == "bypass":
                change.bypass = dest
                continue
            change.dests.append(dest)
            since = -1
            if up:
                since = dest.ramp_from if dest.id in up else draft.now
            fwdmode = self._modes[dest_line.fwdmode]
            if fwdmode == FWD_FNAT and dest_line.daddr.version != line.version:
                fwdmode = FWD_NAT64
            change.settings.append(
                Setting(
                    dest_line.weight,
                    fwdmode,
                    dest_line.max_conn,
                    dest_line.min_conn,
                    since,
                )
            )
            change.ends.append(far_end(line, dest_line))
            if len(change.dests) % PIECE == 0:
                yield
        change.weights = weights(
            [Ramp(setting.weight, setting.since) for setting in change.settings],
            change.service.slow_start_ms,
            draft.now,
        )
        scheduler = change.service.scheduler
        try:
            yield from scheduler.prepare(change.dests, change.weights)
        except Exception as error:
            self._misbehaved(scheduler, error)
        draft.changes.append(change)

    def _index_dests(
        self, draft: Draft, service: Service, line: ServiceConf, dests: list[Dest]
    ) -> Iterator[None]:
        """With a fallback, a dest's answer may be the first that we see of a conn; one-packet
        scheduling knows no conns.
        """
        if not service.fallback and not service.ops:
            return
        lines = [dest_line for dest_line in line.dests if dest_line.fwdmode != "bypass"]
        for count, (dest, dest_line) in enumerate(zip(dests, lines, strict=True)):
            if dest_line.fwdmode == "nat":
                draft.table.add_fallback(service, dest)
            if count % PIECE == 0:
                yield

    def _up(self, service: Service | None) -> set[int]:
        """The dests of a running service that take new conns."""
        dests = [] if service is None else service.dests
        return {dest.id for dest in dests if dest.available and dest.full_weight > 0}

    def _new_dest(self, draft: Draft, key: DestKey, index: int, af: int) -> Dest:
        """Known from now on, which no packet sees: no conn has its number."""
        row = slice(index * STATS_SIZE, (index + 1) * STATS_SIZE)
        dest = Dest(
            index,
            af,
            *key[2:],
            stats=None if self._dest_stats is None else self._dest_stats[row],
            others=self._others,
            first=None if self._first is None else self._first[row],
        )
        dest.service_name = key[0]
        self.dests[key] = dest
        all_dests = self._ipvs.dests
        while len(all_dests) <= index:
            all_dests.append(NO_DEST)
        if all_dests[index] is NO_DEST:
            all_dests[index] = dest
        else:
            draft.late.append(dest)
        return dest

    def _miss_dests(self, draft: Draft, line: ServiceConf, change: Change | None) -> None:
        """Which dests of ``line``, that runs, are not among those of ``change``."""
        staying = set() if change is None else {dest.id for dest in change.dests}
        if change is not None and change.bypass is not None:
            staying.add(change.bypass.id)
        drain_ms = self.services[line.name].drain_ms
        for dest_line in line.dests:
            key = dest_key(line, dest_line)
            dest = self.dests[key]
            if dest.id not in staying:
                draft.gone.append((key, dest, drain_ms))

    def adopt(self, draft: Draft, config: Config) -> None:
        """Put it in place, between two packets. Then :meth:`drain` what is gone."""
        dest: Dest
        for dest in draft.late:
            self._ipvs.dests[dest.id] = dest
        change: Change
        for change in draft.changes:
            self._adopt_change(change, draft.now)
        for key, dest, drain_ms in draft.gone:
            service = draft.services.get(key[0]) or self.services[key[0]]
            dest.available = False
            self._drain(dest, service.expire_nodest, drain_ms, draft.now)
            # Its templates are of no use to anybody, and it cannot be forgotten before they are.
            self.lapsing = self.lapsing or self.services[key[0]].persistence_ms != 0
        self.ramps.forget(draft.services, draft.now)
        self._unpublished = True
        self.services = draft.services
        self.lines = draft.lines
        self._timeouts = config.timeouts
        self._ipvs.birth.services = draft.table
        self._ipvs.birth.matches = draft.matches

    def drain(self, draft: Draft) -> Iterator[None]:
        """Remember what is to be forgotten when it has drained."""
        for count, (key, dest, _) in enumerate(draft.gone):
            self._draining[key] = dest
            if count % PIECE == 0:
                yield

    def _adopt_change(self, change: Change, now: cython.longlong) -> None:
        service: Service = change.service
        old: Service | None = change.old
        if old is not None:
            service.next_laddr = old.next_laddr % max(1, len(service.laddrs))
            if service.synproxy is not None:
                service.synproxy.on = old.synproxy is not None and old.synproxy.on
            elif old.synproxy is not None:
                service.synproxy = old.synproxy
                service.synproxy.retire(now)
        dest: Dest
        for dest, setting, weight in zip(change.dests, change.settings, change.weights):
            if not dest.available:
                # A removed one that comes back.
                dest.available = True
                dest.drain_until = -1
            if weight > 0:
                dest.drain_until = -1
            elif dest.drain_until < 0 or dest.policy != service.expire_quiescent:
                # Quiescent: no new conns, and its old ones get as long as those of a removed one.
                self._drain(dest, service.expire_quiescent, service.drain_ms, now)
            dest.weight = weight
            dest.full_weight = setting.weight
            dest.ramp_from = setting.since
            dest.fwdmode = setting.fwdmode
            dest.max_conn = setting.max_conn
            dest.min_conn = setting.min_conn
        for dest, far in zip(change.dests, change.ends):
            if far is not None:
                dest.far = far  # and stays, for the conns of a dest that no tunnel reaches any more
        if old is not None and old.max_conn == 0 and service.max_conn == 0:
            service.carried = old.carried
        policy = service.synproxy
        service.carried = self._kept(service, CARRIED, service.carried, service.max_conn != 0)
        service.half_open = self._kept(
            service, HALF_OPEN, service.half_open, policy is not None and policy.above != 0
        )
        bypass: Dest | None = change.bypass
        if bypass is not None:
            bypass.available = True
            bypass.drain_until = -1
            bypass.fwdmode = FWD_BYPASS
        try:
            service.set_dests(change.dests, bypass)
        except Exception as error:
            self._misbehaved(service.scheduler, error)
        self.ramps.watch(service, now)

    def _kept(self, service: Service, word: int, fresh: Tally, wanted: bool) -> Tally:
        """The tally of a service that has one of this kind already, maybe from before it was
        removed: dests that drain count in it. ``fresh`` where it has none, or did not keep it.
        """
        key = (service.name, service.proto, word)
        known = self._tallies.pop(key, None)
        if known is not None and (not wanted or known.word != fresh.word):
            known.retire()
            known = None
        if not wanted:
            return fresh
        self._tallies[key] = known or fresh
        return self._tallies[key]

    def publish(self) -> None:
        """Let other workers see what a reload made of the tallies. Not while another one goes in
        our place.
        """
        if self._unpublished:
            self._unpublished = False
            for tally in self._tallies.values():
                tally.publish()

    def _misbehaved(self, scheduler: Scheduler, error: Exception) -> None:
        """A user's scheduler raised: no reason to end a worker, which its successor would too. Who
        asks it for a dest gets what it has, or its next error.
        """
        self._ipvs.counters.add(Event.HOOK_ERRORS, 1)
        self._on_error(scheduler, error)

    def _drain(self, dest: Dest, policy: int, drain_ms: int, now: int) -> None:
        """A dest takes no new conns: what becomes of those it has."""
        dest.policy = policy
        dest.drain_until = now + drain_ms
        if policy != KEEP:
            dest.drain_until = max(0, now - 1)
            self.lapsing = True

    def local_addresses(self) -> Iterator[Key | None]:
        """Of the dests that are the host itself, those that drain too; None for a rest."""
        for count, dest in enumerate(list(self.dests.values())):
            if dest.fwdmode == FWD_LOCAL:
                yield dest.daddr_hi, dest.daddr
            elif count % PIECE == 0:
                yield None

    def sweep(self) -> None:
        """Forget drained dests without conns. Not while a draft is drawn up, which may count on
        them.
        """
        all_dests = self._ipvs.dests
        for kind, tally in list(self._tallies.items()):
            if kind[0] not in self.services and tally.count == 0:
                del self._tallies[kind]
        for key, dest in list(self._draining.items()):
            if dest.available:
                del self._draining[key]
            elif dest.load() == 0 and dest.stats[TEMPLATES] == 0:
                del self._draining[key]
                del self.dests[key]
                self.ids.forget(key)
                if all_dests[dest.id] is dest:
                    all_dests[dest.id] = NO_DEST
