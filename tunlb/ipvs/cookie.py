"""SYN cookies: what a SYN said, kept by its sender instead of by us (D. J. Bernstein, 1996; RFC
4987 section 3.6).

The initial sequence number of a SYN-ACK is::

    cookie = H(tuple, client's isn) + (mac << 9 | period << 8 | data)      modulo 2**32

    data    8 bits   what the SYN offered, see ipvs/synproxy.py
    period  1 bit    the lowest of the number of the PERIOD_MS in which it was made
    mac    23 bits   of H(tuple, client's isn, period, salt, data)

The ACK brings the cookie and the client's isn back, so no row, list or bitmap is kept. A cookie is
good in the period in which it was made and in the next: for PERIOD_MS to twice that.

H is SipHash-2-4 (Aumasson and Bernstein, 2012) under a secret key. The hash of the connection table
would not do: it is linear, and who collects its values, which cookies are, solves for its key (ADR
3). SipHash is a pseudo-random function: cookies of one's own tell nothing about the cookie of
another tuple. A blind ACK is taken for a good one with probability 2**-23; one that has to answer a
timestamp of ours as well (see :attr:`Cookies.clock`), with 2**-37.
"""

from __future__ import annotations

import cython

from tunlb.packet import Packet

PERIOD_MS = 64_000
KEY_LEN = 16

_PERIOD = cython.declare(cython.longlong, PERIOD_MS)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)
_MASK64 = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)
_INIT0 = cython.declare(cython.ulonglong, 0x736F6D6570736575)
_INIT1 = cython.declare(cython.ulonglong, 0x646F72616E646F6D)
_INIT2 = cython.declare(cython.ulonglong, 0x6C7967656E657261)
_INIT3 = cython.declare(cython.ulonglong, 0x7465646279746573)


def cookie_key(material: bytes) -> bytes:
    """The key of every worker's cookies, derived from secret ``material`` that all of them have."""
    import hashlib

    return hashlib.shake_256(b"tunlb syn cookies" + material).digest(KEY_LEN)


