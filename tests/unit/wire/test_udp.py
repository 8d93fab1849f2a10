"""UDP: the length field."""

from __future__ import annotations

import pytest

from tunlb.counters import DropReason
from tunlb.testing import frames as f
from tunlb.wire import ipv4, ipv6, udp

ENDS = {4: ("10.0.0.1", "10.0.0.100"), 6: ("fd00::1", "fd00::100")}


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize(
    ("datagram", "cut", "reason"),
    [
        pytest.param(f.udp(53, 65535, b"query"), 0, 0, id="data"),
        pytest.param(f.udp(53, 65535), 0, 0, id="empty"),
        pytest.param(f.udp(53, 65535), 1, DropReason.L4_HEADER, id="7 bytes"),
        pytest.param(f.udp(53, 65535, length=7), 0, DropReason.L4_HEADER, id="length below 8"),
        pytest.param(f.udp(53, 65535, length=0), 0, DropReason.L4_HEADER, id="length 0"),
        pytest.param(f.udp(53, 65535, b"abc", length=12), 0, DropReason.L4_HEADER, id="too long"),
        pytest.param(f.udp(53, 65535, b"abc", length=10), 0, 0, id="bytes behind the datagram"),
    ],
)
def test_header(af, datagram, cut, reason, load) -> None:
    saddr, daddr = ENDS[af]
    body = datagram.build(f.address_bytes(saddr), f.address_bytes(daddr))
    pkt = load(f.ip(saddr, daddr, body[: len(body) - cut], proto=17), tun=True)
    assert (ipv4 if af == 4 else ipv6).parse(pkt) == 0
    assert udp.parse(pkt) == reason
    if reason == 0:
        assert (pkt.sport, pkt.dport) == (53, 65535)
