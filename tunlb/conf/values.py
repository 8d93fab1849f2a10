"""The types of the values in a configuration line, and how each is read from JSON.

A field of a schema struct is typed with one of these; msgspec calls `parse` for them. A value that
cannot be read raises `RefusedError`, whose text says what is wrong with it and whose hint says what
would be right.
"""

from __future__ import annotations

import ipaddress
import re
from abc import ABC
from collections.abc import Callable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tunlb import plugins
from tunlb.conf.errors import did_you_mean, one_of, shown
from tunlb.ipvs import sched

if TYPE_CHECKING:
    IPAddress: TypeAlias = IPv4Address | IPv6Address
    IPInterface: TypeAlias = IPv4Interface | IPv6Interface
    IPNetwork: TypeAlias = IPv4Network | IPv6Network
else:
    # msgspec takes at most one type of ours in a union, so each family pair is one type to it.
    class IPAddress(ABC):  # noqa: B024  nothing but a name for isinstance
        """An IPv4 or IPv6 unicast address."""

    class IPInterface(ABC):  # noqa: B024  nothing but a name for isinstance
        """An address with its prefix length."""

    class IPNetwork(ABC):  # noqa: B024  nothing but a name for isinstance
        """A prefix without host bits."""

    IPAddress.register(IPv4Address)
    IPAddress.register(IPv6Address)
    IPInterface.register(IPv4Interface)
    IPInterface.register(IPv6Interface)
    IPNetwork.register(IPv4Network)
    IPNetwork.register(IPv6Network)

LADDRS_MAX: Final = 1024  # local addresses of one service
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_PORT_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_ENDPOINT = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([0-9]{1,5})")
_RATE = re.compile(r"([0-9]{1,13})(bit|kbit|mbit|gbit)")
_RATE_UNITS = MappingProxyType({"bit": 1, "kbit": 1000, "mbit": 1000_000, "gbit": 1000_000_000})
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}[A-Za-z0-9_.$-]?")
_UID_MAX = 0xFFFF_FFFE  # the one above means "no user" to the kernel
_BROADCAST = IPv4Address("255.255.255.255")
_MAPPED = IPv6Network("::ffff:0:0/96")


class RefusedError(ValueError):
    """A value that its type does not take. `hint` may be ""."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class PortRange(tuple[int, int]):
    """The vports of a service: `first` to `last`, both included. Any port is (0, 65535)."""

    __slots__ = ()

    def __new__(cls, first: int, last: int) -> PortRange:
        return super().__new__(cls, (first, last))

    @property
    def first(self) -> int:
        return self[0]

    @property
    def last(self) -> int:
        return self[1]

    @property
    def is_any(self) -> bool:
        return self[0] == 0

    @property
    def single(self) -> int | None:
        """The port, if it is exactly one."""
        return self[0] if self[0] == self[1] else None

    def __str__(self) -> str:
        if self.is_any:
            return "0"
        return str(self[0]) if self[0] == self[1] else f"{self[0]}-{self[1]}"


class AddressRange(tuple[IPAddress, IPAddress]):
    """Addresses of one family, first to last, both included; at most LADDRS_MAX of them."""

    __slots__ = ()

    def __new__(cls, first: IPAddress, last: IPAddress) -> AddressRange:
        return super().__new__(cls, (first, last))

    @property
    def size(self) -> int:
        return int(self[1]) - int(self[0]) + 1

    def addresses(self) -> Iterator[IPAddress]:
        make = type(self[0])
        return (make(number) for number in range(int(self[0]), int(self[1]) + 1))

    def meets(self, other: AddressRange) -> bool:
        """Whether the two, of one family, share an address."""
        return int(self[0]) <= int(other[1]) and int(other[0]) <= int(self[1])

    def __str__(self) -> str:
        return str(self[0]) if self[0] == self[1] else f"{self[0]}-{self[1]}"


class Mac(bytes):
    """Six bytes of an Ethernet unicast address."""

    def __str__(self) -> str:
        return self.hex(":")


class TableSize(int):
    """The number of slots of a Maglev table: a prime, so that every skip visits every slot."""


class PrefixLength(int):
    """How many bits of an address tell networks apart."""


class BitRate(int):
    """Bits a second, 1000 to 10**12."""


class SchedulerName(str):
    """A scheduler as `tunlb.ipvs.sched.find` takes it, which is not always as it was written."""

    __slots__ = ()


class HookCall(str):
    """A hook's class, ``package.module:Class``, which is not always as it was written."""

    __slots__ = ()


class User(str):
    """A user's name, or a number in decimal."""

    __slots__ = ()


