"""The numbers of dests, and of services that count: which row of ``dest_stats`` each has."""

from __future__ import annotations

from collections.abc import Mapping

from tunlb.conf import Config
from tunlb.conf import Dest as DestConf
from tunlb.conf import Service as ServiceConf
from tunlb.wiring import pair

DEST_IDS = 65536  #: dests of all services, those that still drain and services with limits included

DestKey = tuple[str, str, int, int, int]  #: service, proto, daddr, dport


def dest_key(service: ServiceConf, dest: DestConf) -> DestKey:
    """What tells a dest from all others."""
    return service.name, service.proto, *pair(dest.daddr), dest.dport or 0


def service_key(service: ServiceConf) -> DestKey | None:
    """That of a service which counts what it carries, and so needs a number like a dest."""
    counts = service.max_conn or service.synproxy_above
    return (service.name, service.proto, 0, 0, -1) if counts else None


def keys_of(service: ServiceConf) -> list[DestKey]:
    """Of all that has a number."""
    own = service_key(service)
    keys = [dest_key(service, dest) for dest in service.dests]
    return keys if own is None else [*keys, own]


class DestIds:
    """Gives each dest a number that every worker, and every successor of one, knows it by: which
    row of a worker's ``dest_stats`` it has. Services with limits have such rows too.

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
        keys = [key for service in config.services for key in keys_of(service)]
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
