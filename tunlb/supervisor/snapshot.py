"""Conns in a file: written by a director that ends, or at an interval, and read by one that starts,
on this machine or another.

The file holds rows as they lie in the shared tables, with what they mean nothing without: which
dest has which number, and the secret that decides which worker owns a flow. So a successor places
each row in a worker's table before that worker's first packet, and the worker adopts it like the
row of a predecessor that died. What the configuration has no place for, because the dest or the
laddr is gone, is left out before; what does not fit otherwise (an lport that is taken) is refused
by the worker.

Layout: MAGIC, a line of JSON (:class:`Head`), pieces, and the end. A piece is a _PIECE (worker,
number of rows), the rows, and their extras; in a row, D_NEXT is its own number. The end is a _PIECE
of END and the CRC-32 of all before it: without it a file that was cut between two pieces would pass
for a smaller one. Words are native-endian, as in the tables; the head says which.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
import time
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, NamedTuple

import msgspec

import tunlb
from tunlb.destids import DestKey
from tunlb.ipvs.conn import (
    B_FWDMODE,
    B_PROTO,
    CONTROLLED,
    D_DEST,
    D_LAST_SEEN,
    D_NEXT,
    D_PORTS,
    D_TIMEOUT,
    EXTRA_SIZE,
    H_FLAGS,
    H_GENERATION,
    HEADER_FRESH,
    HEADER_SIZE,
    ROW_SIZE,
    TEMPLATE,
    TEMPLATE_PROTO,
    VALID,
    X_CONTROL,
)
from tunlb.ipvs.dest import FWD_FNAT, FWD_NAT64, FWD_SNAT
from tunlb.ipvs.sharding import Sharding, shard_keys
from tunlb.netif import LADDR, SHARED, Key
from tunlb.packet import IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from tunlb.shared import LAYOUT, Shared

MAGIC: Final = b"tunlb conns\n"
FORMAT: Final = 2  #: of the file, as LAYOUT is of the rows in it
HEAD_MAX: Final = 1 << 24  #: bytes of the head, which names every dest
PIECE_ROWS: Final = 4096  #: rows read, written and placed at once
END: Final = 0xFFFFFFFF  #: where a piece has its worker

_PIECE = struct.Struct("=II")
_Q = ROW_SIZE // 8  # words of a row
_D = ROW_SIZE // 4
_H = ROW_SIZE // 2
_X = EXTRA_SIZE // 4
_LADDR_HI, _LADDR_LO = 6, 7  # of the OUTBOUND key
_SPEAKS_FROM = MappingProxyType({FWD_FNAT: LADDR, FWD_NAT64: LADDR, FWD_SNAT: SHARED})
_MASK32 = 0xFFFFFFFF
_HALF = 1 << 31


class SnapshotError(Exception):
    """A file that cannot be used; the text says what was found."""


class Head(msgspec.Struct, kw_only=True, frozen=True):
    """``at_ms`` is the monotonic clock of who wrote it, ``at`` the wall clock, in seconds."""

    format: int = FORMAT
    layout: int = LAYOUT
    order: str = sys.byteorder
    version: str = tunlb.__version__
    at_ms: int
    at: float
    workers: int
    secret: bytes
    dests: tuple[tuple[DestKey, int], ...]


class Restored(NamedTuple):
    """``placed`` rows wait to be adopted, ``left_out`` fit nowhere, the time of ``expired`` was
    over; ``age_s`` is how old the file is.
    """

    placed: int
    left_out: int
    expired: int
    age_s: float


# -- writing


def write(path: Path, head: Head, tables: Sequence[Shared]) -> int:
    """Write the conns of every worker; how many. The file is whole, or the former one stays, also
    when the machine dies meanwhile.

    Workers go on: a row that is given to another conn while it is read is left out. One writer at
    a time: what a killed one left beside the file is taken away. Raises OSError.
    """
    beside = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    try:
        # It holds the secret: whoever knows that can aim at one worker, or one bucket.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(beside, flags, 0o600), "wb") as file:
            count = _write(file, head, tables)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _sync_folder(path.parent)
    return count


def _write(file: BinaryIO, head: Head, tables: Sequence[Shared]) -> int:
    count = crc = 0

    def put(data: bytes | bytearray) -> None:
        nonlocal crc
        crc = zlib.crc32(data, crc)
        file.write(data)

    put(MAGIC + msgspec.json.encode(head) + b"\n")
    for worker, shared in enumerate(tables):
        for number, rows, extras in _pieces(shared):
            put(_PIECE.pack(worker, number))
            put(rows)
            put(extras)
            count += number
    file.write(_PIECE.pack(END, crc))
    return count


def _pieces(shared: Shared) -> Iterator[tuple[int, bytearray, bytearray]]:
    """The conns of a table: how many rows, the rows, their extras."""
    memory, extras, fresh = _parts(shared)
    halves = memory.cast("H")
    for first in range(0, fresh, PIECE_ROWS):
        last = min(first + PIECE_ROWS, fresh)
        # A generation that is the same before and after says that the copy is of one conn.
        before = halves[first * _H + H_GENERATION : last * _H : _H].tolist()
        rows = bytearray(memory[first * ROW_SIZE : last * ROW_SIZE])
        more = bytearray(extras[first * EXTRA_SIZE : last * EXTRA_SIZE])
        after = halves[first * _H + H_GENERATION : last * _H : _H].tolist()
        still = halves[first * _H + H_FLAGS : last * _H : _H].tolist()
        copied = memoryview(rows).cast("H")[H_FLAGS::_H].tolist()
        kept = [
            at
            for at, (old, new, flags) in enumerate(zip(before, after, copied, strict=True))
            if flags & VALID and old == new and still[at] & VALID
        ]
        if len(kept) < last - first:
            rows, more = _gather(rows, ROW_SIZE, kept), _gather(more, EXTRA_SIZE, kept)
        if kept:
            # The chain means nothing here, and other rows may name this one by its number.
            numbers = memoryview(array("I", [first + at for at in kept]))
            memoryview(rows).cast("I")[D_NEXT::_D] = numbers
            yield len(kept), rows, more


def _gather(data: bytearray, size: int, kept: Sequence[int]) -> bytearray:
    return bytearray().join([data[at * size : (at + 1) * size] for at in kept])


def _sync_folder(folder: Path) -> None:
    """Until this, a machine that dies may come back with the former file."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _parts(shared: Shared) -> tuple[memoryview, memoryview, int]:
    """Rows, extras, and how many rows were ever used."""
    fresh = min(shared.conns[:HEADER_SIZE].cast("Q")[HEADER_FRESH], shared.conn_max)
    end = HEADER_SIZE + ROW_SIZE * shared.conn_max
    return shared.conns[HEADER_SIZE:end], shared.conns[end:], fresh


