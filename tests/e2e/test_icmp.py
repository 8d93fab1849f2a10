"""ICMP on its way through tunlb, told by what a real client's kernel makes of it."""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Callable

import pytest

from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    Line,
    client_address,
    counters,
    eventually,
    own_addresses,
    service,
    with_lines,
)
from tunlb.lab import Lab, TunlbProcess, clients
from tunlb.lab.host import ip
from tunlb.lab.servers import pattern

IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO = 10, 23, 2
SMALL_MTU = 1300
NOBODY = 9999  # a port on which no server listens
DATA = pytest.mark.parametrize("family", FAMILIES)


def udp_socket(lab: Lab, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = lab.client.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(2)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
    sock.connect((address, port))
    return sock


def is_too_long(sock: socket.socket) -> bool:
    """Sends a datagram; whether the client's kernel knows already that the path is too narrow."""
    try:
        sock.send(bytes(SMALL_MTU + 50))
    except OSError as error:
        return error.errno == errno.EMSGSIZE
    return False


def learns_the_path_mtu(made: Lab, tunlb: TunlbProcess, family: Family, counter: str) -> None:
    """A datagram's sender is told, TCP recovers by itself; ``counter`` counts who told them."""
    vip = made.topology.vips.of(family)
    with udp_socket(made, vip, 17) as sock:
        eventually(lambda: is_too_long(sock))
    with udp_socket(made, vip, 17) as sock:
        sock.send(b"small enough")
        assert clients.parse_echo(sock.recv(2000)).data == b"small enough"
    # The client's kernel remembers for each destination: TCP has to learn it anew.
    ip("-n", made.client.ns, "-6" if family == "v6" else "-4", "route", "flush", "cache")
    with clients.connection(made.client, vip, 17, timeout=10) as conn:
        data = pattern(100_000)
        assert hashlib.sha256(conn.echo(data)).digest() == hashlib.sha256(data).digest()
    found = counters(tunlb)
    assert found[counter] >= 2
    # Each direction meets the limit a few times, then its sender has learnt.
    assert found.get("drop.MTU_EXCEEDED", 0) < 50


def narrow_in_tunlb(family: Family) -> tuple[Line, ...]:
    """Routes of tunlb's own with a small MTU: towards the first server, and to the client."""
    hosts = ("10.0.0.11/32", "10.0.0.2/32") if family == "v4" else ("fd00::11/128", "fd00::2/128")
    return tuple({"kind": "route", "dst": h, "port": "lb0", "mtu": SMALL_MTU} for h in hosts)


def one_dest(lab: Lab, family: Family) -> list[Line]:
    """A TCP and a UDP echo service whose only dest is the first server."""
    vip, server = lab.topology.vips.of(family), lab.topology.servers[0][1].of(family)
    assert lab.topology.laddrs is not None
    laddrs = [lab.topology.laddrs.of(family)]
    return [
        line
        for proto in ("tcp", "udp")
        for line in service(
            f"narrow-{proto}", vip, 17, [server], proto=proto, dport=7777, laddrs=laddrs
        )
    ]


def narrow_by_route(lab: Lab, family: Family) -> None:
    """The director's kernel, a router behind the TUN, has a small MTU towards the first server."""
    host = lab.topology.servers[0][1].of(family)
    mtu = ("mtu", "lock", str(SMALL_MTU))
    ip("-n", lab.director.ns, "route", "add", host, "dev", "br-in", *mtu)


def by_tunlb(lab: Lab, family: Family) -> str:
    return with_lines(lab.topology.config_text, *one_dest(lab, family), *narrow_in_tunlb(family))


def by_a_router(lab: Lab, family: Family) -> str:
    narrow_by_route(lab, family)
    return with_lines(lab.topology.config_text, *one_dest(lab, family))


@DATA
@pytest.mark.parametrize(
    ("topology", "narrow", "counter"),
    [("one-arm", by_tunlb, "ICMP_ERRORS_SENT"), ("tun", by_a_router, "ICMP_RELATED")],
    ids=["tunlb says it", "a router behind tunlb says it"],
)
def test_a_client_learns_the_path_mtu(
    lab: LabFactory,
    topology: str,
    narrow: Callable[[Lab, Family], str],
    counter: str,
    family: Family,
) -> None:
    """Frag needed and packet too big: TCP recovers by itself, a datagram's sender is told."""
    made = lab(topology)
    tunlb = made.start_tunlb(narrow(made, family))
    learns_the_path_mtu(made, tunlb, family, counter)


@DATA
@pytest.mark.parametrize("topology", ["one-arm", "two-arm", "tun"])
def test_a_closed_port_of_a_dest(lab: LabFactory, topology: str, family: Family) -> None:
    """Port unreachable reaches the socket that sent the datagram; a RST its connection."""
    made = lab(topology)
    vip = made.topology.vips.of(family)
    assert made.topology.laddrs is not None
    keys = {"dport": NOBODY, "laddrs": [made.topology.laddrs.of(family)]}
    if topology == "two-arm":
        keys = {"dport": NOBODY, "fwdmode": "nat"}
    dests = [pair.of(family) for _, pair in made.topology.servers]
    more = [
        *service("closed-udp", vip, 18, dests, proto="udp", **keys),
        *service("closed-tcp", vip, 18, dests, proto="tcp", **keys),
    ]
    tunlb = made.start_tunlb(with_lines(made.topology.config_text, *more))
    with udp_socket(made, vip, 18) as sock:
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
    with pytest.raises(ConnectionRefusedError):
        clients.tcp_echo(made.client, vip, 18)
    found = counters(tunlb)
    assert found["ICMP_RELATED"] == 1
    assert "drop.ICMP_UNRELATED" not in found


@DATA
@pytest.mark.parametrize("case", ["no service", "no dest"])
def test_tunlb_itself_refuses(lab: LabFactory, case: str, family: Family) -> None:
    made = lab("one-arm")
    vip = made.topology.vips.of(family)
    assert made.topology.laddrs is not None
    keys = {"laddrs": [made.topology.laddrs.of(family)]}
    more = [
        line
        for proto in ("udp", "tcp")
        for line in service(f"{proto}-19", vip, 19, [], proto=proto, **keys)
    ]
    text = made.topology.config_text
    tunlb = made.start_tunlb(with_lines(text, *more) if case == "no dest" else text)
    with udp_socket(made, vip, 19) as sock:
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
    with pytest.raises(OSError, match="refused"):
        clients.tcp_echo(made.client, vip, 19)
    reason = "drop.NO_DEST" if case == "no dest" else "drop.PORT_UNREACHABLE"
    assert counters(tunlb)[reason] >= 2


@DATA
def test_a_gateway_forwards_what_is_no_service(lab: LabFactory, family: Family) -> None:
    made = lab("two-arm")
    tunlb = made.start_tunlb()
    server = made.topology.servers[0][1].of(family)
    body = clients.fetch(made.client, clients.url(server, 8080, "/peer")).body
    assert clients.parse_echo(body.encode()).peer == client_address(made, family)
    done = made.client.run(["ping", "-c", "1", "-W", "2", "-t", "1", server], check=False)
    outside = own_addresses(made)[0 if family == "v4" else 1]
    assert f"From {outside} icmp_seq=1 Time" in done.stdout
    found = counters(tunlb)
    assert found["FORWARDED"] > 5
    assert found["drop.TTL_EXCEEDED"] == 1


def test_fragments_are_counted(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    for vip in made.topology.vips:
        done = made.client.run(["ping", "-c", "1", "-W", "1", "-s", "3000", vip], check=False)
        assert " 0 received" in done.stdout
    assert counters(tunlb)["drop.FRAGMENT"] == 6
