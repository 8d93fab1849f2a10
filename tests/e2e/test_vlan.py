"""VLANs of a port, with a client's real kernel on one.

The kernel may lack 802.1Q, and the lab's bridge does not look at tags. So the client gets a TAP, and
a thread carries frames between it and the client's interface, putting the tag on and taking it off.
"""

from __future__ import annotations

import hashlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    Line,
    counters,
    drops,
    serves,
    service,
    with_keys,
    with_lines,
)
from tests.e2e.test_hostile import our_mac, send_raw
from tunlb.lab import Lab, clients
from tunlb.lab.host import ip
from tunlb.lab.servers import pattern
from tunlb.testing import frames
from tunlb.testing.frames import CLIENT_MAC, eth
from tunlb.testing.frames import ip as ip_packet

VID = 42
VIP = {"v4": "10.42.0.100", "v6": "fd42::100"}
CLIENT = {"v4": "10.42.0.2", "v6": "fd42::2"}
LADDRS = {"v4": "10.0.0.200-10.0.0.209", "v6": "fd00::200-fd00::209"}
SERVERS = {"v4": ["10.0.0.11", "10.0.0.12"], "v6": ["fd00::11", "fd00::12"]}
VLANS = [{"id": VID, "addresses": ["10.42.0.254/24", "fd42::fe/64"]}]

SOL_PACKET, PACKET_AUXDATA = 263, 8
ETH_P_ALL = 3
AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
TP_STATUS_VLAN_VALID = 1 << 4


class Tagger:
    """Carries frames between a TAP and the wire, tagged there; runs until it is closed."""

    def __init__(self, lab: Lab) -> None:
        self.tap = lab.client.tap("vlan42")
        self.wire = lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.wire.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.wire.bind(("eth0", ETH_P_ALL))
        self.end, self.ended = os.pipe()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
