"""Services and dests: as written, and as a Config has them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tunlb.conf.base import TIMEOUT_MAX_S, Keys, Name
from tunlb.conf.match import Match
from tunlb.conf.timeouts import Overrides
from tunlb.conf.values import (
    AddressRange,
    IPAddress,
    IPNetwork,
    PortRange,
    PrefixLength,
    SchedulerName,
    TableSize,
)

Proto: TypeAlias = Literal["tcp", "udp", "sctp", "icmp"]
FwdMode: TypeAlias = Literal["fnat", "nat", "dr", "tunnel", "local", "snat", "bypass"]

# true: from the path MTU of each connection.
MssClamp: TypeAlias = Annotated[int, Meta(ge=536, le=65495)] | bool
ClientIp: TypeAlias = Literal["none", "toa", "proxy-v1", "proxy-v2"]

CONN_RATE_MAX: Final = 1000000  # new conns a second of one source, and at once

PROTOS: Final[tuple[str, ...]] = get_args(Proto)
FWDMODES: Final[tuple[str, ...]] = get_args(FwdMode)

CONNS_MAX: Final = 2147483647

ExpirePolicy: TypeAlias = Literal["keep", "reset", "reschedule"]
ConnLimit: TypeAlias = Annotated[int, Meta(ge=0, le=CONNS_MAX)]


class TunnelKeys(Keys, kw_only=True, frozen=True):
    """How a tunnel wraps packets. `port` is GUE's; `src` None = the port's own address."""

    type: Literal["ipip", "gre", "gue"] = "ipip"
    port: Annotated[int, Meta(ge=1, le=65535)] = 6080
    csum: bool = False
    src: IPAddress | None = None


class ServiceLine(Keys, kw_only=True, frozen=True, tag_field="kind", tag="service"):
    """A service as written."""

    name: Name
    proto: Proto
    vaddr: IPAddress | None = None
    vport: PortRange | None = None
    match: Match | None = None
    fwdmode: FwdMode = "fnat"
    bypass: bool = False
    scheduler: SchedulerName = SchedulerName("wlc")
    mh_table_size: TableSize = TableSize(65537)
    laddrs: tuple[AddressRange, ...] = ()
    persistence_s: Annotated[float, Meta(ge=0, le=TIMEOUT_MAX_S)] = 0
    persistence_mask: PrefixLength | None = None
    ops: bool = False
    max_conn: ConnLimit = 0
    timeouts: Overrides = Overrides()
    drain_s: Annotated[float, Meta(ge=0, le=TIMEOUT_MAX_S)] = 300
    expire_quiescent: ExpirePolicy = "keep"
    expire_nodest: ExpirePolicy = "keep"
    reset_on_expire: bool = False
    slow_start_s: Annotated[float, Meta(ge=0, le=86400)] = 0
    check: Any = None
    synproxy: bool = False
    synproxy_above: Annotated[int, Meta(ge=0, le=16777216)] = 0
    synproxy_mss: Annotated[int, Meta(ge=128, le=65475)] | None = None
    synproxy_wscale: Annotated[int, Meta(ge=0, le=14)] = 7
    synproxy_sack: bool = True
    synproxy_timestamps: bool = True
    client_ip: ClientIp = "none"
    client_ip_udp: Literal["first", "every"] = "first"
    client_ip_trust: tuple[IPNetwork, ...] = ()
    fallback: bool = False
    tunnel: TunnelKeys = TunnelKeys()
    mss_clamp: MssClamp = False
    conn_rate: Annotated[int, Meta(ge=0, le=CONN_RATE_MAX)] = 0
    conn_burst: Annotated[int, Meta(ge=0, le=CONN_RATE_MAX)] = 0


class DestLine(Keys, kw_only=True, frozen=True, tag_field="kind", tag="dest"):
    """A dest as written. `dport` None = the packet's own; `fwdmode` UNSET = the service's."""

    service: Name
    daddr: IPAddress
    dport: Annotated[int, Meta(ge=1, le=65535)] | None = None
    weight: Annotated[int, Meta(ge=0, le=65535)] = 1
    fwdmode: FwdMode | UnsetType = UNSET
    max_conn: ConnLimit = 0
    min_conn: ConnLimit = 0
    tunnel: TunnelKeys | UnsetType = UNSET


class Dest(msgspec.Struct, kw_only=True, frozen=True):
    """A dest with its service's choices filled in. `dport` None = the packet's own is kept."""

    service: str
    daddr: IPAddress
    dport: int | None
    weight: int
    fwdmode: FwdMode
    max_conn: int
    tunnel: TunnelKeys
    min_conn: int


class Service(msgspec.Struct, kw_only=True, frozen=True):
    """A service with its dests, in the order of the file. `scheduler`: for `sched.find`.

    It has a `vaddr` or a `match`; `vport` is any where there is none.
    """

    name: str
    proto: Proto
    vaddr: IPAddress | None
    vport: PortRange
    match: Match | None = None
    fwdmode: FwdMode
    bypass: bool = False
    scheduler: str
    mh_table_size: int
    laddrs: tuple[AddressRange, ...]
    persistence_s: float
    persistence_mask: PrefixLength | None
    ops: bool
    max_conn: int
    timeouts: Overrides
    drain_s: float
    synproxy: bool
    synproxy_above: int
    synproxy_mss: int | None
    synproxy_wscale: int
    synproxy_sack: bool
    synproxy_timestamps: bool
    client_ip: ClientIp
    client_ip_udp: Literal["first", "every"]
    client_ip_trust: tuple[IPNetwork, ...]
    fallback: bool
    tunnel: TunnelKeys
    mss_clamp: MssClamp
    expire_quiescent: ExpirePolicy
    expire_nodest: ExpirePolicy
    reset_on_expire: bool
    slow_start_s: float
    conn_rate: int
    conn_burst: int
    dests: tuple[Dest, ...]

    @property
    def version(self) -> int:
        """4 or 6: the family of what clients send."""
        return version_of(self)

    @property
    def laddrs_expanded(self) -> tuple[IPAddress, ...]:
        """Every local address, ranges written out, in the order of the file."""
        return tuple(address for span in self.laddrs for address in span.addresses())

    def dest_key(self, dest: Dest) -> tuple[IPAddress, int | None]:
        """What tells this service's dests apart: two spellings of one vport are one dest."""
        return dest.daddr, self.vport.single if dest.dport is None else dest.dport


def version_of(service: ServiceLine | Service) -> int:
    """4 or 6: the family of what clients send; 0 where nothing says it."""
    if service.vaddr is not None:
        return service.vaddr.version
    match = service.match or Match()
    first = next(iter((*match.src, *match.dst, *(span[0] for span in service.laddrs))), None)
    return 0 if first is None else first.version


def vport_of(service: ServiceLine) -> PortRange:
    """The vports; any, where a service has none to give."""
    return service.vport or PortRange(0, 65535)
