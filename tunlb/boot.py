"""What a worker process is told at its start, and how it is written down.

JSON in both directions, so that a supervisor and a worker, or a supervisor and its successor of
another version, understand each other or say why not. Descriptors travel beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final, TypeVar

import msgspec

from tunlb.conf import Config, Hook
from tunlb.conf.values import AddressRange, Endpoint, PortRange, TableSize, parse
from tunlb.director import DestKey

_T = TypeVar("_T")


class Applied(msgspec.Struct, kw_only=True, frozen=True):
    """A configuration, when it was applied (ms of the monotonic clock), and its dests' numbers."""

    at_ms: int
    config: Config
    ids: tuple[tuple[DestKey, int], ...]

    def numbers(self) -> Mapping[DestKey, int]:
        return dict(self.ids)


class Boot(msgspec.Struct, kw_only=True, frozen=True):
    """One worker's beginning.

    ``history`` is replayed, so that a dest that drains goes on draining; its last element is the
    running configuration. ``generations`` count how often the device of each port was made.
    ``environ`` holds what the logger reads.
    """

    worker: int
    workers: int
    secret: bytes
    seed: int
    macs: dict[str, int]
    history: tuple[Applied, ...]
    generations: tuple[int, ...]
    quiescent: bool
    environ: dict[str, str]


def encode(value: object) -> bytes:
    return msgspec.json.encode(value, enc_hook=_write)


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
    return parse(kind, value)


def decoder(kind: type[_T]) -> msgspec.json.Decoder[_T]:
    """Its decode() raises msgspec.DecodeError for what is not a ``kind`` as we know it."""
    return msgspec.json.Decoder(kind, dec_hook=_read)


# Made before a worker is forked: that takes longer than what they then decode.
BOOT: Final = decoder(Boot)
APPLIED: Final = decoder(Applied)
HOOKS: Final = decoder(tuple[Hook, ...])
