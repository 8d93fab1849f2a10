"""What a worker process is told at its start, and how it is written down.

JSON in both directions, so that a supervisor and a worker, or a supervisor and its successor of
another version, understand each other or say why not. Descriptors travel beside it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from tunlb.conf import Acl, Config, Dest, Hook, Neigh, Route, Service
from tunlb.conf.values import AddressRange, Endpoint, IPAddress, PortRange, TableSize, parse
from tunlb.destids import DestKey, dest_key, service_key
from tunlb.ipvs.sched import module_of

PIECE = 16  #: lines of a configuration decoded at once

_T = TypeVar("_T")


class Applied(msgspec.Struct, kw_only=True, frozen=True):
    """A configuration, when it was applied (ms of the monotonic clock), and its dests' numbers."""

    at_ms: int
    config: Config
    ids: tuple[tuple[DestKey, int], ...]

    def numbers(self) -> Mapping[DestKey, int]:
        return dict(self.ids)


class Arrived(NamedTuple):
    """An Applied as it came out of its pieces; ``numbers`` are its dests'."""

    at_ms: int
    config: Config
    numbers: Mapping[DestKey, int]


class _Piece(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Some of an Applied that is too large to be decoded between two bursts.

    The first one has the ``head``, with nothing of what may be many. ``service`` begins a service
    without its dests, ``number`` is its own, -1: it has none; ``dests``, each with its number, are
    some of the service begun last.
    """

    head: Applied | None = None
    routes: tuple[Route, ...] = ()
    neighs: tuple[Neigh, ...] = ()
    service: Service | None = None
    number: int = -1
    dests: tuple[tuple[Dest, int], ...] = ()
    acls: tuple[Acl, ...] = ()


class Calls(msgspec.Struct, kw_only=True, frozen=True):
    """Users' code that a configuration names: hooks, and schedulers as `sched.find` takes them."""

    hooks: tuple[Hook, ...] = ()
    schedulers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.hooks or self.schedulers)

    def modules(self) -> dict[str, str]:
        """The modules to import, each with what names it first."""
        found: dict[str, str] = {}
        for line in self.hooks:
            found.setdefault(line.call.partition(":")[0], f"hook {line.call}")
        for name in self.schedulers:
            found.setdefault(name.partition(":")[0], f"scheduler {name}")
        return found

    def without(self, known: Calls) -> Calls:
        """What a reload brings, beside the configuration that runs. Hooks wait for a restart."""
        return Calls(schedulers=tuple(sorted({*self.schedulers} - {*known.schedulers})))


def calls_of(config: Config) -> Calls:
    named = {service.scheduler for service in config.services}
    return Calls(hooks=config.hooks, schedulers=tuple(sorted(filter(module_of, named))))


class Boot(msgspec.Struct, kw_only=True, frozen=True):
    """One worker's beginning.

    ``history`` is replayed, so that a dest that drains goes on draining; its last element is the
    running configuration. ``generations`` count how often the device of each port was made.
    ``active`` are the ports that took the place of the one that they are a backup of.
    ``environ`` holds what the logger reads.
    """

    worker: int
    workers: int
    secret: bytes
    seed: int
    macs: dict[str, int]
    history: tuple[Applied, ...]
    generations: tuple[int, ...]
    active: tuple[int, ...] = ()
    quiescent: bool
    environ: dict[str, str]


def encode(value: object) -> bytes:
    return msgspec.json.encode(value, enc_hook=_write)


def encode_pieces(applied: Applied) -> bytes:
    """A line for each piece."""
    return b"".join(encode(piece) + b"\n" for piece in _pieces(applied))


def _pieces(applied: Applied) -> Iterator[_Piece]:
    config, numbers = applied.config, applied.numbers()
    bare = msgspec.structs.replace(config, routes=(), neighs=(), services=(), acls=())
    yield _Piece(head=msgspec.structs.replace(applied, config=bare, ids=()))
    most = max(len(config.routes), len(config.neighs), len(config.acls))
    for at in range(0, most, PIECE):
        part = slice(at, at + PIECE)
        yield _Piece(routes=config.routes[part], neighs=config.neighs[part], acls=config.acls[part])
    for service in config.services:
        begun: Service | None = msgspec.structs.replace(service, dests=())
        own = service_key(service)
        number = -1 if own is None else numbers[own]
        for at in range(0, max(1, len(service.dests)), PIECE):
            dests = service.dests[at : at + PIECE]
            numbered = tuple((dest, numbers[dest_key(service, dest)]) for dest in dests)
            yield _Piece(service=begun, number=number, dests=numbered)
            begun, number = None, -1


def decode_pieces(lines: Iterable[bytes]) -> Generator[None, None, Arrived]:
    """What `encode_pieces` wrote, decoded a line at a time. Raises msgspec.DecodeError."""
    head: Applied | None = None
    routes: list[Route] = []
    neighs: list[Neigh] = []
    services: list[Service] = []
    acls: list[Acl] = []
    dests: list[Dest] = []
    numbers: dict[DestKey, int] = {}
    for line in lines:
        piece = _PIECES.decode(line)
        head = head or piece.head
        routes += piece.routes
        neighs += piece.neighs
        acls += piece.acls
        if piece.service is not None:
            _close(services, dests)
            services.append(piece.service)
            own = service_key(piece.service)
            if own is not None:
                numbers[own] = piece.number
        for dest, number in piece.dests:
            dests.append(dest)
            numbers[dest_key(services[-1], dest)] = number
        yield
    _close(services, dests)
    if head is None:
        raise msgspec.DecodeError("a configuration without a head")
    config = msgspec.structs.replace(
        head.config,
        routes=tuple(routes),
        neighs=tuple(neighs),
        services=tuple(services),
        acls=tuple(acls),
    )
    return Arrived(head.at_ms, config, numbers)


def _close(services: list[Service], dests: list[Dest]) -> None:
    """The service begun last has these dests."""
    if dests:
        services[-1] = msgspec.structs.replace(services[-1], dests=tuple(dests))
        dests.clear()


def _write(value: object) -> object:
    return int(value) if isinstance(value, int) else str(value)


def _read(kind: Any, value: Any) -> Any:
    # msgspec writes a subclass of tuple as an array, which is not how a configuration has it.
    if kind is PortRange:
        return PortRange(*value)
    if kind is AddressRange:
        return AddressRange(ip_address(value[0]), ip_address(value[1]))
    if kind is Endpoint:
        return Endpoint(ip_address(value[0]), value[1])
    if kind is TableSize:
        return TableSize(value)
    if kind is IPAddress:
        return ip_address(value)  # also the unspecified one, of a dest that no line names
    return parse(kind, value)


def decoder(kind: type[_T]) -> msgspec.json.Decoder[_T]:
    """Its decode() raises msgspec.DecodeError for what is not a ``kind`` as we know it."""
    return msgspec.json.Decoder(kind, dec_hook=_read)


# Made before a worker is forked: that takes longer than what they then decode.
BOOT: Final = decoder(Boot)
_PIECES: Final = decoder(_Piece)
CALLS: Final = decoder(Calls)
