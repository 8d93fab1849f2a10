"""The memory that a worker shares with its supervisor and leaves to its successor.

Two memfds a worker: ``conns`` holds the conn table, ``stats`` the counters, what dests count, the
neighbours, and the conn rates of sources. Workers read in each other's ``stats`` what dests count,
and all of them use the rates of the first one. Both begin with a header that says who wrote them
and how they are laid out, because a successor may be another version of tunlb: what it would
misread it must refuse.

Pages cost memory once they are used.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from typing import NamedTuple

import tunlb
from tunlb import counters
from tunlb.destids import DEST_IDS
from tunlb.ipvs.conn import HEADER_SIZE, table_size
from tunlb.ipvs.dest import STATS_SIZE
from tunlb.ipvs.rates import RATES_SIZE
from tunlb.neigh import NEIGH_ROWS_SIZE

#: The layout of all that is shared. Raise it with every change of a row, a word's meaning or the
#: size of a part; counters and gauges that are only appended do not count.
LAYOUT = 3

_MAGIC = b"tunlb\0\0\1"
_NATIVE = 0x01020304  # reads otherwise on a machine of the other byte order
_HEADER = struct.Struct("=8sIIQ16s")  # magic, byte order, layout, conn_max, version

_COUNTERS_AT = HEADER_SIZE
_DESTS_AT = _COUNTERS_AT + HEADER_SIZE
_NEIGHS_AT = _DESTS_AT + DEST_IDS * STATS_SIZE
_RATES_AT = _NEIGHS_AT + NEIGH_ROWS_SIZE
_STATS_END = _RATES_AT + RATES_SIZE


class LayoutError(Exception):
    """Shared memory that this version of tunlb must not read; the text says what it found."""


class Header(NamedTuple):
    """Who wrote a memfd."""

    layout: int
    conn_max: int
    version: str


def read_header(fd: int) -> Header:
    """The header of a memfd; LayoutError when it has none that we know."""
    data = os.pread(fd, _HEADER.size, 0)
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise LayoutError("this memory was not written by tunlb")
    _, order, layout, conn_max, version = _HEADER.unpack(data)
    if order != _NATIVE:
        raise LayoutError("this memory was written on a machine of another byte order")
    return Header(layout, conn_max, version.rstrip(b"\0").decode("ascii", "replace"))


class Stats(NamedTuple):
    """The parts of a ``stats`` memfd."""

    counters: memoryview
    dests: memoryview
    neighs: memoryview
    rates: memoryview


def map_stats(fd: int) -> Stats:
    """Map a ``stats`` memfd, whose header somebody has checked."""
    stats = memoryview(mmap.mmap(fd, _STATS_END))
    return Stats(
        stats[_COUNTERS_AT : _COUNTERS_AT + counters.SIZE],
        stats[_DESTS_AT:_NEIGHS_AT],
        stats[_NEIGHS_AT:_RATES_AT],
        stats[_RATES_AT:_STATS_END],
    )


class Shared:
    """One worker's memory, mapped: :meth:`create` or :meth:`attach`.

    ``conns`` is a ConnTable's buffer, ``counters`` a Counters', ``dests``, ``neighs`` and ``rates``
    are a Director's ``dest_stats``, ``neigh_rows`` and ``rates``.
    """

    def __init__(self, conns_fd: int, stats_fd: int, conn_max: int) -> None:
        self.conns_fd = conns_fd
        self.stats_fd = stats_fd
        self.conn_max = conn_max
        self.conns = memoryview(mmap.mmap(conns_fd, table_size(conn_max)))
        self.counters, self.dests, self.neighs, self.rates = map_stats(stats_fd)

    @classmethod
    def create(cls, worker: int, conn_max: int) -> Shared:
        """New memory for a worker; the caller owns both descriptors."""
        stats_fd = _make(f"tunlb-stats-{worker}", _STATS_END, conn_max)
        try:
            conns_fd = _make(f"tunlb-conns-{worker}", table_size(conn_max), conn_max)
            return cls(conns_fd, stats_fd, conn_max)
        except BaseException:
            os.close(stats_fd)
            raise

    @classmethod
    def attach(cls, conns_fd: int, stats_fd: int) -> Shared:
        """The memory that a former worker used; LayoutError when it must not be read."""
        conns, stats = read_header(conns_fd), read_header(stats_fd)
        for header in (conns, stats):
            if header.layout != LAYOUT:
                raise LayoutError(
                    f"the tables were written by tunlb {header.version} in layout {header.layout}, "
                    f"and tunlb {tunlb.__version__} reads layout {LAYOUT}"
                )
        wanted = (table_size(conns.conn_max), _STATS_END)
        found = (os.fstat(conns_fd).st_size, os.fstat(stats_fd).st_size)
        if found != wanted:
            raise LayoutError(f"the tables have {found} bytes where layout {LAYOUT} has {wanted}")
        return cls(conns_fd, stats_fd, conns.conn_max)

    def discard_conns(self, worker: int) -> Shared:
        """The same worker's memory with an empty conn table; the former table's descriptor stays
        open. Counters go on, and others see in the same place as before what dests count.
        """
        conns_fd = _make(f"tunlb-conns-{worker}", table_size(self.conn_max), self.conn_max)
        self.dests[:] = bytes(len(self.dests))
        self.neighs[:] = bytes(len(self.neighs))
        return Shared(conns_fd, self.stats_fd, self.conn_max)

    def close_fds(self) -> None:
        """Close both descriptors; the memory stays mapped."""
        for fd in (self.conns_fd, self.stats_fd):
            with contextlib.suppress(OSError):
                os.close(fd)


def _make(name: str, size: int, conn_max: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        # A worker that could shrink it would kill the supervisor that reads it.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        version = tunlb.__version__.encode()[:16]
        os.pwrite(fd, _HEADER.pack(_MAGIC, _NATIVE, LAYOUT, conn_max, version), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd
