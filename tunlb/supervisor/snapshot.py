"""Conns in a file: written by a director that ends, or at an interval, and read by one that starts,
on this machine or another.

The file holds rows as they lie in the shared tables, with what they mean nothing without: which
dest has which number, and the secret that decides which worker owns a flow. So a successor places
each row in a worker's table before that worker's first packet, and the worker adopts it like the
row of a predecessor that died: whatever does not fit (a dest that is gone, an lport that is taken)
is refused there.

Layout: MAGIC, a line of JSON (:class:`Head`), then for each worker a _BLOCK and its rows, row and
extra together. Words are native-endian, as in the tables; the head says which.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

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
    EXTRA_SIZE,
    H_FLAGS,
    HEADER_FRESH,
    HEADER_SIZE,
    ROW_SIZE,
    TEMPLATE_PROTO,
    VALID,
    X_CONTROL,
)
from tunlb.ipvs.dest import FWD_SNAT
from tunlb.ipvs.sharding import Sharding, shard_keys
from tunlb.packet import IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from tunlb.shared import LAYOUT, Shared

MAGIC = b"tunlb conns\n"
HEAD_MAX = 1 << 24  #: bytes of the head, which names every dest

_BLOCK = struct.Struct("=II")  # worker, rows
_ROW = ROW_SIZE + EXTRA_SIZE
_CHUNK = 4096  # rows written at once
_MASK32 = 0xFFFFFFFF


class SnapshotError(Exception):
    """A file that cannot be used; the text says what was found."""


class Head(msgspec.Struct, kw_only=True, frozen=True):
    """``at_ms`` is the monotonic clock of who wrote it, ``at`` the wall clock, in seconds."""

    layout: int = LAYOUT
    order: str = sys.byteorder
    version: str = tunlb.__version__
    at_ms: int
    at: float
    workers: int
    secret: bytes
    dests: tuple[tuple[DestKey, int], ...]


class Restored(NamedTuple):
    """``placed`` rows wait to be adopted, ``left_out`` fit nowhere; ``age_s`` is how old the file
    is.
    """

    placed: int
    left_out: int
    age_s: float


def write(path: Path, head: Head, tables: Sequence[Shared]) -> int:
    """Write the conns of every worker; how many. The file is whole, or the former one stays.

    Workers may go on meanwhile: a row that changes while it is read is refused by who adopts it.
    Raises OSError.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # It holds the secret: whoever knows that can aim at one worker, or one bucket.
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(MAGIC + msgspec.json.encode(head) + b"\n")
            count = sum(_write_table(file, worker, shared) for worker, shared in enumerate(tables))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    return count


def _write_table(file: BinaryIO, worker: int, shared: Shared) -> int:
    rows, extras, fresh = _parts(shared)
    flags = rows.cast("H")
    at = file.tell()
    file.write(_BLOCK.pack(worker, 0))
    count = 0
    chunk = bytearray()
    for row in range(fresh):
        if not flags[row * 64 + H_FLAGS] & VALID:
            continue
        start = len(chunk)
        chunk += rows[row * ROW_SIZE : (row + 1) * ROW_SIZE]
        chunk += extras[row * EXTRA_SIZE : (row + 1) * EXTRA_SIZE]
        # The chain means nothing here, and other rows may name this one by its number.
        struct.pack_into("=I", chunk, start + 4 * D_NEXT, row)
        count += 1
        if count % _CHUNK == 0:
            file.write(chunk)
            chunk.clear()
    file.write(chunk)
    end = file.tell()
    file.seek(at)
    file.write(_BLOCK.pack(worker, count))
    file.seek(end)
    return count


def _parts(shared: Shared) -> tuple[memoryview, memoryview, int]:
    """Rows, extras, and how many rows were ever used."""
    fresh = min(shared.conns[:HEADER_SIZE].cast("Q")[HEADER_FRESH], shared.conn_max)
    end = HEADER_SIZE + ROW_SIZE * shared.conn_max
    return shared.conns[HEADER_SIZE:end], shared.conns[end:], fresh


def read_head(file: BinaryIO) -> Head:
    """The head of a file; the rows follow. Raises SnapshotError, OSError."""
    if file.read(len(MAGIC)) != MAGIC:
        raise SnapshotError("it was not written by tunlb")
    line = file.readline(HEAD_MAX)
    try:
        found = msgspec.json.decode(line)
        layout, order = found["layout"], found["order"]
        if (layout, order) != (LAYOUT, sys.byteorder):
            raise SnapshotError(
                f"tunlb {found['version']} wrote it in layout {layout}, {order}-endian; "
                f"this is {tunlb.__version__}, layout {LAYOUT}, {sys.byteorder}-endian"
            )
        head = msgspec.convert(found, Head)
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise SnapshotError(f"its head cannot be read: {error}") from None
    if head.workers < 1:
        raise SnapshotError(f"its head says {head.workers} workers")
    return head


