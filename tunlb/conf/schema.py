"""The lines of a configuration: one struct a kind, and the Config that a whole file becomes.

A struct's fields are the line's keys, its defaults the keys' defaults, its types their ranges.
docs/configuration.md documents them, and a test holds the two together. Checks that need more than
one line are in `cross`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Network
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from tunlb.conf.base import DeviceMtu, IfName, Keys, Name, PortName
from tunlb.conf.protection import Acl, Tc
from tunlb.conf.service import DestLine, Service, ServiceLine
from tunlb.conf.timeouts import PROFILES, Timeouts
from tunlb.conf.values import (
    Endpoint,
    HookCall,
    IPAddress,
    IPInterface,
    IPNetwork,
    Mac,
    User,
)

HookPoint: TypeAlias = Literal["pre_routing", "local_in", "forward", "local_out", "post_routing"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]

HOOK_POINTS: Final[tuple[str, ...]] = get_args(HookPoint)

WORKERS_MAX: Final = 64  # worker processes
DEST_MAX: Final = 65535  # dests of all services together


class Tunlb(Keys, kw_only=True, frozen=True, tag_field="kind", tag="tunlb"):
    """The director as a whole. `seed` None = drawn at start; `metrics`, `snapshot` None = off.

    `workers` is what was written, so that a file means the same on every machine: `worker_count`
    makes a number of it.
    """

    version: Literal[1] = 1
    name: Name = "tunlb"
    workers: Annotated[int, Meta(ge=1, le=WORKERS_MAX)] | Literal["auto"] = 1
    user: User = User("nobody")
    steering: bool = True
    conn_max: Annotated[int, Meta(ge=16, le=16777216)] = 1048576
    control: Annotated[str, Meta(min_length=1, max_length=107, description="a path")] = (
        "/run/tunlb/control.sock"
    )
    metrics: Endpoint | None = None
    log_level: LogLevel = "info"
    seed: (
        Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{8,64}\Z", description="8-64 hexadecimal digits")]
        | None
    ) = None
    stop_grace_s: Annotated[float, Meta(ge=0, le=86400)] = 0
    snapshot: Annotated[str, Meta(min_length=1, max_length=4095, description="a path")] | None = (
        None
    )
    snapshot_s: Annotated[float, Meta(ge=0, le=86400)] = 0
    force: bool = False
    fragments: Literal["track", "drop"] = "track"
    defence_tcp: bool = False
    defence_udp: bool = True

    def worker_count(self, cores: int) -> int:
        """The number of workers, where this process may use `cores` (sched_getaffinity(2)).

        Asked once a run, by the supervisor: a worker is pinned, and would find one core.
        """
        return max(1, min(cores, WORKERS_MAX)) if self.workers == "auto" else self.workers


class Vlan(Keys, kw_only=True, frozen=True):
    """A VLAN of a tap port: a port of its own to routes and neighbours, named `<port>.<id>`."""

    id: Annotated[int, Meta(ge=1, le=4094)]
    addresses: tuple[IPInterface, ...] = ()


class Port(Keys, kw_only=True, frozen=True, tag_field="kind", tag="port"):
    """A TAP or TUN device. None: `mac` derived; `backup_of` a port of its own; `host` no
    pass-through.
    """

    name: IfName
    type: Literal["tap", "tun"] = "tap"
    mac: Mac | None = None
    mtu: DeviceMtu = 1500
    addresses: tuple[IPInterface, ...] = ()
    bridge: IfName | None = None
    host: IfName | None = None
    host_addresses: tuple[IPInterface, ...] = ()
    host_mirror: bool = False
    offload: bool = True
    txqueuelen: Annotated[int, Meta(ge=1, le=1000000)] = 4096
    vlans: tuple[Vlan, ...] = ()
    backup_of: IfName | None = None

    def subports(self) -> tuple[tuple[str, tuple[IPInterface, ...]], ...]:
        """(name, addresses) of the port itself and of each of its VLANs."""
        own = ((self.name, self.addresses),)
        return own + tuple((f"{self.name}.{vlan.id}", vlan.addresses) for vlan in self.vlans)


class Route(Keys, kw_only=True, frozen=True, tag_field="kind", tag="route"):
    """A static route. `via` None = the destination is on link; `mtu` None = the port's."""

    port: PortName
    dst: IPNetwork = IPv4Network("0.0.0.0/0")
    via: IPAddress | None = None
    mtu: DeviceMtu | None = None


class Neigh(Keys, kw_only=True, frozen=True, tag_field="kind", tag="neigh"):
    """A static neighbour: never asked for, never expired."""

    port: PortName
    addr: IPAddress
    mac: Mac


class Hook(Keys, kw_only=True, frozen=True, tag_field="kind", tag="hook"):
    """A user's hook. `call` is imported when the director is built, not here."""

    point: HookPoint
    call: HookCall
    priority: Annotated[int, Meta(ge=0, le=10000)] = 50


class Config(msgspec.Struct, kw_only=True, frozen=True):
    """A whole, consistent configuration. `source` is the file it was read from."""

    source: str
    tunlb: Tunlb
    ports: tuple[Port, ...]
    routes: tuple[Route, ...]
    neighs: tuple[Neigh, ...]
    services: tuple[Service, ...]
    timeouts: Timeouts
    hooks: tuple[Hook, ...]
    acls: tuple[Acl, ...] = ()
    tcs: tuple[Tc, ...] = ()

    def timeouts_ms(self, service: Service | None = None) -> dict[str, int]:
        """Milliseconds in each state, `{"tcp_established": 900000, ...}`.

        The profile, under the `timeouts` line's overrides, under the service's.
        """
        seconds = dict(PROFILES[self.timeouts.profile])
        seconds.update(self.timeouts.given())
        if service is not None:
            seconds.update(service.timeouts.given())
        return {name: max(1, round(value * 1000)) for name, value in seconds.items()}


Line: TypeAlias = Tunlb | Port | Route | Neigh | ServiceLine | DestLine | Timeouts | Hook | Acl | Tc

KINDS: Final[Mapping[str, type[Line]]] = MappingProxyType(
    {
        "tunlb": Tunlb,
        "port": Port,
        "route": Route,
        "neigh": Neigh,
        "service": ServiceLine,
        "dest": DestLine,
        "timeouts": Timeouts,
        "hook": Hook,
        "acl": Acl,
        "tc": Tc,
    }
)


class Later(msgspec.Struct, frozen=True):
    """A key some of whose values are planned but not in this release."""

    key: str
    planned: Callable[[Any], bool]
    accepted: str


LATER: Final[Mapping[str, tuple[Later, ...]]] = MappingProxyType(
    {
        "service": (Later("check", lambda v: v is not None, "the key left out"),),
    }
)

# Keys whose change waits for a restart; a reload applies every other. An identity key (a port's
# name) here means that adding or removing one waits. Opening and setting up a device is the
# privileged step that happens once; a table's size and seed, and the number of workers, decide
# where its rows are.
RESTART_KEYS: Final = frozenset(
    {
        "tunlb.workers",
        "tunlb.conn_max",
        "tunlb.control",
        "tunlb.metrics",
        "tunlb.seed",
        "tunlb.force",
        "tunlb.user",
        "tunlb.steering",
        "port.name",
        "port.type",
        "port.mac",
        "port.mtu",
        "port.bridge",
        "port.host",
        "port.host_addresses",
        "port.offload",
        "port.txqueuelen",
        "port.backup_of",
        "hook.point",
        "hook.priority",
        "hook.call",
    }
)
