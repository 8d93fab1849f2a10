"""Several routes: the longest prefix decides where a packet goes, and a reload changes that."""

from __future__ import annotations

import time

import pytest

from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    Line,
    counters,
    serves,
    service,
    with_keys,
    with_lines,
    workers_of,
)
from tunlb.lab import Lab, clients
from tunlb.lab.host import ip

# Behind s1 and s2, which are their routers. Both have the second address.
NEAR = {"v4": "10.9.0.11", "v6": "fd09::11"}
FAR = {"v4": "10.9.1.11", "v6": "fd09:1::11"}
VIP = {"v4": "10.0.0.101", "v6": "fd00::101"}
LADDRS = {"v4": "10.0.0.200-10.0.0.209", "v6": "fd00::200-fd00::209"}
WIDE = {"v4": ("10.9.0.0/16", "10.0.0.11"), "v6": ("fd09::/16", "fd00::11")}
NARROW = {"v4": ("10.9.1.0/24", "10.0.0.12"), "v6": ("fd09:1::/32", "fd00::12")}


def route(dst: str, via: str) -> Line:
    return {"kind": "route", "port": "lb0", "dst": dst, "via": via}


def configured(lab: Lab, family: Family, *routes: tuple[str, str], workers: int = 1) -> str:
    text = with_keys(lab.topology.config_text, "tunlb", workers=workers)
    keys = {"laddrs": [LADDRS[family]], "dport": 8080, "scheduler": "rr"}
    return with_lines(
        text,
        *(route(dst, via) for dst, via in routes),
        *service("near", VIP[family], 80, [NEAR[family]], **keys),
        *service("far", VIP[family], 81, [FAR[family]], **keys),
    )


def behind_routers(lab: Lab) -> None:
    for server, addresses in (("s1", (NEAR, FAR)), ("s2", (FAR,))):
        for each in addresses:
            for address in each.values():
                ip("-n", lab.host(server).ns, "addr", "add", address, "dev", "lo")


def served(lab: Lab, family: Family, port: int) -> str:
    target = clients.url(VIP[family], port, "/peer")
    return clients.parse_echo(clients.fetch(lab.client, target).body.encode()).host


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_prefix_decides(lab: LabFactory, family: Family, workers: int) -> None:
    made = lab("one-arm")
    behind_routers(made)
    both = configured(made, family, WIDE[family], NARROW[family], workers=workers)
    tunlb = made.start_tunlb(both)
    assert len(workers_of(made)) == workers
    assert (served(made, family, 80), served(made, family, 81)) == ("s1", "s2")
    wide = configured(made, family, WIDE[family], workers=workers)
    assert tunlb.reload(wide)["event"] == "reloaded"
    assert (served(made, family, 80), served(made, family, 81)) == ("s1", "s1")
    assert tunlb.reload(both)["event"] == "reloaded"
    assert (served(made, family, 80), served(made, family, 81)) == ("s1", "s2")
    assert serves(made)
    assert "drop.NO_ROUTE" not in counters(tunlb)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_open_connection_follows_its_route(lab: LabFactory, family: Family) -> None:
    """A neighbour takes the router's place: rows hold the way they found, until routes change."""
    made = lab("one-arm")
    behind_routers(made)
    # Both routers lead to s2's address: s1 forwards what is sent to it.
    s1 = made.host("s1")
    ip("-n", s1.ns, "addr", "del", FAR[family], "dev", "lo")
    via_s1, via_s2 = (NARROW[family][0], WIDE[family][1]), NARROW[family]
    ip("-n", s1.ns, "route", "add", NARROW[family][0], "via", NARROW[family][1])
    forwarding = "net.ipv4.ip_forward" if family == "v4" else "net.ipv6.conf.all.forwarding"
    s1.run(["sysctl", "-qw", f"{forwarding}=1"])

    def config(way: tuple[str, str]) -> str:
        keys = {"dport": 7777, "laddrs": [LADDRS[family]]}
        echo = service("echo-far", VIP[family], 7, [FAR[family]], **keys)
        return with_lines(configured(made, family, WIDE[family], way), *echo)

    def forwarded() -> int:
        table = "Ip" if family == "v4" else "Ip6"
        name = "ForwDatagrams" if family == "v4" else "Ip6OutForwDatagrams"
        if family == "v6":
            lines = s1.run(["cat", "/proc/net/snmp6"]).stdout.splitlines()
            return next(int(line.split()[1]) for line in lines if line.split()[0] == name)
        rows = s1.run(["grep", f"^{table}:", "/proc/net/snmp"]).stdout.splitlines()
        return int(dict(zip(rows[0].split(), rows[1].split(), strict=True))[name])

    tunlb = made.start_tunlb(config(via_s2))
    with clients.connection(made.client, VIP[family], 7, timeout=3) as conn:
        assert conn.echo(b"one") == b"one"
        assert (conn.host, forwarded()) == ("s2", 0)
        assert tunlb.reload(config(via_s1))["event"] == "reloaded"
        assert conn.echo(b"two") == b"two"
        time.sleep(0.5)  # a late ACK of "two" still goes this way
        there = forwarded()
        assert there > 0
        assert tunlb.reload(config(via_s2))["event"] == "reloaded"
        assert conn.echo(b"three") == b"three"
        assert forwarded() == there
