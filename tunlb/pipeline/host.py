"""Pass-through: what tunlb does not handle goes to the host beside the port (DPVS: KNI).

The frame is where the port read it, whole, because nothing before POST_ROUTING touches the L2
header. The host's TAP has the port's own MAC address, so it takes the frame as it came.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, Event
from tunlb.hook import Verdict
from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import vnet
else:
    from tunlb.wire import vnet

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_HOST_IN = cython.declare(cython.int, Event.HOST_IN)


def pass_on(pkt: Packet, counters: Counters) -> cython.int:
    """ACCEPT: write the frame to the host of its ``iif``, which must have one."""
    vnet.trust(pkt)
    pkt.oif = pkt.iif.host
    counters.add(_HOST_IN, 1)
    return _ACCEPT
