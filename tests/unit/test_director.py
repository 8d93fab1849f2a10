"""The director: what a configuration becomes, and what a reload leaves alone."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from tunlb.counters import Gauge
from tunlb.director import SWEEP_MS
from tunlb.hook import Verdict
from tunlb.ipvs import conn as c
from tunlb.ipvs.dest import CONNS
from tunlb.netif import ADDRESS, LADDR, VIP
from tunlb.testing import checkers as k
from tunlb.testing import frames as f
from tunlb.testing import parser
from tunlb.testing.flow import Rig, mac_of
from tunlb.wiring import pair

OUR_MAC = mac_of(0).to_bytes(6, "big")
DESTS = {f"10.0.0.{n}": f"02:00:00:00:00:{n}" for n in (11, 12)}
CLIENT = "02:00:00:00:00:50"
GIVEN = {"kind": "service", "name": "web", "proto": "tcp", "vaddr": "10.0.0.100", "vport": 80}


def config(
    *,
    dests: dict[str, int] | None = None,
    services: int = 1,
    extra: list[dict[str, Any]] | None = None,
    **service: Any,
) -> str:
    """One fnat service `web` with the dests (address: weight), or none; 10 s to drain."""
    lines: list[dict[str, Any]] = [
        {"kind": "port", "name": "lb0", "addresses": ["10.0.0.254/24"]},
        *({"kind": "neigh", "port": "lb0", "addr": a, "mac": m} for a, m in DESTS.items()),
        {"kind": "neigh", "port": "lb0", "addr": "10.0.0.50", "mac": CLIENT},
        *(extra or []),
    ]
    if services:
        given = {
            "fwdmode": "fnat",
            "scheduler": "rr",
            "laddrs": ["10.0.0.200"],
            "drain_s": 10,
            **service,
        }
        lines.append({**GIVEN, **given})
        weights = {"10.0.0.11": 1, "10.0.0.12": 1} if dests is None else dests
        lines += [
            {"kind": "dest", "service": "web", "daddr": a, "dport": 8080, "weight": w}
            for a, w in weights.items()
        ]
    return "\n".join(map(json.dumps, lines))


def flow(port: int = 40000, vaddr: str = "10.0.0.100") -> f.Flow:
    return f.Flow(f"10.0.0.50:{port}", f"{vaddr}:80", client_mac=CLIENT, server_mac=OUR_MAC)


def dest_of(rig: Rig, frame: bytes) -> str | None:
    """Where a frame of the client went, None when it did not."""
    verdict, sent = rig.receive("lb0", f.vnet(frame))
    if verdict != Verdict.ACCEPT:
        return None
    found = k.check(sent[0].frame).find(parser.Ip)
    assert isinstance(found, parser.Ip)
    return found.daddr


def kind_of(rig: Rig, address: str) -> int:
    kind: int = rig.director.ip.addresses.kind(*pair(ipaddress.ip_address(address)))
    return kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", (0, 0xFFFF_0A00_0001)),
        ("255.255.255.255", (0, 0xFFFF_FFFF_FFFF)),
        ("::", (0, 0)),
        ("fd00::1", (0xFD00_0000_0000_0000, 1)),
    ],
)
def test_pair(text: str, expected: tuple[int, int]) -> None:
    assert pair(ipaddress.ip_address(text)) == expected


@pytest.mark.parametrize(
    ("address", "kind"),
    [("10.0.0.254", ADDRESS), ("10.0.0.100", VIP), ("10.0.0.200", LADDR), ("10.0.0.11", 0)],
)
def test_the_addresses_that_are_ours(address: str, kind: int) -> None:
    assert kind_of(Rig(config()), address) == kind


def test_addresses_are_announced_three_times() -> None:
    rig = Rig(config(), quiet=False)
    seen: list[int] = []
    for ms in range(0, 4000, 250):
        rig.director.tick(rig.now + ms)
        seen += [ms] * len(rig.outbox())
    assert seen == [0] * 3 + [1000] * 3 + [2000] * 3


def test_an_unchanged_reload_changes_nothing() -> None:
    rig = Rig(config())
    assert dest_of(rig, flow(1).syn()) == "10.0.0.11"
    (before,) = rig.director.services()
    rig.reload(config())
    (after,) = rig.director.services()
    assert after.scheduler is before.scheduler
    assert [dest.stats[CONNS] for dest in after.dests] == [1, 0]
    assert dest_of(rig, flow(2).syn()) == "10.0.0.12"
    assert dest_of(rig, flow(1).ack()) == "10.0.0.11"


def test_another_scheduler_takes_over() -> None:
    rig = Rig(config())
    rig.reload(config(scheduler="wlc"))
    (service,) = rig.director.services()
    assert type(service.scheduler).__module__.endswith("wlc")


@pytest.mark.parametrize(
    "dests", [{"10.0.0.12": 1}, {"10.0.0.11": 0, "10.0.0.12": 1}], ids=["removed", "quiescent"]
)
def test_a_dest_drains(dests: dict[str, int]) -> None:
    """No new conns at once; the old ones live until drain_s is over."""
    rig = Rig(config())
    assert dest_of(rig, flow(1).syn()) == "10.0.0.11"
    rig.reload(config(dests=dests))
    assert {dest_of(rig, flow(port).syn()) for port in range(2, 6)} == {"10.0.0.12"}
    rig.advance(9_000)
    assert dest_of(rig, flow(1).ack()) == "10.0.0.11"
    rig.advance(1_001)
    before = rig.counters()
    assert dest_of(rig, flow(1).ack()) is None
    assert rig.counters()["drop.DEST_GONE"] - before.get("drop.DEST_GONE", 0) == 1
    assert rig.director.ipvs.conns.count == 4


def test_a_dest_that_comes_back_keeps_its_conns_beyond_the_drain() -> None:
    rig = Rig(config())
    assert dest_of(rig, flow(1).syn()) == "10.0.0.11"
    rig.reload(config(dests={"10.0.0.12": 1}))
    rig.advance(5_000)
    rig.reload(config())
    rig.advance(20_000)
    assert dest_of(rig, flow(1).ack()) == "10.0.0.11"
    assert "10.0.0.11" in {dest_of(rig, flow(port).syn()) for port in (2, 3)}


def test_a_service_that_is_gone_drains_with_its_addresses() -> None:
    rig = Rig(config())
    assert dest_of(rig, flow(1).syn()) == "10.0.0.11"
    rig.reload(config(services=0))
    assert (kind_of(rig, "10.0.0.100"), kind_of(rig, "10.0.0.200")) == (VIP, LADDR)
    assert dest_of(rig, flow(1).ack()) == "10.0.0.11"
    assert dest_of(rig, flow(2).syn()) is None
    assert rig.counters()["drop.PORT_UNREACHABLE"] == 1
    rig.advance(10_000 + 2 * SWEEP_MS)
    assert (kind_of(rig, "10.0.0.100"), kind_of(rig, "10.0.0.200")) == (0, 0)
    assert kind_of(rig, "10.0.0.254") == ADDRESS


@pytest.mark.parametrize(
    ("changed", "old"),
    [({"laddrs": ["10.0.0.201"]}, "10.0.0.200"), ({"vaddr": "10.0.0.101"}, "10.0.0.100")],
    ids=["laddr", "vaddr"],
)
def test_an_address_that_is_replaced_is_answered_for_until_its_conns_are_drained(
    changed: dict[str, Any], old: str
) -> None:
    rig = Rig(config())
    assert dest_of(rig, flow(1).syn()) == "10.0.0.11"
    rig.reload(config(**changed))
    assert kind_of(rig, old) != 0
    assert dest_of(rig, flow(1).ack()) == "10.0.0.11"
    rig.advance(10_000 + 2 * SWEEP_MS)
    assert kind_of(rig, old) == 0


def test_drained_dests_are_forgotten_and_their_rows_used_again() -> None:
    rig = Rig(config())
    assert dest_of(rig, flow(1).syn()) == "10.0.0.11"
    rig.reload(config(dests={"10.0.0.12": 1}))
    rig.advance(100_000)
    gauges = (Gauge.CONNS, Gauge.NEIGHS, Gauge.LPORT_POOLS)
    assert [rig.director.counters.gauge(gauge) for gauge in gauges] == [0, 3, 0]
    rig.reload(config(dests={"10.0.0.12": 1, "10.0.0.11": 1}))
    (service,) = rig.director.services()
    assert sorted(dest.id for dest in service.dests) == [0, 1]


def test_neighbours_that_are_forgotten_are_not_counted() -> None:
    rig = Rig(config())
    unknown = f.eth(OUR_MAC, CLIENT, payload=f.ipv4("10.0.0.50", "10.0.0.77", f.udp(1, 2)))
    assert rig.receive("lb0", f.vnet(unknown))[0] == Verdict.STOLEN
    assert len(rig.director.neighs) == 4
    rig.advance(10_000)
    assert len(rig.director.neighs) == 3


def test_vlans_come_and_go_with_a_reload() -> None:
    port: dict[str, Any] = {"kind": "port", "name": "lb1", "addresses": ["10.1.0.254/24"]}
    vlan = {**port, "vlans": [{"id": 10, "addresses": ["10.10.0.254/24"]}]}
    rig = Rig(config(extra=[port]))
    mac = mac_of(1).to_bytes(6, "big")
    ping = f.vnet(f.arp(1, CLIENT, "10.10.0.5", tpa="10.10.0.254", vlan=10, dst=mac))
    assert rig.receive("lb1", ping) == (Verdict.DROP, [])
    rig.reload(config(extra=[vlan]))
    verdict, (reply,) = rig.receive("lb1", ping)
    assert verdict == Verdict.STOLEN
    assert reply.port == "lb1.10"
    k.check(reply.frame, k.ether(vlan=(10,)), k.arp(op=2, spa="10.10.0.254"))
    rig.reload(config(extra=[port]))
    assert rig.receive("lb1", ping) == (Verdict.DROP, [])
    assert rig.counters()["drop.VLAN_UNKNOWN"] == 2


def test_static_neighbours_follow_the_configuration() -> None:
    rig = Rig(config())
    line: dict[str, Any] = {
        "kind": "neigh",
        "port": "lb0",
        "addr": "10.0.0.77",
        "mac": "02:00:00:00:00:77",
    }
    frame = f.vnet(f.eth(OUR_MAC, CLIENT, payload=f.ipv4("10.0.0.50", "10.0.0.77", f.udp(1, 2))))
    rig.reload(config(extra=[line]))
    verdict, (sent,) = rig.receive("lb0", frame)
    assert verdict == Verdict.ACCEPT
    k.check(sent.frame, k.ether(dst="02:00:00:00:00:77"))
    rig.reload(config(extra=[{**line, "mac": "02:00:00:00:00:78"}]))
    k.check(rig.receive("lb0", frame)[1][0].frame, k.ether(dst="02:00:00:00:00:78"))
    rig.reload(config())
    assert rig.receive("lb0", frame)[0] == Verdict.STOLEN


def test_a_conn_follows_its_dest_to_a_new_neighbour() -> None:
    """What a conn knows of the way is looked up again after a reload."""
    rig = Rig(config(dests={"10.0.0.11": 1}))
    assert dest_of(rig, flow(1).syn()) == "10.0.0.11"
    moved = config(dests={"10.0.0.11": 1}).replace(DESTS["10.0.0.11"], "02:00:00:00:00:99")
    rig.reload(moved)
    _, (sent,) = rig.receive("lb0", f.vnet(flow(1).ack()))
    k.check(sent.frame, k.ether(dst="02:00:00:00:00:99"), k.ip(daddr="10.0.0.11"))


def test_a_conns_packet_counter_wraps() -> None:
    """It is a word of 32 bits: arithmetic must not differ between the builds."""
    rig = Rig(config())
    assert dest_of(rig, flow(1).syn()) == "10.0.0.11"
    conns = rig.director.ipvs.conns
    conns.mem.cast("I")[c.D_PACKETS] = 0xFFFFFFFF
    assert dest_of(rig, flow(1).ack()) == "10.0.0.11"
    assert conns.mem.cast("I")[c.D_PACKETS] == 0


def test_two_directors_with_one_seed_pick_alike() -> None:
    one, other = (
        Rig(config(scheduler="mh", dests=dests))
        for dests in ({"10.0.0.11": 1, "10.0.0.12": 1}, {"10.0.0.12": 1, "10.0.0.11": 1})
    )
    for last in range(1, 9):
        syn = f.eth(
            OUR_MAC, CLIENT, payload=f.ipv4(f"10.0.0.{last}", "10.0.0.100", f.tcp(1, 80, flags="S"))
        )
        assert dest_of(one, syn) == dest_of(other, syn) is not None