class SipHash:
    """SipHash-2-4 of messages of whole 64-bit words: :meth:`start`, :meth:`absorb`, :meth:`finish`.

    :meth:`save` and :meth:`restore` branch off after a common beginning.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_LEN:
            raise ValueError(f"SipHash needs {KEY_LEN} secret bytes, got {len(key)}")
        self._k0 = int.from_bytes(key[:8], "little")
        self._k1 = int.from_bytes(key[8:], "little")
        self._v0 = self._v1 = self._v2 = self._v3 = 0
        self._s0 = self._s1 = self._s2 = self._s3 = 0
        self._length = self._saved_length = 0

    def start(self) -> None:
        self._v0 = self._k0 ^ _INIT0
        self._v1 = self._k1 ^ _INIT1
        self._v2 = self._k0 ^ _INIT2
        self._v3 = self._k1 ^ _INIT3
        self._length = 0

    def absorb(self, word: cython.ulonglong) -> None:
        self._v3 ^= word
        self.mix(2)
        self._v0 ^= word
        self._length += 8

    def finish(self) -> cython.ulonglong:
        """The hash of what was absorbed; :meth:`restore` or :meth:`start` before anything else."""
        length: cython.ulonglong = self._length & 0xFF
        self.absorb(length << 56)
        self._v2 ^= 0xFF
        self.mix(4)
        return self._v0 ^ self._v1 ^ self._v2 ^ self._v3

    def save(self) -> None:
        self._s0 = self._v0
        self._s1 = self._v1
        self._s2 = self._v2
        self._s3 = self._v3
        self._saved_length = self._length

    def restore(self) -> None:
        self._v0 = self._s0
        self._v1 = self._s1
        self._v2 = self._s2
        self._v3 = self._s3
        self._length = self._saved_length

    def mix(self, rounds: cython.int) -> None:
        a: cython.ulonglong = self._v0
        b: cython.ulonglong = self._v1
        c: cython.ulonglong = self._v2
        d: cython.ulonglong = self._v3
        _: cython.int
        for _ in range(rounds):
            a = (a + b) & _MASK64
            c = (c + d) & _MASK64
            b = ((b << 13) & _MASK64 | b >> 51) ^ a
            d = ((d << 16) & _MASK64 | d >> 48) ^ c
            a = (a << 32) & _MASK64 | a >> 32
            c = (c + b) & _MASK64
            a = (a + d) & _MASK64
            b = ((b << 17) & _MASK64 | b >> 47) ^ c
            d = ((d << 21) & _MASK64 | d >> 43) ^ a
            c = (c << 32) & _MASK64 | c >> 32
        self._v0 = a
        self._v1 = b
        self._v2 = c
        self._v3 = d


class Cookies:
    """Makes cookies and checks them.

    ``key`` is KEY_LEN bytes, the same in every worker and its successors. After :meth:`make` and
    :meth:`check`, ``clock`` is the timestamp (RFC 7323) that we tell this client now: our
    milliseconds and a secret offset for each pair of addresses, so that it never goes back between
    them and says nothing about our uptime.
    """

    def __init__(self, key: bytes) -> None:
        self.hash = SipHash(key)
        self.clock = 0

    def make(
        self,
        pkt: Packet,
        seq: cython.uint,
        data: cython.uint,
        salt: cython.uint,
        now: cython.longlong,
    ) -> cython.uint:
        """The cookie for a SYN with ``seq``; ``data`` is a byte, ``salt`` a byte that must be the
        same when it is checked.
        """
        period: cython.ulonglong = now // _PERIOD
        hidden: cython.ulonglong = self._begin(pkt, seq, now)
        mac: cython.ulonglong = self._mac(period, salt, data)
        low: cython.uint = cython.cast(cython.uint, period & 1)
        return cython.cast(cython.uint, (hidden + (mac << 9) + (low << 8) + data) & _MASK32)

    def check(
        self,
        pkt: Packet,
        seq: cython.uint,
        cookie: cython.uint,
        salt: cython.uint,
        now: cython.longlong,
    ) -> cython.int:
        """The data of a cookie that is good, for the tuple of the packet and the client's ``seq``;
        else -1.
        """
        period: cython.ulonglong = now // _PERIOD
        # 2**32 first: on the uncompiled build nothing wraps around by itself.
        found: cython.ulonglong = (
            _MASK32 + 1 + cookie - (self._begin(pkt, seq, now) & _MASK32)
        ) & _MASK32
        data: cython.uint = cython.cast(cython.uint, found & 0xFF)
        if (found >> 8 ^ period) & 1:
            period = (period + _MASK64) & _MASK64
        if found >> 9 != self._mac(period, salt, data):
            return -1
        return data

    def _begin(self, pkt: Packet, seq: cython.uint, now: cython.longlong) -> cython.ulonglong:
        """Hash what both hashes have in common; the first of them. Sets ``clock``."""
        sip: SipHash = self.hash
        sip.start()
        sip.absorb(pkt.saddr_hi)
        sip.absorb(pkt.saddr)
        sip.absorb(pkt.daddr_hi)
        sip.absorb(pkt.daddr)
        sip.save()
        offset: cython.ulonglong = sip.finish() & _MASK32
        self.clock = cython.cast(cython.uint, (offset + now) & _MASK32)
        ports: cython.ulonglong = (pkt.sport << 16) | pkt.dport
        sip.restore()
        sip.absorb((ports << 32) | seq)
        sip.save()
        return sip.finish()

    def _mac(
        self, period: cython.ulonglong, salt: cython.uint, data: cython.uint
    ) -> cython.ulonglong:
        """The second hash, of 23 bits."""
        sip: SipHash = self.hash
        sip.restore()
        sip.absorb(((period << 16) & _MASK64) | (salt << 8) | data)
        return sip.finish() & 0x7FFFFF