# -- reading


class Source:
    """A file that is read, and the CRC-32 of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._crc = 0

    def read(self, size: int) -> bytearray:
        data = bytearray(self._file.read(size))
        self._crc = zlib.crc32(data, self._crc)
        return data

    def head(self) -> Head:
        """What comes first. Raises SnapshotError, OSError."""
        if self.read(len(MAGIC)) != MAGIC:
            raise SnapshotError("it was not written by tunlb")
        line = self._file.readline(HEAD_MAX)
        self._crc = zlib.crc32(line, self._crc)
        try:
            found = msgspec.json.decode(line)
            layout, order = found["layout"], found["order"]
            number = found.get("format", 1)
            if (number, layout, order) != (FORMAT, LAYOUT, sys.byteorder):
                raise SnapshotError(
                    f"tunlb {found['version']} wrote it in format {number}, layout {layout},"
                    f" {order}-endian; this is tunlb {tunlb.__version__}, format {FORMAT},"
                    f" layout {LAYOUT}, {sys.byteorder}-endian"
                )
            head = msgspec.convert(found, Head)
        except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as error:
            raise SnapshotError(f"its head cannot be read: {error}") from None
        if head.workers < 1:
            raise SnapshotError(f"its head says {head.workers} workers")
        return head

    def pieces(self) -> Iterator[tuple[int, int, bytearray, bytearray]]:
        """Worker, number of rows, rows and extras of each piece. Raises SnapshotError, at the
        latest behind the last of them, when the file is not as it was written.
        """
        while True:
            crc = self._crc
            head = self.read(_PIECE.size)
            if len(head) < _PIECE.size:
                raise SnapshotError("it is cut short")
            worker, count = _PIECE.unpack(head)
            if worker == END:
                if count != crc:
                    raise SnapshotError("it is damaged: its checksum is wrong")
                if self._file.read(1):
                    raise SnapshotError("it is damaged: it goes on behind its end")
                return
            if not 0 < count <= PIECE_ROWS:
                raise SnapshotError(f"it is damaged: a piece of {count} rows")
            rows, extras = self.read(count * ROW_SIZE), self.read(count * EXTRA_SIZE)
            if len(extras) < count * EXTRA_SIZE:
                raise SnapshotError("it is cut short")
            yield worker, count, rows, extras


class Reader:
    """Places the rows of a file in tables that nobody uses yet. ``numbers`` are the dests',
    ``laddrs`` the kinds of the addresses that conns may speak from (LADDR, SHARED).
    """

    def __init__(
        self,
        head: Head,
        tables: Sequence[Shared],
        numbers: Mapping[DestKey, int],
        laddrs: Mapping[Key, int],
        now_ms: int,
        now: float,
    ) -> None:
        self.head = head
        self.age_s = max(0.0, now - head.at)
        self._now_ms = now_ms
        self._numbers = {old: numbers.get(key) for key, old in head.dests}
        self._laddrs = laddrs
        self._sharding = Sharding(len(tables), 0, shard_keys(head.secret))
        self._tables = tables
        self._parts = [_parts(shared) for shared in tables]
        self._fresh = [0] * len(tables)
        self._expired = 0
        self._left_out = 0
        # Of the worker whose pieces are read: where its templates are now, and who names one.
        self._templates: dict[int, tuple[int, int]] = {}
        self._controlled: list[tuple[int, int]] = []

    def place(self, source: Source) -> Restored:
        """Raises SnapshotError for a file that is not whole; then nothing counts as placed."""
        before = -1
        for worker, count, rows, extras in source.pieces():
            if worker != before:
                self._control()
                before = worker
            self._place(worker, count, rows, extras)
        self._control()
        for shared, fresh in zip(self._tables, self._fresh, strict=True):
            shared.conns[:HEADER_SIZE].cast("Q")[HEADER_FRESH] = fresh
        return Restored(sum(self._fresh), self._left_out, self._expired, self.age_s)

    def _place(self, worker: int, count: int, rows: bytearray, extras: bytearray) -> None:
        words, flags = memoryview(rows).cast("I"), memoryview(rows).cast("H")[H_FLAGS::_H].tolist()
        dests, timeouts = words[D_DEST::_D].tolist(), words[D_TIMEOUT::_D].tolist()
        seen, names = words[D_LAST_SEEN::_D].tolist(), words[D_NEXT::_D].tolist()
        homeless = self._homeless(rows)
        kept: dict[int, list[int]] = {}
        older_ms = round(self.age_s * 1000)
        for at in range(count):
            number = self._numbers.get(dests[at])
            # Negative for what was seen after the head was made.
            age = ((self.head.at_ms - seen[at] + _HALF) & _MASK32) - _HALF + older_ms
            if not flags[at] & TEMPLATE and age >= timeouts[at] > 0:
                self._expired += 1
                continue
            owner = self._owner(worker, rows, at)
            place = self._fresh[owner]
            if number is None or at in homeless or place == self._tables[owner].conn_max:
                self._left_out += 1
                continue
            words[at * _D + D_DEST] = number
            # The rows' clock has 32 bits: what is older than half of that would look young again.
            words[at * _D + D_LAST_SEEN] = (self._now_ms - max(0, min(age, _HALF))) & _MASK32
            if flags[at] & TEMPLATE:
                self._templates[names[at]] = owner, place
            elif flags[at] & CONTROLLED:
                self._controlled.append((owner, place))
            self._fresh[owner] = place + 1
            kept.setdefault(owner, []).append(at)
        for owner, found in kept.items():
            memory, more, _ = self._parts[owner]
            end = self._fresh[owner]
            first = end - len(found)
            whole = len(found) == count
            memory[first * ROW_SIZE : end * ROW_SIZE] = (
                rows if whole else _gather(rows, ROW_SIZE, found)
            )
            more[first * EXTRA_SIZE : end * EXTRA_SIZE] = (
                extras if whole else _gather(extras, EXTRA_SIZE, found)
            )

    def _homeless(self, rows: bytearray) -> set[int]:
        """Which rows speak from an address that is none of ours any more, or is used for something
        else: nobody would bring their worker the answers.
        """
        modes = rows[B_FWDMODE::ROW_SIZE]
        if not any(mode in modes for mode in _SPEAKS_FROM):
            return set()
        words = memoryview(rows).cast("Q")
        los, his = words[_LADDR_LO::_Q].tolist(), words[_LADDR_HI::_Q].tolist()
        gone = {
            (mode, hi, lo)
            for mode, hi, lo in set(zip(modes, his, los, strict=True))
            if mode in _SPEAKS_FROM and self._laddrs.get((hi, lo)) != _SPEAKS_FROM[mode]
        }
        if not gone:
            return set()
        flags = memoryview(rows).cast("H")[H_FLAGS::_H].tolist()
        return {
            at
            for at, found in enumerate(zip(modes, his, los, strict=True))
            if found in gone and not flags[at] & TEMPLATE
        }

    def _control(self) -> None:
        """Rows name their template by its number, which is another one now."""
        for owner, at in self._controlled:
            memory, extras, _ = self._parts[owner]
            word = extras.cast("I")
            template = self._templates.get(word[at * _X + X_CONTROL])
            if template is not None and template[0] == owner:
                word[at * _X + X_CONTROL] = template[1]
            else:
                memory.cast("H")[at * _H + H_FLAGS] &= ~CONTROLLED & 0xFFFF
        self._controlled.clear()
        self._templates.clear()

    def _owner(self, worker: int, rows: bytearray, at: int) -> int:
        """The worker whose packets these are now. With as many workers as before it is the same."""
        count = len(self._tables)
        if count == self.head.workers:
            return worker % count
        base = at * ROW_SIZE
        saddr_hi, saddr, daddr_hi, daddr = struct.unpack_from("=4Q", rows, base)
        ports: int = struct.unpack_from("=I", rows, base + 4 * D_PORTS)[0]
        proto = rows[base + B_PROTO]
        if proto == TEMPLATE_PROTO:  # to its home: see ipvs/persist.py
            return int(self._sharding.by_endpoint(saddr_hi, saddr, ports & 0xFFFF))
        if proto not in (IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP):
            return 0
        if rows[base + B_FWDMODE] == FWD_SNAT:
            return int(self._sharding.by_endpoint(daddr_hi, daddr, ports & 0xFFFF))
        return int(self._sharding.by_endpoint(saddr_hi, saddr, ports >> 16))


def restore(
    path: Path,
    tables: Sequence[Shared],
    numbers: Mapping[DestKey, int],
    laddrs: Mapping[Key, int],
    now_ms: int,
) -> tuple[Restored, bytes]:
    """Place what the file has; also the secret that its rows go by, which the workers need.

    Raises SnapshotError, or OSError (FileNotFoundError: there is none), with nothing placed.
    """
    # Not blocking: a FIFO would have us wait for who writes to it.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        _trust(os.fstat(fd))
        source = Source(file)
        head = source.head()
        reader = Reader(head, tables, numbers, laddrs, now_ms, time.time())
        return reader.place(source), head.secret


def _trust(found: os.stat_result) -> None:
    """Conns decide where packets go: they are taken from nobody but our own user, or root."""
    if not stat.S_ISREG(found.st_mode):
        raise SnapshotError("it is no regular file")
    if found.st_uid not in (0, os.geteuid()):
        raise SnapshotError(f"it belongs to another user (uid {found.st_uid})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise SnapshotError(f"others may write to it (mode {mode:04o}): chmod 600")
