"""The connection table: fixed-size rows in one buffer, found by either of their two tuples.

A row is 128 bytes, the same for IPv4 and IPv6, and holds two keys: how the packets of each
direction look when they arrive. Key = (saddr, daddr, sport, dport)::

    INBOUND   caddr -> vaddr     what clients send
    OUTBOUND  daddr -> laddr     what the dest answers (laddr is caddr unless fnat)

What a packet becomes is therefore always *the other key, reversed*: an inbound packet leaves as
laddr -> daddr, an outbound one as vaddr -> caddr. That is why no code here or in rewrite.py is
written once per direction: the direction is an index.

Both keys of a conn hang in one chained hash; an *entry* is ``2 * row + direction``. The hash is
multilinear over 32-bit words with secret 64-bit multipliers (Lemire & Kaser, "Strongly universal
string hashing is fast", 2014): any two keys collide with probability 2**-32 for whoever does not
know them. Heads are sized for the full table when it is made, so there is never a rehash.

Beside each row there is room for EXTRA_SIZE bytes more (``x``), which only conns of some services
use. It lies behind all rows, so that the pages of who uses none are never touched.

Rows are shared, and survive the worker. Before them lies a header of a page, of which this module
uses one word: how many rows were ever in use (:data:`HEADER_FRESH`), so that a successor need not
look at the others. Heads and the free list are private and rebuilt from the rows (see life.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import cython

from tunlb.packet import Packet

INBOUND = 0
OUTBOUND = 1

ROW_SIZE = 128  #: bytes
EXTRA_SIZE = 64  #: bytes beside each row, for the few conns that need more; behind all rows
HEADER_SIZE = 4096  #: bytes before the first row
HEADER_FRESH = 8  #: word of the header: rows from here on were never used
HASH_KEYS = 11  #: secret 64-bit multipliers of the hash

# Flags of a row.
VALID = 1  #: the row is in use
ONEWAY = 2  #: replies do not pass (DR): the outbound key is not hashed
ACTIVE = 4  #: counted in the dest's actconns
NO_REWRITE = 8  #: packets leave as they came, but for TTL and L2
XMIT = 16  #: the mode has a last word on each packet (Mode.xmit), after the rewrite
SEQUENCE = 32  #: TCP sequence numbers are adjusted: see ipvs/sequence.py
RESETS = 64  #: both sides get a RST when the conn expires, so sequence numbers are remembered
TEMPLATE = 128  #: no conn but a persistence template: see ipvs/persist.py
CONTROLLED = 256  #: a template holds this conn to its dest
MSS = 512  #: the MSS option of SYNs is lowered to what the path takes
ECHO = 1024  #: pings: their identifier is rewritten, see ipvs/echo.py
CRC32C = 2048  #: SCTP, whose checksum is none of the Internet's
SYNPROXY = 4096  #: its handshakes were made apart: see ipvs/synproxy.py
HALF = 8192  #: half-open, and counted by its service: see ipvs/synpolicy.py
RESUMED = 16384  #: the fallback made it of a packet in the middle of a conn: see Birth
#: What Transmit.send looks at beyond the rewrite.
SPECIAL = NO_REWRITE | XMIT | SEQUENCE | RESETS | MSS | ECHO | CRC32C | SYNPROXY

#: B_PROTO of a template. No packet has its key: 255 is reserved, and never a balanced protocol.
TEMPLATE_PROTO = 255

# A row as words of 8, 4, 2 and 1 bytes: word index = base + row * words per row.
Q_KEY = 0  #: 4 words a direction: saddr_hi, saddr, daddr_hi, daddr
D_PORTS = 16  #: 1 a direction: sport << 16 | dport
B_PROTO = 72
B_AF = 73
B_STATE = 74
B_FWDMODE = 75
H_FLAGS = 38
H_GENERATION = 39
D_LAST_SEEN = 20  #: ms, low 32 bits
D_TIMEOUT = 21  #: ms
D_DEST = 22
H_DELTA = 46  #: 2 a direction: checksum delta of the addresses, of the ports
H_NEIGH = 50  #: 1 a direction
H_MTU = 52  #: 1 a direction
D_PACKETS = 27  #: 1 a direction
D_NEXT = 29  #: 1 a direction: the next entry of the hash chain, plus 1
D_EPOCH = 31

# The extra of a row as words of 4 bytes: word index = base + row * 16. Whoever sets the flag that
# speaks of a word writes it first: nothing zeroes it.
X_CONTROL = 0  #: CONTROLLED: the template's row. TEMPLATE: how many conns it holds
X_END = 1  #: RESETS, 1 a direction: what follows the last byte sent on in it; 0: not known
X_SEQUENCE = 3  #: SEQUENCE: 13 words, see ipvs/sequence.py

_Q_ROW = cython.declare(cython.longlong, 16)
_D_ROW = cython.declare(cython.longlong, 32)
_H_ROW = cython.declare(cython.longlong, 64)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_D_NEXT = cython.declare(cython.longlong, D_NEXT)
_B_PROTO = cython.declare(cython.longlong, B_PROTO)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_H_GENERATION = cython.declare(cython.longlong, H_GENERATION)
_FRESH = cython.declare(cython.longlong, HEADER_FRESH)
_VALID = cython.declare(cython.int, VALID)
_ONEWAY = cython.declare(cython.int, ONEWAY)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)
_MASK64 = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)


def hash_secret(material: bytes) -> bytes:
    """The multipliers of the hash, derived from secret ``material``."""
    import hashlib

    return hashlib.shake_256(b"tunlb conn hash" + material).digest(8 * HASH_KEYS)


def table_size(conn_max: int) -> int:
    """Bytes of the buffer of a table of ``conn_max`` rows."""
    return HEADER_SIZE + (ROW_SIZE + EXTRA_SIZE) * conn_max


class ConnTable:
    """``conn_max`` rows over ``buffer`` (:func:`table_size` writable bytes, zeroed when new).

    ``secret`` is ``8 * HASH_KEYS`` bytes (see :func:`hash_secret`). Rows are addressed through
    ``q``, ``d``, ``h`` and ``b``: the same memory as words of 8, 4, 2 and 1 bytes, native-endian.
    ``x`` are the rows' extras as words of 4 bytes.
    Over a buffer that a former worker used, :meth:`adopt` or :meth:`discard` each of the first
    ``fresh`` rows before anything else.
    """

    def __init__(
        self, conn_max: int, secret: bytes, buffer: memoryview | bytearray | None = None
    ) -> None:
        if len(secret) != 8 * HASH_KEYS:
            raise ValueError(f"the hash needs {8 * HASH_KEYS} secret bytes, got {len(secret)}")
        self.conn_max = conn_max
        size = table_size(conn_max)
        whole = memoryview(bytearray(size) if buffer is None else buffer).cast("B")
        if len(whole) < size:
            raise ValueError(f"{conn_max} rows need {size} bytes, got {len(whole)}")
        header_mem = whole[:HEADER_SIZE].cast("Q")
        self.mem = whole[HEADER_SIZE : HEADER_SIZE + ROW_SIZE * conn_max]
        x_mem = whole[HEADER_SIZE + ROW_SIZE * conn_max : size].cast("I")
        self.extra_mem = x_mem
        n_heads = 1 << max(4, (2 * conn_max - 1).bit_length())
        self.mask = n_heads - 1
        self.heads_mem = memoryview(bytearray(4 * n_heads)).cast("I")
        self.keys_mem = memoryview(bytearray(secret)).cast("Q")
        q_mem = self.mem.cast("Q")
        d_mem = self.mem.cast("I")
        h_mem = self.mem.cast("H")
        if cython.compiled:
            q_view: cython.ulonglong[::1] = q_mem
            d_view: cython.uint[::1] = d_mem
            h_view: cython.ushort[::1] = h_mem
            b_view: cython.uchar[::1] = self.mem
            x_view: cython.uint[::1] = x_mem
            heads_view: cython.uint[::1] = self.heads_mem
            keys_view: cython.ulonglong[::1] = self.keys_mem
            header_view: cython.ulonglong[::1] = header_mem
            self.q = cython.address(q_view[0])
            self.d = cython.address(d_view[0])
            self.h = cython.address(h_view[0])
            self.b = cython.address(b_view[0])
            self.x = cython.address(x_view[0])
            self.heads = cython.address(heads_view[0])
            self.keys = cython.address(keys_view[0])
            self.header = cython.address(header_view[0])
        else:
            self.q = q_mem
            self.d = d_mem
            self.h = h_mem
            self.b = self.mem
            self.x = x_mem
            self.heads = self.heads_mem
            self.keys = self.keys_mem
            self.header = header_mem
        self.count = 0
        self.fresh = 0
        self.look()
        self._free = 0  # the first freed row, plus 1; chained through D_NEXT

    def secret(self) -> bytes:
        """What it was made with."""
        return bytes(self.keys_mem)

    def hash_tuple(
        self,
        saddr_hi: cython.ulonglong,
        saddr: cython.ulonglong,
        daddr_hi: cython.ulonglong,
        daddr: cython.ulonglong,
        ports: cython.ulonglong,
        proto: cython.ulonglong,
    ) -> cython.uint:
        k = self.keys
        total: cython.ulonglong = k[0] + k[1] * (saddr & _MASK32) + k[2] * (daddr & _MASK32)
        total += k[3] * ports + k[4] * proto
        if saddr_hi | daddr_hi:
            total += k[5] * (saddr >> 32) + k[6] * (daddr >> 32)
            total += k[7] * (saddr_hi & _MASK32) + k[8] * (saddr_hi >> 32)
            total += k[9] * (daddr_hi & _MASK32) + k[10] * (daddr_hi >> 32)
        return (total & _MASK64) >> 32

    def lookup(self, pkt: Packet) -> cython.longlong:
        """The entry whose key is the packet's own tuple, or -1."""
        return self.find(
            pkt.saddr_hi,
            pkt.saddr,
            pkt.daddr_hi,
            pkt.daddr,
            (pkt.sport << 16) | pkt.dport,
            pkt.proto,
        )

    def find(
        self,
        saddr_hi: cython.ulonglong,
        saddr: cython.ulonglong,
        daddr_hi: cython.ulonglong,
        daddr: cython.ulonglong,
        ports: cython.uint,
        proto: cython.int,
    ) -> cython.longlong:
        """The entry with this key (``ports`` = sport << 16 | dport), or -1."""
        q = self.q
        d = self.d
        at: cython.longlong
        entry: cython.longlong = self.heads[
            self.hash_tuple(saddr_hi, saddr, daddr_hi, daddr, ports, proto) & self.mask
        ]
        while entry != 0:
            entry -= 1
            at = (entry >> 1) * _Q_ROW + (entry & 1) * 4
            if (
                q[at + 1] == saddr
                and q[at + 3] == daddr
                and d[(entry >> 1) * _D_ROW + _D_PORTS + (entry & 1)] == ports
                and q[at] == saddr_hi
                and q[at + 2] == daddr_hi
                and self.b[(entry >> 1) * 128 + _B_PROTO] == proto
            ):
                return entry
            entry = d[(entry >> 1) * _D_ROW + _D_NEXT + (entry & 1)]
        return -1

    def hash_entry(self, entry: cython.longlong) -> cython.uint:
        """The bucket of an entry's key."""
        q = self.q
        at: cython.longlong = (entry >> 1) * _Q_ROW + (entry & 1) * 4
        return self.mask & self.hash_tuple(
            q[at],
            q[at + 1],
            q[at + 2],
            q[at + 3],
            self.d[(entry >> 1) * _D_ROW + _D_PORTS + (entry & 1)],
            self.b[(entry >> 1) * 128 + _B_PROTO],
        )

    def look(self) -> None:
        """Read again how many rows were ever used: a former worker may have lived on meanwhile."""
        known: cython.ulonglong = self.header[_FRESH]
        self.fresh = self.conn_max
        if known < self.conn_max:
            self.fresh = known

    def alloc(self) -> cython.longlong:
        """A zeroed row of a new generation, not VALID or hashed yet; -1 when all are taken."""
        row: cython.longlong
        i: cython.longlong
        if self._free != 0:
            row = self._free - 1
            self._free = self.d[row * _D_ROW + _D_NEXT]
        elif self.fresh < self.conn_max:
            row = self.fresh
            self.fresh += 1
            self.header[_FRESH] = self.fresh
        else:
            return -1
        generation: cython.int = (self.h[row * _H_ROW + _H_GENERATION] + 1) & 0xFFFF
        for i in range(row * _Q_ROW, (row + 1) * _Q_ROW):
            self.q[i] = 0
        self.h[row * _H_ROW + _H_GENERATION] = generation
        self.count += 1
        return row

    def link(self, row: cython.longlong) -> cython.bint:
        """Hash the row's keys and make it VALID; False (and nothing done) when a key is taken."""
        flags: cython.int = self.h[row * _H_ROW + _H_FLAGS]
        directions: cython.int = 1 if flags & _ONEWAY else 2
        direction: cython.int
        bucket: cython.uint
        q = self.q
        at: cython.longlong
        for direction in range(directions):
            at = row * _Q_ROW + direction * 4
            if (
                self.find(
                    q[at],
                    q[at + 1],
                    q[at + 2],
                    q[at + 3],
                    self.d[row * _D_ROW + _D_PORTS + direction],
                    self.b[row * 128 + _B_PROTO],
                )
                >= 0
            ):
                return False
        for direction in range(directions):
            bucket = self.hash_entry(row * 2 + direction)
            self.d[row * _D_ROW + _D_NEXT + direction] = self.heads[bucket]
            self.heads[bucket] = row * 2 + direction + 1
        # Last, so that a reader of the shared rows never takes a half-written one for a conn.
        self.h[row * _H_ROW + _H_FLAGS] = flags | _VALID
        return True

    def unlink(self, row: cython.longlong) -> None:
        """Take the row's keys out of the hash."""
        flags: cython.int = self.h[row * _H_ROW + _H_FLAGS]
        directions: cython.int = 1 if flags & _ONEWAY else 2
        direction: cython.int
        bucket: cython.uint
        wanted: cython.longlong
        at: cython.longlong
        before: cython.longlong
        for direction in range(directions):
            wanted = row * 2 + direction + 1
            bucket = self.hash_entry(wanted - 1)
            at = self.heads[bucket]
            before = 0
            while at != 0 and at != wanted:
                before = at
                at = self.d[((at - 1) >> 1) * _D_ROW + _D_NEXT + ((at - 1) & 1)]
            if at == 0:
                continue
            at = self.d[row * _D_ROW + _D_NEXT + direction]
            if before == 0:
                self.heads[bucket] = at
            else:
                self.d[((before - 1) >> 1) * _D_ROW + _D_NEXT + ((before - 1) & 1)] = at

    def free(self, row: cython.longlong) -> None:
        """Give a row back; it must be unlinked or never have been linked."""
        self.discard(row)
        self.count -= 1

    def discard(self, row: cython.longlong) -> None:
        """A row that a former worker left is of no use."""
        self.h[row * _H_ROW + _H_FLAGS] = 0
        self.d[row * _D_ROW + _D_NEXT] = self._free
        self._free = row + 1

    def adopt(self, row: cython.longlong) -> cython.bint:
        """Hash a row that a former worker left; False when another row has its keys."""
        if not self.link(row):
            return False
        self.count += 1
        return True

    def valid(self, row: cython.longlong) -> cython.bint:
        return (self.h[row * _H_ROW + _H_FLAGS] & _VALID) != 0

    def rows(self) -> Iterator[int]:
        """Every row in use."""
        for row in range(self.fresh):
            if self.valid(row):
                yield row
