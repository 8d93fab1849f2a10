"""dh: destination hashing, one destination address one dest (IPVS: ip_vs_dh).

For caches: what a client asks for, not who asks, decides. 256 buckets are dealt to the dests in
turn; weights count as zero or not. A destination whose dest is full or away gets none, as in IPVS:
the caches do not take over for each other. Unlike there the hash is keyed, and a quiescent dest has
no bucket, so that its destinations move on.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.ipvs.sched.sh import address_hash
else:
    from tunlb.ipvs.sched.sh import address_hash

BUCKETS = 256  #: dests beyond so many get none

_BUCKETS = cython.declare(cython.int, BUCKETS)


class DestinationHash(Scheduler):
    """``table`` holds one dest a bucket, and is empty when every weight is 0."""

    def __init__(self, seed: int = 0, table_size: int = 65537) -> None:
        super().__init__(seed, table_size)
        self.table: list[Dest] = []

    def update(self, dests: list[Dest]) -> None:
        self.dests = dests
        weighted = [dest for dest in dests if dest.weight > 0][:BUCKETS]
        self.table = (weighted * BUCKETS)[:BUCKETS]

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        table = self.table
        if not table:
            return None
        dest = table[address_hash(self.seed, pkt.daddr_hi, pkt.daddr, 0) % _BUCKETS]
        return dest if dest.valid() else None


SCHEDULER = DestinationHash
