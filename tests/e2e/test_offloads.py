"""GSO frames and partial checksums really pass, and nothing depends on them."""

from __future__ import annotations

import hashlib
import json
import socket

import pytest

from tests.e2e.kit import FAMILIES, Family, LabFactory, counters, with_keys
from tunlb.lab import Lab, TunlbProcess, clients
from tunlb.lab.servers import pattern

UDP_SEGMENT = 103  # linux/udp.h
SIZE = 8_000_000


def offloads(tunlb: TunlbProcess) -> list[list[str]]:
    ports = tunlb.wait_event(("ready",))["ports"]
    assert isinstance(ports, list)
    return [port["offloads"] for port in ports]


def download(lab: Lab, vip: str) -> str:
    target = clients.url(vip, 80, f"/bytes/{SIZE}")
    done = lab.client.run(["sh", "-c", f"curl -gsS --noproxy '*' -m 20 '{target}' | sha256sum"])
    return done.stdout.split()[0]


def mean_frame(lab: Lab, device: str) -> float:
    """Bytes of a frame that the kernel handed to tunlb, by its own count."""
    [link] = json.loads(lab.director.run(["ip", "-j", "-s", "link", "show", device]).stdout)
    sent = link["stats64"]["tx"]
    return float(sent["bytes"] / sent["packets"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "no offload"])
def test_bulk_passes_in_large_frames(lab: LabFactory, family: Family, offload: bool) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "port", offload=offload))
    [accepted] = offloads(tunlb)
    assert accepted[:4] == (["csum", "tso4", "tso6", "tso_ecn"] if offload else [])
    assert (
        download(made, made.topology.vips.of(family)) == hashlib.sha256(pattern(SIZE)).hexdigest()
    )
    mean = mean_frame(made, "lb0")
    found = counters(tunlb)
    by_tunlb = found["IPVS_OUT_BYTES"] / found["IPVS_OUT_PACKETS"]
    if offload:
        # The frames of the data are up to 64 KB; the client's acknowledgements have 66 bytes.
        assert by_tunlb > 5000
        assert mean > 2000
    else:
        assert by_tunlb <= 1500
        assert mean <= 1514
    assert not {name for name in found if name.startswith("drop.")} & {
        "drop.VNET_HEADER",
        "drop.TX_REFUSED",
        "drop.IP_LENGTH",
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plain", ["lb-in", "lb-out"])
def test_ports_of_both_kinds_meet(lab: LabFactory, family: Family, plain: str) -> None:
    """What one port read with offloads leaves by one that asked for none, and back."""
    made = lab("two-arm")
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "port", plain, offload=False))
    assert sorted(map(bool, offloads(tunlb))) == [False, True]
    assert (
        download(made, made.topology.vips.of(family)) == hashlib.sha256(pattern(SIZE)).hexdigest()
    )
    with clients.connection(made.client, made.topology.vips.of(family), 7) as conn:
        assert conn.echo(pattern(100_000)) == pattern(100_000)
    assert "drop.TX_REFUSED" not in counters(tunlb)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "no offload"])
def test_a_burst_of_datagrams_in_one_send(lab: LabFactory, family: Family, offload: bool) -> None:
    """UDP segmentation: one frame where the kernel takes USO, ten otherwise; ten echoes."""
    made = lab("one-arm")
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "port", offload=offload))
    uso = "uso4" in offloads(tunlb)[0]
    kind = socket.AF_INET if family == "v4" else socket.AF_INET6
    datagrams = [bytes([n]) * 1000 for n in range(10)]
    with made.client.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sock.connect((made.topology.vips.of(family), 7))
        sock.send(b"".join(datagrams))
        echoes = [clients.parse_echo(sock.recv(2000)).data for _ in datagrams]
    assert sorted(echoes) == datagrams
    found = counters(tunlb)
    assert found["IPVS_IN_PACKETS"] == (1 if uso else 10)
    assert found["IPVS_OUT_PACKETS"] == 10