class Endpoint(tuple[IPAddress, int]):
    """An address and a TCP port to listen on."""

    __slots__ = ()

    def __new__(cls, address: IPAddress, port: int) -> Endpoint:
        return super().__new__(cls, (address, port))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise RefusedError(f"{shown(value)} is not a string")
    return value


def _any_address(text: str) -> IPAddress:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise RefusedError(f"{shown(text)} is not an IP address") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise RefusedError(f"{shown(text)} has a scope", "leave %... out")
        if address in _MAPPED:
            raise RefusedError(
                f"{shown(text)} is an IPv4 address in IPv6 form", _mapped_hint(address)
            )
    return address


def _mapped_hint(address: IPv6Address) -> str:
    return f"write {shown(str(address.ipv4_mapped))}"


def _unicast(address: IPAddress, text: str) -> None:
    reason = ""
    if address.is_multicast:
        reason = "a multicast address"
    elif address.is_unspecified:
        reason = "the unspecified address"
    elif address.is_loopback:
        reason = "a loopback address, which never leaves its host"
    elif address == _BROADCAST:
        reason = "the broadcast address"
    if reason:
        raise RefusedError(f"{shown(text)} is {reason}")


def _address(value: object) -> IPAddress:
    text = _text(value)
    address = _any_address(text)
    _unicast(address, text)
    return address


def _address_range(value: object) -> AddressRange:
    text = _text(value)
    first, dash, last = text.partition("-")
    low = _address(first.strip())
    high = _address(last.strip()) if dash else low
    if low.version != high.version:
        raise RefusedError(f"{shown(text)} mixes IPv4 and IPv6")
    found = AddressRange(low, high)
    if found.size < 1:
        raise RefusedError(
            f"{shown(text)} ends before it begins", f"write {shown(f'{high}-{low}')}"
        )
    if found.size > LADDRS_MAX:
        raise RefusedError(f"{shown(text)} holds {found.size} addresses, more than {LADDRS_MAX}")
    return found


def _interface(value: object) -> IPInterface:
    text = _text(value)
    address_text, slash, _ = text.partition("/")
    address = _any_address(address_text)
    _unicast(address, address_text)
    if not slash:
        usual = 24 if address.version == 4 else 64
        raise RefusedError(
            f"{shown(text)} has no prefix length", f"write {shown(f'{text}/{usual}')}"
        )
    found = ipaddress.ip_interface((address, _prefix_length(text)))
    special = special_of(found.network, found.ip)
    if special:
        raise RefusedError(f"{shown(text)} is {special} of its subnet, not a host's")
    return found


def _prefix_length(text: str) -> int:
    """The number after the slash; without one, a single host's. Netmasks are not read."""
    address, slash, length = text.partition("/")
    most = 32 if _any_address(address).version == 4 else 128
    if not slash:
        return most
    if not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= most):
        raise RefusedError(f"{shown(text)} has no valid prefix length", f"it is a number 0-{most}")
    return int(length)


def special_of(network: IPNetwork, address: IPAddress) -> str:
    """What `address` is in `network` when it is no host's, else "" (RFC 3021: a /31 has two)."""
    if network.version == 4 and network.prefixlen < 31:
        if address == network.network_address:
            return "the network address"
        if address == network.broadcast_address:
            return "the broadcast address"
    return ""


def _network(value: object) -> IPNetwork:
    text = _text(value)
    address = _any_address(text.partition("/")[0])
    if address.is_multicast:
        raise RefusedError(f"{shown(text)} is multicast, which is not forwarded")
    found = ipaddress.ip_network((address, _prefix_length(text)), strict=False)
    if found.network_address != address:
        raise RefusedError(f"{shown(text)} has host bits set", f"did you mean {shown(str(found))}?")
    return found


def _mac(value: object) -> Mac:
    text = _text(value)
    if not _MAC.fullmatch(text.lower()):
        raise RefusedError(f"{shown(text)} is not an Ethernet address")
    mac = Mac.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise RefusedError(f"{shown(text)} is not a unicast Ethernet address")
    return mac


def _port_range(value: object) -> PortRange:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= 65535:
            raise RefusedError(f"{value} is out of range")
        return PortRange(value, value) if value else PortRange(0, 65535)
    found = _PORT_RANGE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        number = isinstance(value, str) and value.isascii() and value.isdigit()
        raise RefusedError(
            f"{shown(value)} is neither a port nor a range", f"write {value}" if number else ""
        )
    first, last = int(found[1]), int(found[2])
    if first > last:
        raise RefusedError(f"{shown(value)} ends before it begins", f'write "{last}-{first}"')
    if first < 1 or last > 65535:
        raise RefusedError(f"{shown(value)} is out of range")
    return PortRange(first, last)


