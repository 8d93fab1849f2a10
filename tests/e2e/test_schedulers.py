"""Every scheduler serves real clients, each after a reload."""

from __future__ import annotations

from tests.e2e.kit import LabFactory, with_keys
from tunlb.ipvs import sched
from tunlb.lab import clients


def test_every_scheduler_serves(lab: LabFactory) -> None:
    made = lab("one-arm")
    text = made.topology.config_text
    tunlb = made.start_tunlb()
    vips = (made.topology.vips.v4, made.topology.vips.v6)
    for name in sched.names():
        assert tunlb.reload(with_keys(text, "service", scheduler=name))["event"] == "reloaded"
        for vip in vips:
            found = {clients.tcp_echo(made.client, vip, 7).host for _ in range(3)}
            assert found <= {"s1", "s2", "s3"}, name
            found = {clients.udp_echo(made.client, vip, 7).host for _ in range(3)}
            assert found <= {"s1", "s2", "s3"}, name
    assert tunlb.stop() == 0
