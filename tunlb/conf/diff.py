"""What a reload has to do: the difference between two configurations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import msgspec

from tunlb.conf.protection import Acl, Tc
from tunlb.conf.schema import RESTART_KEYS, Config, Neigh, Port, Route
from tunlb.conf.service import Dest, Service

_T = TypeVar("_T", bound=msgspec.Struct)


class Change(msgspec.Struct, Generic[_T], frozen=True):
    """`changed` holds (old, new) of what kept its identity and differs."""

    added: tuple[_T, ...] = ()
    removed: tuple[_T, ...] = ()
    changed: tuple[tuple[_T, _T], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


class Diff(msgspec.Struct, kw_only=True, frozen=True):
    """The difference, live and restart parts alike: what is in `restart_keys` is not to be applied.

    Identities: a port and a service are their name, a route its dst, a neigh its port and addr, a
    dest its service, daddr and dport, an acl all of it, a tc its port and service.
    `services.changed` leaves dests aside; `dests` holds those of
    services that are on both sides, since an added or removed service carries its own.
    """

    ports: Change[Port]
    routes: Change[Route]
    neighs: Change[Neigh]
    services: Change[Service]
    dests: Change[Dest]
    acls: Change[Acl]
    tcs: Change[Tc]
    match_order: bool  # services with a match are asked in another order
    timeouts: bool  # the global timeouts differ
    tunlb_keys: tuple[str, ...]  # live keys of the tunlb line that differ, e.g. ("log_level",)
    restart_keys: tuple[str, ...]  # e.g. "tunlb.conn_max", "port[lb0].mtu", "port[lb1]", "hook"

    def __bool__(self) -> bool:
        parts = (
            self.ports,
            self.routes,
            self.neighs,
            self.services,
            self.dests,
            self.acls,
            self.tcs,
        )
        flags = (self.match_order, self.timeouts, self.tunlb_keys, self.restart_keys)
        return any(map(bool, (*parts, *flags)))


def diff(old: Config, new: Config) -> Diff:
    """What turns `old` into `new`: a file's order is no difference, except of hooks and matches."""
    ports = _change(old.ports, new.ports, lambda port: port.name)
    old_services = {service.name: service for service in old.services}
    dests = [
        _change(old_services[service.name].dests, service.dests, service.dest_key)
        for service in new.services
        if service.name in old_services
    ]
    tunlb = _differing(old.tunlb, new.tunlb)
    restart = [f"tunlb.{key}" for key in tunlb if f"tunlb.{key}" in RESTART_KEYS]
    restart += _port_restarts(ports)
    if old.hooks != new.hooks:
        restart.append("hook")
    return Diff(
        ports=ports,
        routes=_change(old.routes, new.routes, lambda route: route.dst),
        neighs=_change(old.neighs, new.neighs, lambda neigh: (neigh.port, neigh.addr)),
        services=_change(old.services, new.services, lambda service: service.name, _same_service),
        dests=Change(
            added=tuple(dest for change in dests for dest in change.added),
            removed=tuple(dest for change in dests for dest in change.removed),
            changed=tuple(pair for change in dests for pair in change.changed),
        ),
        acls=_change(old.acls, new.acls, lambda acl: (acl.service, acl.action, acl.src)),
        tcs=_change(old.tcs, new.tcs, lambda tc: (tc.port, tc.service)),
        match_order=_match_names(old, new) != _match_names(new, old),
        timeouts=old.timeouts != new.timeouts,
        tunlb_keys=tuple(key for key in tunlb if f"tunlb.{key}" not in RESTART_KEYS),
        restart_keys=tuple(restart),
    )


def live(old: Config, new: Config) -> Config:
    """`new` as far as a reload may take it: what needs a restart stays as it is in `old`.

    A port that is only in `new` is not there yet, so routes and neighs on it wait for it; one that
    is only in `old` is still there.
    """
    fresh = {port.name: port for port in new.ports}
    ports = tuple(
        _keep(port, fresh[port.name], "port") if port.name in fresh else port for port in old.ports
    )
    names = {name for port in ports for name, _ in port.subports()}
    return msgspec.structs.replace(
        new,
        tunlb=_keep(old.tunlb, new.tunlb, "tunlb"),
        ports=ports,
        routes=tuple(route for route in new.routes if route.port in names),
        neighs=tuple(neigh for neigh in new.neighs if neigh.port in names),
        hooks=old.hooks,
        tcs=tuple(tc for tc in new.tcs if tc.port in names),
    )


def _keep(old: _T, new: _T, kind: str) -> _T:
    """`new` with the keys that need a restart as they are in `old`."""
    stay = {
        key: getattr(old, key) for key in _differing(old, new) if f"{kind}.{key}" in RESTART_KEYS
    }
    return msgspec.structs.replace(new, **stay)


def _change(
    old: Iterable[_T],
    new: Iterable[_T],
    key: Callable[[_T], Hashable],
    same: Callable[[_T, _T], bool] = operator.eq,
) -> Change[_T]:
    before = {key(item): item for item in old}
    after = {key(item): item for item in new}
    return Change(
        added=tuple(item for name, item in after.items() if name not in before),
        removed=tuple(item for name, item in before.items() if name not in after),
        changed=tuple(
            (before[name], item)
            for name, item in after.items()
            if name in before and not same(before[name], item)
        ),
    )


def _match_names(config: Config, other: Config) -> list[str]:
    """The services with a match, in order, that the other one has as well."""
    known = {service.name for service in other.services if service.match is not None}
    return [s.name for s in config.services if s.match is not None and s.name in known]


def _same_service(old: Service, new: Service) -> bool:
    return all(key == "dests" for key in _differing(old, new))


def _differing(old: msgspec.Struct, new: msgspec.Struct) -> list[str]:
    names = type(new).__struct_fields__
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _port_restarts(ports: Change[Port]) -> list[str]:
    found = []
    if "port.name" in RESTART_KEYS:
        found = [f"port[{port.name}]" for port in (*ports.added, *ports.removed)]
    for old, new in ports.changed:
        keys = (key for key in _differing(old, new) if f"port.{key}" in RESTART_KEYS)
        found += [f"port[{new.name}].{key}" for key in keys]
    return found
