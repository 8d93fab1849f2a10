"""Network interfaces as the inside sees them, and the addresses that they own.

A :class:`Netif` is a port of the configuration or a VLAN sub-port of one. It knows names and
numbers, never a file descriptor: ``queue`` is the index of the port whose queue carries its frames
(DPVS: ``netif_port``).
"""

from __future__ import annotations

from collections.abc import Iterator

import cython

ADDRESS = 1  #: one of the port's own addresses
VIP = 2  #: a service's virtual address
LADDR = 3  #: a local address that fnat speaks to dests with
HOST_SIDE = 4  #: an address that only the host behind a port has
SHARED = 5  #: an address that inside hosts go out by (snat)

Key = tuple[int, int]  #: an address as (hi, lo), both unsigned 64 bits
AddressKey = int | Key  #: see :func:`address_key`
NeighKey = int | tuple[int, int, int]  #: see :func:`neigh_key`

_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)


def address_key(hi: cython.ulonglong, lo: cython.ulonglong) -> AddressKey:
    """An address as the key of a dict: of an IPv4 one a number, which is found in a third of the
    instructions of a tuple.
    """
    if hi == 0:
        return lo
    return (hi, lo)


def neigh_key(index: cython.ulonglong, hi: cython.ulonglong, lo: cython.ulonglong) -> NeighKey:
    """Where an address on the netif with this index is found; as :func:`address_key`."""
    if hi == 0 and lo >> 32 == 0xFFFF:
        return (index << 32) | (lo & _MASK32)
    return (index, hi, lo)


def address_of(key: AddressKey) -> Key:
    """What :func:`address_key` made a key of."""
    return (0, key) if isinstance(key, int) else key


class Netif:
    """One L2 (TAP, VLAN) or L3 (TUN) interface.

    ``mac`` is an unsigned 48-bit integer, 0 on a TUN; ``mtu`` counts IP bytes; ``vid`` is 0 when
    untagged. ``host`` is the TAP by which the host takes part on this port; its own ``port`` is
    this one, and so is its MAC address. ``mirror``: the host gets a copy of every frame.
    """

    def __init__(
        self,
        index: int,
        name: str,
        mac: int,
        mtu: int = 1500,
        *,
        tun: bool = False,
        vid: int = 0,
        queue: int | None = None,
        port: Netif | None = None,
    ) -> None:
        self.index = index
        self.name = name
        self.mac = mac
        self.mac_bytes = mac.to_bytes(6, "big")
        self.mtu = mtu
        self.tun = tun
        self.vid = vid
        self.queue = index if queue is None else queue
        self.vlans: dict[int, Netif] = {}
        self.port = port
        self.host: Netif | None = None
        self.mirror = False
        # Nobody is asked for: one neighbour stands for all.
        self.noarp = tun or port is not None
        # Its frames do not simply go to the director, see tap.Drain.
        self.detour = port is not None

    def __repr__(self) -> str:
        return f"<Netif {self.index} {self.name}>"


NOWHERE = Netif(-1, "nowhere", 0)  #: where a packet is before a port has read it


class Addresses:
    """Every address that is ours, and on which interface it lives.

    An address on a TAP is answered for by ARP or ND on that interface only.
    """

    def __init__(self) -> None:
        self._owner: dict[AddressKey, tuple[Netif, int]] = {}
        self._primary: dict[tuple[int, int], Key] = {}
        self._hosted: set[AddressKey] = set()

    def add(self, netif: Netif, af: int, hi: int, lo: int, kind: int) -> None:
        # A port's own address wins over a VIP of the same value: it was there first.
        self._owner.setdefault(address_key(hi, lo), (netif, kind))
        if kind == ADDRESS:
            self._primary.setdefault((netif.index, af), (hi, lo))

    def give_host(self, hi: int, lo: int) -> None:
        """The host has this address as well: what nothing here takes is for it."""
        self._hosted.add(address_key(hi, lo))

    def hosted(self, hi: cython.ulonglong, lo: cython.ulonglong) -> cython.bint:
        return address_key(hi, lo) in self._hosted

    def is_local(self, hi: cython.ulonglong, lo: cython.ulonglong) -> cython.bint:
        return address_key(hi, lo) in self._owner

    def kind(self, hi: cython.ulonglong, lo: cython.ulonglong) -> cython.int:
        """ADDRESS, VIP, LADDR, HOST_SIDE or SHARED; 0 when the address is not ours."""
        found = self._owner.get(address_key(hi, lo))
        return 0 if found is None else found[1]

    def owned_by(self, netif: Netif, hi: cython.ulonglong, lo: cython.ulonglong) -> cython.bint:
        found = self._owner.get(address_key(hi, lo))
        return found is not None and found[0] is netif

    def primary(self, netif: Netif, af: int) -> Key | None:
        """The first own address of ``netif``, else any own address of that family, else any VIP."""
        found = self._primary.get((netif.index, af))
        if found is not None:
            return found
        for (_, family), own in self._primary.items():
            if family == af:
                return own
        for key, (_, kind) in self._owner.items():
            hi, lo = address_of(key)
            if kind == VIP and (4 if hi == 0 and lo >> 32 == 0xFFFF else 6) == af:
                return (hi, lo)
        return None

    def items(self) -> Iterator[tuple[Netif, int, int, int]]:
        """(netif, hi, lo, kind) of every address."""
        for key, (netif, kind) in self._owner.items():
            yield netif, *address_of(key), kind
