"""Egress traffic control, measured by iperf3."""

from __future__ import annotations

import threading
import time

import pytest

from tests.e2e.kit import LabFactory, counters, with_lines
from tunlb.lab import Lab, clients

pytestmark = pytest.mark.alone

RATE = 0.02  #: Gbit/s
SECONDS = 2


def line(**keys: object) -> dict[str, object]:
    return {"kind": "tc", "port": "lb0", **keys}


def test_rates(lab: LabFactory) -> None:
    """A port, a service, a policer, two priorities: each by a reload."""
    made = lab("one-arm")
    text, vip = made.topology.config_text, made.topology.vips.v4
    # On one arm both directions leave by one port: ACKs are of the rate as well.
    tunlb = made.start_tunlb(with_lines(text, line(rate="20mbit", limit=200_000)))
    for reverse in (False, True):
        found = clients.iperf3(made.client, vip, seconds=SECONDS, reverse=reverse)
        assert found.gbps == pytest.approx(RATE, rel=0.15)

    def flood() -> float:
        found = clients.iperf3(
            made.client, vip, seconds=SECONDS, udp=True, bitrate="30M", length=1400
        )
        return found.gbps

    service = line(service="iperf-udp-v4", rate="10mbit", limit=100_000)
    assert tunlb.reload(with_lines(text, service))["event"] == "reloaded"
    assert flood() == pytest.approx(RATE / 2, rel=0.15)
    policer = line(rate="10mbit", limit=0, burst=100_000)
    assert tunlb.reload(with_lines(text, policer))["event"] == "reloaded"
    assert flood() == pytest.approx(RATE / 2, rel=0.15)
    first = line(service="iperf-udp-v4", priority=0)
    both = with_lines(text, line(rate="20mbit", limit=200_000), first)
    assert tunlb.reload(both)["event"] == "reloaded"
    priorities(made)
    counted = counters(tunlb)
    assert counted["TC_QUEUED"] > 100
    assert counted["drop.TC_QUEUE_FULL"] > 100
    assert counted["drop.TC_POLICED"] > 100


BULK = 6_000_000  #: bytes, 2.4 s at the port's rate


def priorities(made: Lab) -> None:
    """What goes first gets what it asks for; the rest is the other's."""
    vip = made.topology.vips.v4
    took: list[float] = []

    def bulk() -> None:
        begun = time.monotonic()
        found = clients.fetch(made.client, clients.url(vip, 80, f"/bytes/{BULK}"), timeout=15)
        took.append(time.monotonic() - begun)
        assert found.status == 200

    thread = threading.Thread(target=bulk)
    thread.start()
    first = clients.iperf3(made.client, vip, seconds=SECONDS, udp=True, bitrate="12M", length=1400)
    thread.join()
    assert first.gbps == pytest.approx(0.012, rel=0.1)
    assert first.lost_percent < 2
    assert took[0] > BULK * 8 / 20e6 + 0.5
