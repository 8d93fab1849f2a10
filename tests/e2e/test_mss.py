"""The MSS clamp, as two kernels see it."""

from __future__ import annotations

import socket

import pytest

from tests.e2e.kit import FAMILIES, Family, LabFactory, counters, with_keys
from tunlb.lab import Lab, clients


def segment_size(lab: Lab, vip: str) -> int:
    """The most that the client's kernel puts into a segment to this VIP."""
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    with lab.client.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect((vip, 7))
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


@pytest.mark.parametrize("topology", ["one-arm", "two-arm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_segment_is_larger(lab: LabFactory, topology: str, family: Family) -> None:
    """What a side announced is what the other one keeps to, also with offloads."""
    made = lab(topology)
    vip = made.topology.vips.of(family)
    plain = made.start_tunlb()
    usual = segment_size(made, vip)
    clamped = with_keys(made.topology.config_text, "service", f"echo-{family}", mss_clamp=1000)
    assert plain.reload(clamped)["event"] == "reloaded"
    stamps = 12  # the kernel counts its timestamps in
    assert usual > 1300
    assert segment_size(made, vip) == 1000 - stamps
    data = bytes(range(256)) * 800
    assert clients.tcp_echo(made.client, vip, 7, data).data == data
    assert counters(plain)["MSS_CLAMPED"] == 4