def _endpoint(value: object) -> Endpoint:
    text = _text(value)
    found = _ENDPOINT.fullmatch(text)
    if found is None or not 1 <= int(found[3]) <= 65535:
        raise RefusedError(f"{shown(text)} is not an address and a port")
    return Endpoint(_any_address(found[1] or found[2]), int(found[3]))


def _user(value: object) -> User:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = _text(value)
    if re.fullmatch(r"-?[0-9]+", text):
        if len(text) > 10 or not 0 <= int(text) <= _UID_MAX:
            raise RefusedError(f"{shown(text)} is out of range")
    elif not _USER.fullmatch(text):
        raise RefusedError(f"{shown(text)} is not a user's name")
    return User(text)


def _scheduler(value: object) -> SchedulerName:
    text = _text(value)
    try:
        return SchedulerName(sched.resolve(text))
    except KeyError:
        hint = did_you_mean(text, sched.names())
        raise RefusedError(f"{shown(text)} is not known", hint) from None
    except sched.SchedulerError as error:
        raise RefusedError(f"{shown(text)} cannot be used: {error}") from None


def _hook_call(value: object) -> HookCall:
    text = _text(value)
    try:
        return HookCall(plugins.resolve(plugins.HOOKS, text))
    except KeyError:
        hint = f"no installed package offers it in {plugins.HOOKS}"
        raise RefusedError(f"{shown(text)} is not known", hint) from None
    except plugins.PluginError as error:
        raise RefusedError(f"{shown(text)} cannot be used: {error}") from None


def _table_size(value: object) -> TableSize:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RefusedError(f"{shown(value)} is not an integer")
    if not 251 <= value <= 131071:
        raise RefusedError(f"{value} is out of range")
    if not _is_prime(value):
        near = next(n for n in range(value, 131072) if _is_prime(n))
        raise RefusedError(f"{value} is not a prime", f"the next prime is {near}")
    return TableSize(value)


def _prefix(value: object) -> PrefixLength:
    """A number of bits, or a netmask as IPv4 writes it."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 128:
            raise RefusedError(f"{value} is out of range")
        return PrefixLength(value)
    if not isinstance(value, str):
        raise RefusedError(f"{shown(value)} is neither a number nor a netmask")
    if value.isascii() and value.isdigit():
        raise RefusedError(f"{shown(value)} is a string", f"write {value}")
    try:
        mask = int(IPv4Address(value))
    except ValueError:
        raise RefusedError(f"{shown(value)} is not a netmask") from None
    ones = mask.bit_count()
    if not ones or mask != (0xFFFF_FFFF << (32 - ones)) & 0xFFFF_FFFF:
        raise RefusedError(f"{shown(value)} is not a netmask", "it has ones, and then zeros")
    return PrefixLength(ones)


def _bit_rate(value: object) -> BitRate:
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        value = int(found[1]) * _RATE_UNITS[found[2]]
    if not isinstance(value, int) or isinstance(value, bool):
        raise RefusedError(f"{shown(value)} is not a rate")
    if not 1000 <= value <= 10**12:
        raise RefusedError(f"{value} bits a second are out of range")
    return BitRate(value)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % n for n in range(2, int(number**0.5) + 1))


READERS: Final[MappingProxyType[Any, tuple[Callable[[object], Any], str]]] = MappingProxyType(
    {
        IPAddress: (_address, 'an address like "10.0.0.1" or "fd00::1"'),
        AddressRange: (_address_range, 'an address or a range like "10.0.0.201-10.0.0.209"'),
        IPInterface: (_interface, 'an address with its prefix length, like "10.0.0.254/24"'),
        IPNetwork: (_network, 'a prefix like "10.0.0.0/24"'),
        Mac: (_mac, 'an Ethernet address like "02:00:00:00:00:01"'),
        PortRange: (_port_range, 'a port 1-65535, a range like "8000-8099", or 0 for any port'),
        Endpoint: (_endpoint, 'an address and a port like "127.0.0.1:9090" or "[::1]:9090"'),
        User: (_user, "a user's name, or a number 0-4294967294"),
        SchedulerName: (
            _scheduler,
            f"{one_of(sched.names())}, or one of your own: an installed one's name, or"
            ' "package.module:Class"',
        ),
        HookCall: (_hook_call, '"package.module:Class", or the name of an installed one'),
        TableSize: (_table_size, "a prime 251-131071"),
        PrefixLength: (_prefix, 'a prefix length 1-128, or a netmask like "255.255.255.0"'),
        BitRate: (_bit_rate, 'bits a second 1000-1000000000000, or like "10mbit"'),
    }
)
"""For each type: its reader, and how the operator is told what it takes."""


def parse(kind: Any, value: object) -> Any:
    """msgspec's `dec_hook`: reads a JSON value as a type of the above. Raises RefusedError."""
    return READERS[kind][0](value)
