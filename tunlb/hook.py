"""Hooks: points, verdicts, and the type that the pipeline, IPVS and users share.

Numbers are DPVS' (include/inet.h), not netfilter's. A hook edits the packet and returns a verdict;
it never calls the next stage.
"""

from __future__ import annotations

from enum import IntEnum

import cython

from tunlb.packet import Packet


class Verdict(IntEnum):
    DROP = 0  #: the packet ends here; packet.reason says why
    ACCEPT = 1  #: go on with the next hook; after the last one, with the okfn
    STOLEN = 2  #: the hook owns a copy now
    REPEAT = 3  #: call the same hook again (bounded)
    STOP = 4  #: skip the rest of the chain and go on with the okfn


class Point(IntEnum):
    PRE_ROUTING = 0
    LOCAL_IN = 1
    FORWARD = 2
    LOCAL_OUT = 3
    POST_ROUTING = 4


class Hook:
    """Subclass it, in plain Python or compiled, and register it at a point.

    ``run`` gets the packet and ``now`` in milliseconds and returns a :class:`Verdict`; before DROP
    it may set ``pkt.reason``. An exception drops the packet as HOOK_ERROR.
    """

    point = Point.PRE_ROUTING
    priority = 50

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        raise NotImplementedError
