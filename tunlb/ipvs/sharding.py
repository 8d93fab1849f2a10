"""Which worker owns a flow: a function of the packet alone, the same in both directions.

Every worker has a conn table of its own, so both directions of a flow must come to one worker. What
they share is the client's endpoint, or the lport that the worker itself chose::

    to a VIP, or an address of a port      the client's endpoint is the source
    to a laddr (fnat: a dest answers)      lport % workers: LportPools hands them out that way
    to an address that inside hosts share  the remote endpoint is the source
    to anybody else (nat: a dest answers)  the client's endpoint is the destination

With snat what both directions share is the remote endpoint, which a packet from inside is addressed
to.

The program of tunlb/steering.py computes the same in the kernel, so that a frame is read by its
owner; a frame that comes to another worker all the same is handed over. Where there are no TCP, UDP
or SCTP ports to look at, worker 0 is the owner.

The hash is multilinear over 32-bit words with secret 64-bit multipliers, as in ipvs/conn.py: who
does not know them cannot send all his flows to one worker.
"""

from __future__ import annotations

import cython

from tunlb.netif import LADDR, Addresses

SHARD_KEYS = 6  #: secret 64-bit multipliers of the hash: a constant, 4 address words, the port

_LADDR = cython.declare(cython.int, LADDR)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)
_MASK64 = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)


def shard_keys(material: bytes) -> bytes:
    """The multipliers of the hash, derived from secret ``material``; every worker needs the same
    ones.
    """
    import hashlib

    return hashlib.shake_256(b"tunlb shard hash" + material).digest(8 * SHARD_KEYS)


class Sharding:
    """The share of ``worker``, one of ``workers`` that are numbered from 0.

    ``keys`` is ``8 * SHARD_KEYS`` bytes, native-endian words (see :func:`shard_keys`).
    """

    def __init__(self, workers: int, worker: int, keys: bytes) -> None:
        if not 0 <= worker < workers:
            raise ValueError(f"there is no worker {worker} of {workers}")
        if len(keys) != 8 * SHARD_KEYS:
            raise ValueError(f"the hash needs {8 * SHARD_KEYS} secret bytes, got {len(keys)}")
        self.workers = workers
        self.worker = worker
        words = memoryview(keys).cast("Q")
        self._k0, self._k1, self._k2, self._k3, self._k4, self._k5 = words

    def by_endpoint(
        self, hi: cython.ulonglong, lo: cython.ulonglong, port: cython.ulonglong
    ) -> cython.int:
        """The worker of a client's endpoint: its address (IPv4 as ``::ffff:a.b.c.d``) and port."""
        total: cython.ulonglong = self._k0 + self._k1 * (hi >> 32) + self._k2 * (hi & _MASK32)
        total += self._k3 * (lo >> 32) + self._k4 * (lo & _MASK32) + self._k5 * port
        # 32 bits divided by 32 are several times as fast as 64 by 64.
        high: cython.uint = (total & _MASK64) >> 32
        return high % self.workers

    def owner(
        self,
        addresses: Addresses,
        saddr_hi: cython.ulonglong,
        saddr: cython.ulonglong,
        sport: cython.uint,
        daddr_hi: cython.ulonglong,
        daddr: cython.ulonglong,
        dport: cython.uint,
    ) -> cython.int:
        """The worker of a TCP or UDP packet that looks like this."""
        kind: cython.int = addresses.kind(daddr_hi, daddr)
        if kind == _LADDR:
            return dport % self.workers
        if kind != 0:
            return self.by_endpoint(saddr_hi, saddr, sport)
        return self.by_endpoint(daddr_hi, daddr, dport)
