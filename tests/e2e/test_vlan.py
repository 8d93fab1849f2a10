"""VLANs of a port, with a client whose kernel lives on one (see tagger.py)."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    Line,
    counters,
    eventually,
    is_laddr,
    serves,
    service,
    with_keys,
    with_lines,
)
from tests.e2e.test_hostile import our_mac, send_raw
from tunlb.lab import Lab, clients
from tunlb.lab.host import ip
from tunlb.lab.process import environment
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


def services(family: Family) -> list[Line]:
    """VIPs on the VLAN; laddrs and servers where they always were, untagged."""
    keys = {"laddrs": [LADDRS[family]], "scheduler": "rr"}
    vip, dests = VIP[family], SERVERS[family]
    return [
        *service(f"vlan-web-{family}", vip, 80, dests, dport=8080, **keys),
        *service(f"vlan-echo-{family}", vip, 7, dests, dport=7777, **keys),
        *service(f"vlan-udp-{family}", vip, 7, dests, dport=7777, proto="udp", **keys),
    ]


def on_vlan(lab: Lab) -> str:
    text = with_keys(lab.topology.config_text, "port", vlans=VLANS)
    return with_lines(text, *services("v4"), *services("v6"))


def join_vlan(lab: Lab) -> None:
    """The client gets an interface on the VLAN."""
    script = str(Path(__file__).with_name("tagger.py"))
    lab.client.popen([sys.executable, script, "tagged", "eth0", str(VID)], env=environment())
    eventually(lambda: "tagged" in ip("-n", lab.client.ns, "-o", "link"))
    addresses = (f"{CLIENT['v4']}/24", f"{CLIENT['v6']}/64 nodad")
    ip(
        "-n",
        lab.client.ns,
        batch=["link set tagged up", *(f"addr add {a} dev tagged" for a in addresses)],
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "no offload"])
def test_a_client_on_a_vlan(lab: LabFactory, family: Family, offload: bool) -> None:
    made = lab("one-arm")
    join_vlan(made)
    tunlb = made.start_tunlb(with_keys(on_vlan(made), "port", offload=offload))
    vip = VIP[family]
    peers = set()
    for _ in range(2):
        body = clients.fetch(made.client, clients.url(vip, 80, "/peer")).body
        seen = clients.parse_echo(body.encode())
        assert is_laddr(made, seen.peer)
        peers.add(seen.host)
    assert peers == {"s1", "s2"}
    data = pattern(100_000)
    assert clients.tcp_echo(made.client, vip, 7, data).data == data
    assert clients.udp_echo(made.client, vip, 7, data[:1400]).data == data[:1400]
    target = clients.url(vip, 80, "/bytes/3000000")
    done = made.client.run(["sh", "-c", f"curl -gsS -m 8 '{target}' | sha256sum"])
    assert done.stdout.split()[0] == hashlib.sha256(pattern(3_000_000)).hexdigest()
    address = "10.42.0.254" if family == "v4" else "fd42::fe"
    for pinged in (vip, address):
        ping = made.client.run(["ping", "-c", "2", "-i", "0.05", "-W", "2", pinged])
        assert "2 received" in ping.stdout
    assert serves(made)  # untagged, as before
    found = counters(tunlb)
    assert not {"drop.VLAN_UNKNOWN", "drop.TX_REFUSED", "drop.VNET_HEADER"} & set(found)
    if offload:
        assert found["IPVS_OUT_BYTES"] / found["IPVS_OUT_PACKETS"] > 2000


def test_a_vlan_comes_and_goes_with_a_reload(lab: LabFactory) -> None:
    made = lab("one-arm")
    join_vlan(made)
    tunlb = made.start_tunlb()
    assert tunlb.reload(on_vlan(made))["event"] == "reloaded"
    for family in FAMILIES:
        assert clients.tcp_echo(made.client, VIP[family], 7).data == b"tunlb"
    assert tunlb.reload(made.topology.config_text)["event"] == "reloaded"
    with pytest.raises(OSError):
        clients.tcp_echo(made.client, VIP["v4"], 7, timeout=0.5)
    assert serves(made)
    assert counters(tunlb)["drop.VLAN_UNKNOWN"] > 0


@pytest.mark.parametrize(
    ("tags", "reason"),
    [(43, "VLAN_UNKNOWN"), ((VID, 43), "VLAN_STACK")],
    ids=["of another VLAN", "two tags"],
)
def test_tags_that_are_not_ours(lab: LabFactory, tags: int | tuple[int, ...], reason: str) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb(on_vlan(made))
    packet = ip_packet(CLIENT["v4"], VIP["v4"], frames.tcp(40000, 80, flags="S"))
    frame = eth(our_mac(tunlb), CLIENT_MAC, payload=packet, vlan=tags)
    send_raw(made, [frame] * 10)
    assert serves(made)
    found = counters(tunlb)
    assert found[f"drop.{reason}"] == 10
    assert "CONN_EVICTED" not in found


def test_a_vip_of_a_vlan_is_not_the_untagged_segments(lab: LabFactory) -> None:
    """Nobody answers there for it."""
    made = lab("one-arm")
    tunlb = made.start_tunlb(on_vlan(made))
    ip("-n", made.client.ns, "addr", "add", "10.42.0.3/24", "dev", "eth0")
    done = made.client.run(["ping", "-c", "1", "-W", "1", VIP["v4"]], check=False)
    assert done.returncode != 0
    assert "NEIGH_REPLIES" not in counters(tunlb)
