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
from msgspec import UNSET, Meta, UnsetType

from tunlb.conf.values import (
    AddressRange,
    Endpoint,
    IPAddress,
    IPInterface,
    IPNetwork,
    Mac,
    PortRange,
    TableSize,
    User,
)

Proto: TypeAlias = Literal["tcp", "udp"]
FwdMode: TypeAlias = Literal["fnat", "nat", "dr"]
Scheduler: TypeAlias = Literal["rr", "wrr", "lc", "wlc", "sh", "mh"]
HookPoint: TypeAlias = Literal["pre_routing", "local_in", "forward", "local_out", "post_routing"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]

PROTOS: Final[tuple[str, ...]] = get_args(Proto)
FWDMODES: Final[tuple[str, ...]] = get_args(FwdMode)
SCHEDULERS: Final[tuple[str, ...]] = get_args(Scheduler)
HOOK_POINTS: Final[tuple[str, ...]] = get_args(HookPoint)

TIMEOUT_MAX_S: Final = 2678400  # 31 days, the longest that ipvsadm takes
WORKERS_MAX: Final = 64  # worker processes
DEST_MAX: Final = 65535  # dests of all services together

# Seconds in each state, without the configuration's `_s`. Sources: IPVS' and DPVS' state tables.
# IPVS has one UDP state, which both of ours stand for.
PROFILES: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "ipvs": MappingProxyType(
            {
                "tcp_none": 2,
                "tcp_established": 900,
                "tcp_syn_sent": 120,
                "tcp_syn_recv": 60,
                "tcp_fin_wait": 120,
                "tcp_time_wait": 120,
                "tcp_close": 10,
                "tcp_close_wait": 60,
                "tcp_last_ack": 30,
                "tcp_listen": 120,
                "tcp_synack": 120,
                "tcp_last": 2,
                "udp_none": 2,
                "udp_oneway": 300,
                "udp_normal": 300,
                "udp_last": 2,
            }
        ),
        "dpvs": MappingProxyType(
            {
                "tcp_none": 2,
                "tcp_established": 90,
                "tcp_syn_sent": 3,
                "tcp_syn_recv": 30,
                "tcp_fin_wait": 7,
                "tcp_time_wait": 7,
                "tcp_close": 3,
                "tcp_close_wait": 7,
                "tcp_last_ack": 7,
                "tcp_listen": 120,
                "tcp_synack": 30,
                "tcp_last": 2,
                "udp_none": 2,
                "udp_oneway": 300,
                "udp_normal": 300,
                "udp_last": 2,
            }
        ),
    }
)

IfName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}\Z",
        description="an interface name: 1-15 letters, digits or _ . -",
    ),
]
PortName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,19}\Z",
        description='the name of a port, or "<port>.<id>" for one of its VLANs',
    ),
]
Name: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}\Z",
        description="a name: 1-64 letters, digits or _ . : -",
    ),
]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=TIMEOUT_MAX_S)]
DeviceMtu: TypeAlias = Annotated[int, Meta(ge=68, le=65521)]


class _Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object that takes no keys but its own."""


class Tunlb(_Keys, kw_only=True, frozen=True, tag_field="kind", tag="tunlb"):
    """The director as a whole. `seed` None = drawn at start; `metrics` None = off.

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
    force: bool = False

    def worker_count(self, cores: int) -> int:
        """The number of workers, where this process may use `cores` (sched_getaffinity(2)).

        Asked once a run, by the supervisor: a worker is pinned, and would find one core.
        """
        return max(1, min(cores, WORKERS_MAX)) if self.workers == "auto" else self.workers


class Vlan(_Keys, kw_only=True, frozen=True):
    """A VLAN of a tap port: a port of its own to routes and neighbours, named `<port>.<id>`."""

    id: Annotated[int, Meta(ge=1, le=4094)]
    addresses: tuple[IPInterface, ...] = ()


class Port(_Keys, kw_only=True, frozen=True, tag_field="kind", tag="port"):
    """A TAP or TUN device. `mac` None = derived."""

    name: IfName
    type: Literal["tap", "tun"] = "tap"
    mac: Mac | None = None
    mtu: DeviceMtu = 1500
    addresses: tuple[IPInterface, ...] = ()
    bridge: IfName | None = None
    host_addresses: tuple[IPInterface, ...] = ()
    offload: bool = True
    txqueuelen: Annotated[int, Meta(ge=1, le=1000000)] = 4096
    vlans: tuple[Vlan, ...] = ()

    def subports(self) -> tuple[tuple[str, tuple[IPInterface, ...]], ...]:
        """(name, addresses) of the port itself and of each of its VLANs."""
        own = ((self.name, self.addresses),)
        return own + tuple((f"{self.name}.{vlan.id}", vlan.addresses) for vlan in self.vlans)


class Route(_Keys, kw_only=True, frozen=True, tag_field="kind", tag="route"):
    """A static route. `via` None = the destination is on link; `mtu` None = the port's."""

    port: PortName
    dst: IPNetwork = IPv4Network("0.0.0.0/0")
    via: IPAddress | None = None
    mtu: DeviceMtu | None = None


class Neigh(_Keys, kw_only=True, frozen=True, tag_field="kind", tag="neigh"):
    """A static neighbour: never asked for, never expired."""

    port: PortName
    addr: IPAddress
    mac: Mac