class Reader:
    """Places the rows of a file in tables that nobody uses yet. ``numbers`` are the dests'."""

    def __init__(
        self,
        head: Head,
        tables: Sequence[Shared],
        numbers: Mapping[DestKey, int],
        now_ms: int,
        now: float,
    ) -> None:
        self.head = head
        self.tables = tables
        self.numbers = {old: numbers.get(key) for key, old in head.dests}
        self.age_s = max(0.0, now - head.at)
        # What the former clock called at_ms is so long ago on ours.
        self._shift = now_ms - round(self.age_s * 1000) - head.at_ms
        self._sharding = Sharding(len(tables), 0, shard_keys(head.secret))
        self._fresh = [0] * len(tables)

    def place(self, file: BinaryIO) -> Restored:
        """Raises SnapshotError when the file ends too early; then nothing counts as placed."""
        left_out = 0
        for worker, rows in _blocks(file):
            left_out += self._place_block(worker, rows)
        for shared, fresh in zip(self.tables, self._fresh, strict=True):
            shared.conns[:HEADER_SIZE].cast("Q")[HEADER_FRESH] = fresh
        return Restored(sum(self._fresh), left_out, self.age_s)

    def _place_block(self, worker: int, rows: Iterator[bytearray]) -> int:
        left_out = 0
        places: dict[int, tuple[int, int]] = {}
        controlled: list[tuple[int, int]] = []
        for row in rows:
            number = self.numbers.get(row_word(row, D_DEST))
            owner = self._owner(worker, row)
            shared = self.tables[owner]
            at = self._fresh[owner]
            if number is None or at == shared.conn_max:
                left_out += 1
                continue
            places[row_word(row, D_NEXT)] = (owner, at)
            put_word(row, D_DEST, number)
            put_word(row, D_LAST_SEEN, (row_word(row, D_LAST_SEEN) + self._shift) & _MASK32)
            memory, extras, _ = _parts(shared)
            memory[at * ROW_SIZE : (at + 1) * ROW_SIZE] = row[:ROW_SIZE]
            extras[at * EXTRA_SIZE : (at + 1) * EXTRA_SIZE] = row[ROW_SIZE:]
            self._fresh[owner] += 1
            if struct.unpack_from("=H", row, 2 * H_FLAGS)[0] & CONTROLLED:
                controlled.append((owner, at))
        for owner, at in controlled:
            self._control(owner, at, places)
        return left_out

    def _control(self, owner: int, at: int, places: Mapping[int, tuple[int, int]]) -> None:
        """Rows name their template by its number, which is another one now."""
        memory, extras, _ = _parts(self.tables[owner])
        word = extras.cast("I")
        template = places.get(word[at * 16 + X_CONTROL])
        if template is not None and template[0] == owner:
            word[at * 16 + X_CONTROL] = template[1]
        else:
            memory.cast("H")[at * 64 + H_FLAGS] &= ~CONTROLLED & 0xFFFF

    def _owner(self, worker: int, row: bytearray) -> int:
        """The worker whose packets these are now. With as many workers as before it is the same."""
        count = len(self.tables)
        if count == self.head.workers:
            return worker % count
        saddr_hi, saddr, daddr_hi, daddr = struct.unpack_from("=4Q", row)
        ports = row_word(row, D_PORTS)
        if row[B_PROTO] == TEMPLATE_PROTO:  # to its home: see ipvs/persist.py
            return int(self._sharding.by_endpoint(saddr_hi, saddr, ports & 0xFFFF))
        if row[B_PROTO] not in (IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP):
            return 0
        if row[B_FWDMODE] == FWD_SNAT:
            return int(self._sharding.by_endpoint(daddr_hi, daddr, ports & 0xFFFF))
        return int(self._sharding.by_endpoint(saddr_hi, saddr, ports >> 16))


def _blocks(file: BinaryIO) -> Iterator[tuple[int, Iterator[bytearray]]]:
    while True:
        block = file.read(_BLOCK.size)
        if not block:
            return
        if len(block) < _BLOCK.size:
            raise SnapshotError("it ends in the middle of a worker's head")
        worker, count = _BLOCK.unpack(block)
        yield worker, _rows(file, count)


def _rows(file: BinaryIO, count: int) -> Iterator[bytearray]:
    for _ in range(count):
        row = bytearray(file.read(_ROW))
        if len(row) < _ROW:
            raise SnapshotError("it ends in the middle of a row")
        yield row


def row_word(row: bytearray, word: int) -> int:
    """A word of 4 bytes of a row, numbered as in ipvs/conn.py."""
    found: int = struct.unpack_from("=I", row, 4 * word)[0]
    return found


def put_word(row: bytearray, word: int, value: int) -> None:
    struct.pack_into("=I", row, 4 * word, value)


def restore(
    path: Path, tables: Sequence[Shared], numbers: Mapping[DestKey, int], now_ms: int
) -> tuple[Restored, bytes]:
    """Place what the file has; also the secret that its rows go by, which the workers need.

    Raises SnapshotError, or OSError (FileNotFoundError: there is none), with nothing placed.
    """
    with open(path, "rb") as file:
        head = read_head(file)
        return Reader(head, tables, numbers, now_ms, time.time()).place(file), head.secret
