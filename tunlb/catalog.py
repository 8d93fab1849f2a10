"""The services and dests of a director, and how those of a new configuration take their place.

A :class:`Draft` is drawn up beside what packets use, piece by piece, and changes nothing of it.
:meth:`Catalog.adopt` then puts it in place at once: no packet sees a part of it. What a new
configuration leaves as it was keeps its objects, so a reload costs what it changes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping

import cython
import msgspec

from tunlb.conf import Config
from tunlb.conf import Dest as DestConf
from tunlb.conf import Service as ServiceConf
from tunlb.ipvs.core import Ipvs
from tunlb.ipvs.dest import NO_DEST, STATS_SIZE, Dest
from tunlb.ipvs.protocol import Protocol
from tunlb.ipvs.sched import find as find_scheduler
from tunlb.ipvs.service import Service, ServiceTable
from tunlb.ipvs.xmit import find as find_mode
from tunlb.ipvs.xmit import names as mode_names
from tunlb.wiring import pair

DEST_IDS = 65536  #: dests of all services, those that still drain included
PIECE = 32  #: dests looked at in one piece of work

DestKey = tuple[str, str, int, int, int]  #: service, proto, daddr, dport


def dest_key(service: ServiceConf, dest: DestConf) -> DestKey:
    """What tells a dest from all others."""
    return service.name, service.proto, *pair(dest.daddr), dest.dport or 0


class DestIds:
    """Gives each dest a number that every worker, and every successor of one, knows it by.

    Whoever runs several directors has one of these for all of them.
    """

    def __init__(self, taken: Mapping[DestKey, int] | None = None) -> None:
        self.taken: dict[DestKey, int] = dict(taken or {})
        used = set(self.taken.values())
        self._next = max(used, default=-1) + 1
        self._free = sorted(set(range(self._next)) - used, reverse=True)

    def assign(self, config: Config) -> dict[DestKey, int]:
        """The numbers of a configuration's dests, those known before as before.

        Raises ValueError when there are not enough left.
        """
        keys = [dest_key(service, dest) for service in config.services for dest in service.dests]
        fresh = [key for key in dict.fromkeys(keys) if key not in self.taken]
        left = len(self._free) + DEST_IDS - self._next
        if len(fresh) > left:
            raise ValueError(
                f"{len(fresh)} new dests, and only {left} of {DEST_IDS} numbers are left: "
                "removed dests keep theirs until their conns have ended"
            )
        for key in fresh:
            if self._free:
                self.taken[key] = self._free.pop()
            else:
                self.taken[key] = self._next
                self._next += 1
        return {key: self.taken[key] for key in keys}

    def forget(self, key: DestKey) -> None:
        """No director has this dest any more."""
        index = self.taken.pop(key, None)
        if index is not None:
            self._free.append(index)


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


class Change:
    """A service that is new or differs: ``settings`` are (weight, fwdmode, max_conn) of its
    ``dests``; ``old`` is the service of that name until now.
    """

    def __init__(self, service: Service, old: Service | None) -> None:
        self.service = service
        self.old = old
        self.dests: list[Dest] = []
        self.settings: list[tuple[int, int, int]] = []


class Draft:
    """What :meth:`Catalog.adopt` puts in place.

    ``now`` is when drains begin. ``late`` are new dests whose number another one has that drained
    and is not forgotten yet. ``gone`` are the dests that the configuration has no more, with the ms
    that their conns may live on.
    """

    def __init__(self, now: int) -> None:
        self.now = now
        self.table = ServiceTable()
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
    ) -> None:
        self.services: dict[str, Service] = {}
        self.lines: dict[str, ServiceConf] = {}
        self.dests: dict[DestKey, Dest] = {}
        self.ids = DestIds()
        self._ipvs = ipvs
        self._protocols = protocols
        self._seed = seed
        self._dest_stats = dest_stats
        self._modes = {name: find_mode(name).number for name in mode_names()}
        self._timeouts: object = None
        self._draining: dict[DestKey, Dest] = {}

    def draw_up(self, draft: Draft, config: Config, ids: Mapping[DestKey, int]) -> Iterator[None]:
        """Fill ``draft`` with what ``config`` means, a service at a time. ``ids``: see DestIds."""
        same_timeouts = config.timeouts == self._timeouts
        for line in config.services:
            known = self.lines.get(line.name)
            same = False
            if known is not None and same_timeouts:
                same = yield from _same(known, line)
            if known is not None and same:
                draft.lines[line.name] = known
                service = self.services[line.name]
            else:
                draft.lines[line.name] = line
                change = self._change(config, line)
                yield
                yield from self._draw_dests(draft, change, line, ids)
                service = change.service
                if known is not None:
                    self._miss_dests(draft, known, change.dests)
            draft.services[line.name] = service
            draft.table.add(service)
            yield
        for name, line in self.lines.items():
            if name not in draft.lines:
                self._miss_dests(draft, line, [])
                yield

    def _change(self, config: Config, line: ServiceConf) -> Change:
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
        protocol = self._protocols[line.proto]
        service = Service(
            line.name,
            line.vaddr.version,
            protocol.number,
            pair(line.vaddr),
            line.vport.first,
            line.vport.last,
            scheduler,
            protocol.timeouts(config.timeouts_ms(line)),
            tuple(pair(address) for address in line.laddrs_expanded),
            round(line.drain_s * 1000),
        )
        return Change(service, old)

    def _draw_dests(
        self, draft: Draft, change: Change, line: ServiceConf, ids: Mapping[DestKey, int]
    ) -> Iterator[None]:
        for dest_line in line.dests:
            key = dest_key(line, dest_line)
            dest = self.dests.get(key)
            if dest is None:
                dest = self._new_dest(draft, key, ids[key], dest_line.daddr.version)
            change.dests.append(dest)
            change.settings.append(
                (dest_line.weight, self._modes[dest_line.fwdmode], dest_line.max_conn)
            )
            if len(change.dests) % PIECE == 0:
                yield
        scheduler = change.service.scheduler
        yield from scheduler.prepare(change.dests, [weight for weight, _, _ in change.settings])
        draft.changes.append(change)

    def _new_dest(self, draft: Draft, key: DestKey, index: int, af: int) -> Dest:
        """Known from now on, which no packet sees: no conn has its number."""
        stats = self._dest_stats
        if stats is not None:
            stats = stats[index * STATS_SIZE : (index + 1) * STATS_SIZE]
        dest = Dest(index, af, *key[2:], stats=stats)
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

    def _miss_dests(self, draft: Draft, line: ServiceConf, dests: list[Dest]) -> None:
        """Which dests of ``line``, that runs, are not among ``dests``."""
        staying = {dest.id for dest in dests}
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
        for _, dest, drain_ms in draft.gone:
            dest.available = False
            dest.drain_until = draft.now + drain_ms
        self.services = draft.services
        self.lines = draft.lines
        self._timeouts = config.timeouts
        self._ipvs.services = draft.table

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
        dest: Dest
        for dest, (weight, fwdmode, max_conn) in zip(change.dests, change.settings):
            if not dest.available:
                # A removed one that comes back.
                dest.available = True
                dest.drain_until = -1
            if weight > 0:
                dest.drain_until = -1
            elif dest.drain_until < 0:
                # Quiescent: no new conns, and its old ones get as long as those of a removed one.
                dest.drain_until = now + service.drain_ms
            dest.weight = weight
            dest.fwdmode = fwdmode
            dest.max_conn = max_conn
        service.set_dests(change.dests)

    def sweep(self) -> None:
        """Forget drained dests without conns. Not while a draft is drawn up, which may count on
        them.
        """
        all_dests = self._ipvs.dests
        for key, dest in list(self._draining.items()):
            if dest.available:
                del self._draining[key]
            elif dest.load() == 0:
                del self._draining[key]
                del self.dests[key]
                self.ids.forget(key)
                if all_dests[dest.id] is dest:
                    all_dests[dest.id] = NO_DEST