class Overrides(_Keys, kw_only=True, frozen=True):
    """Seconds in a state, where they differ from the profile's. None = not overridden."""

    tcp_none_s: Seconds | None = None
    tcp_established_s: Seconds | None = None
    tcp_syn_sent_s: Seconds | None = None
    tcp_syn_recv_s: Seconds | None = None
    tcp_fin_wait_s: Seconds | None = None
    tcp_time_wait_s: Seconds | None = None
    tcp_close_s: Seconds | None = None
    tcp_close_wait_s: Seconds | None = None
    tcp_last_ack_s: Seconds | None = None
    tcp_listen_s: Seconds | None = None
    tcp_synack_s: Seconds | None = None
    tcp_last_s: Seconds | None = None
    udp_none_s: Seconds | None = None
    udp_oneway_s: Seconds | None = None
    udp_normal_s: Seconds | None = None
    udp_last_s: Seconds | None = None

    def given(self) -> dict[str, float]:
        """The overridden states (without `_s`) and their seconds."""
        fields = ((name, getattr(self, f"{name}_s")) for name in PROFILES["ipvs"])
        return {name: seconds for name, seconds in fields if seconds is not None}


class Timeouts(Overrides, kw_only=True, frozen=True, tag_field="kind", tag="timeouts"):
    """Every service's timeouts."""

    profile: Literal["ipvs", "dpvs"] = "ipvs"


class ServiceLine(_Keys, kw_only=True, frozen=True, tag_field="kind", tag="service"):
    """A service as written."""

    name: Name
    proto: Proto
    vaddr: IPAddress
    vport: PortRange
    fwdmode: FwdMode = "fnat"
    scheduler: Scheduler = "wlc"
    mh_table_size: TableSize = TableSize(65537)
    laddrs: tuple[AddressRange, ...] = ()
    persistence_s: Annotated[float, Meta(ge=0, le=TIMEOUT_MAX_S)] = 0
    persistence_mask: str | None = None
    timeouts: Overrides = Overrides()
    drain_s: Annotated[float, Meta(ge=0, le=TIMEOUT_MAX_S)] = 300
    check: Any = None
    synproxy: bool = False
    client_ip: Literal["none"] = "none"


class DestLine(_Keys, kw_only=True, frozen=True, tag_field="kind", tag="dest"):
    """A dest as written. `dport` None = the packet's own; `fwdmode` UNSET = the service's."""

    service: Name
    daddr: IPAddress
    dport: Annotated[int, Meta(ge=1, le=65535)] | None = None
    weight: Annotated[int, Meta(ge=0, le=65535)] = 1
    fwdmode: FwdMode | UnsetType = UNSET
    max_conn: Annotated[int, Meta(ge=0, le=2147483647)] = 0


class Hook(_Keys, kw_only=True, frozen=True, tag_field="kind", tag="hook"):
    """A user's hook. `call` is imported when the director is built, not here."""

    point: HookPoint
    call: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z",
            description='"package.module:Class"',
        ),
    ]
    priority: Annotated[int, Meta(ge=0, le=10000)] = 50


class Dest(msgspec.Struct, kw_only=True, frozen=True):
    """A dest with its service's choices filled in. `dport` None = the packet's own is kept."""

    service: str
    daddr: IPAddress
    dport: int | None
    weight: int
    fwdmode: FwdMode
    max_conn: int


class Service(msgspec.Struct, kw_only=True, frozen=True):
    """A service with its dests, in the order of the file."""

    name: str
    proto: Proto
    vaddr: IPAddress
    vport: PortRange
    fwdmode: FwdMode
    scheduler: Scheduler
    mh_table_size: int
    laddrs: tuple[AddressRange, ...]
    timeouts: Overrides
    drain_s: float
    dests: tuple[Dest, ...]

    @property
    def laddrs_expanded(self) -> tuple[IPAddress, ...]:
        """Every local address, ranges written out, in the order of the file."""
        return tuple(address for span in self.laddrs for address in span.addresses())

    def dest_key(self, dest: Dest) -> tuple[IPAddress, int | None]:
        """What tells this service's dests apart: two spellings of one vport are one dest."""
        return dest.daddr, self.vport.single if dest.dport is None else dest.dport


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

    def timeouts_ms(self, service: Service | None = None) -> dict[str, int]:
        """Milliseconds in each state, `{"tcp_established": 900000, ...}`.

        The profile, under the `timeouts` line's overrides, under the service's.
        """
        seconds = dict(PROFILES[self.timeouts.profile])
        seconds.update(self.timeouts.given())
        if service is not None:
            seconds.update(service.timeouts.given())
        return {name: max(1, round(value * 1000)) for name, value in seconds.items()}


Line: TypeAlias = Tunlb | Port | Route | Neigh | ServiceLine | DestLine | Timeouts | Hook

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
    }
)


class Later(msgspec.Struct, frozen=True):
    """A key some of whose values are planned but not in this release."""

    key: str
    planned: Callable[[Any], bool]
    accepted: str


_LATER_FWDMODES = ("tunnel", "snat", "bypass", "local")
_LATER_FWDMODE = Later("fwdmode", lambda v: v in _LATER_FWDMODES, '"fnat", "nat" or "dr"')

LATER_KINDS: Final = ("acl",)
LATER: Final[Mapping[str, tuple[Later, ...]]] = MappingProxyType(
    {
        "service": (
            Later("proto", lambda v: v in ("sctp", "icmp"), '"tcp" or "udp"'),
            _LATER_FWDMODE,
            Later("synproxy", lambda v: v is True, "false"),
            Later("client_ip", lambda v: v in ("toa", "proxy-v1", "proxy-v2"), '"none"'),
            Later("persistence_s", lambda v: type(v) in (int, float) and v > 0, "0"),
            Later("persistence_mask", lambda v: v is not None, "the key left out"),
            Later("check", lambda v: v is not None, "the key left out"),
        ),
        "dest": (_LATER_FWDMODE,),
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
        "port.host_addresses",
        "port.offload",
        "port.txqueuelen",
        "hook.point",
        "hook.priority",
        "hook.call",
    }
)
