"""The host beside a port: its own servers and clients on the addresses that tunlb has, LOCAL dests,
and the mirror.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import demand
from tests.e2e.kit import (
    COMPILED,
    FAMILIES,
    Family,
    LabFactory,
    counters,
    drops,
    eventually,
    serves,
    service,
    with_keys,
    with_lines,
    without,
    workers_of,
)
from tests.e2e.test_unprivileged import prepared, start
from tunlb.lab import TOPOLOGIES, Lab, TunlbProcess, clients, rootless
from tunlb.lab.host import Host, LabError, ip
from tunlb.lab.servers import __file__ as servers_file
from tunlb.lab.servers import pattern
from tunlb.pipeline.host import SHADOW

HOST = "lb0-host"
OWN = {"v4": "10.0.0.254", "v6": "fd00::fe"}
VIP = {"v4": "10.0.0.100", "v6": "fd00::100"}
EXTRA = {"v4": "10.0.0.77", "v6": "fd00::77"}
FLOATING = {"v4": "10.0.0.88", "v6": "fd00::88"}
SERVER = {"v4": "10.0.0.11", "v6": "fd00::11"}
CLIENT = {"v4": "10.0.0.2", "v6": "fd00::2"}
SSH, LOCAL_PORT = 2222, 8081
VRRP_GROUP, VRRP = "224.0.0.18", 112
# PORT_DOWN: what comes while a device that was deleted is made again.
PLANNED_DROPS = {"OTHERHOST", "TX_BLOCKED", "MARTIAN", "PORT_DOWN"}
BOTH = ["10.0.0.77/32", "fd00::77/128"]


def host_config(**keys: object) -> str:
    """One-arm, with a host, and a service of which the host is one dest of three."""
    keys = {"host": HOST, "host_addresses": BOTH, **keys}
    text = with_keys(TOPOLOGIES["one-arm"].config_text, "port", None, **keys)
    for family in FAMILIES:
        # The servers do not have the VIP: fnat to them, beside local.
        text = with_lines(
            text,
            *service(
                f"mixed-{family}",
                VIP[family],
                LOCAL_PORT,
                ["10.0.0.11", "10.0.0.12"] if family == "v4" else ["fd00::11", "fd00::12"],
                dport=8080,
                scheduler="wlc",
                laddrs=["10.0.0.210" if family == "v4" else "fd00::210"],
            ),
            {
                "kind": "dest",
                "service": f"mixed-{family}",
                "daddr": VIP[family],
                "fwdmode": "local",
            },
        )
    return text


def serve_on_host(lab: Lab) -> None:
    """Servers in the director's namespace, on every address that it has."""
    argv = [sys.executable, "-I", "-S", servers_file, "host"]
    argv += ["--http", str(SSH), str(LOCAL_PORT), "--echo", "2007"]
    lab.director.popen(argv)
    lab.director.popen(["iperf3", "-s", "-p", "5299"])
    eventually(lambda: listening(lab.director, [SSH, LOCAL_PORT, 2007, 5299]))


def listening(host: Host, ports: list[int]) -> bool:
    shown = host.run(["ss", "-Hltn"]).stdout
    return all(f":{port} " in shown for port in ports)


@dataclass
class Site:
    lab: Lab
    tunlb: TunlbProcess
    workers: int

    def fetch(self, address: str, port: int = SSH) -> str:
        return clients.fetch(self.lab.client, clients.url(address, port)).body.strip()


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def site(request: pytest.FixtureRequest, _host_problems: list[str]) -> Iterator[Site]:
    demand(_host_problems)
    workers: int = request.param
    with Lab(TOPOLOGIES["one-arm"], f"one-arm-{os.getpid()}-k{workers}") as lab:
        tunlb = lab.start_tunlb(with_keys(host_config(), "tunlb", None, workers=workers))
        serve_on_host(lab)
        yield Site(lab, tunlb, workers)
        found = counters(tunlb)
        assert drops(found) <= PLANNED_DROPS, found
        assert found["HOST_IN"] > 100
        assert found["HOST_OUT"] > 100
        assert "HOST_MIRRORED" not in found
        # The host answers for its addresses, and tunlb asks who has what: each once.
        assert "ICMP_ECHO_REPLIES" not in found


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


def test_a_server_of_the_host(site: Site, family: Family) -> None:
    """On the port's address, on one that only the host has, and on a VIP's other port."""
    for address in (OWN[family], EXTRA[family], VIP[family]):
        assert site.fetch(address) == "host"
    # The VIP's services are tunlb's all the same.
    assert site.fetch(VIP[family], 80) in site.lab.topology.server_names


def test_a_closed_port_is_refused_by_the_host(site: Site, family: Family) -> None:
    with site.lab.client.socket(clients._family(OWN[family]), socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        with pytest.raises(ConnectionRefusedError):
            sock.connect((OWN[family], 4))


def test_udp_to_the_host(site: Site, family: Family) -> None:
    """Also on a VIP that has a UDP service, and as fragments to an address of the host's own."""
    for address in (OWN[family], VIP[family]):
        assert clients.udp_echo(site.lab.client, address, 2007, b"hello").host == "host"
    answer = clients.udp_echo(site.lab.client, OWN[family], 2007, pattern(4000))
    assert answer.data == pattern(4000)


def test_the_host_answers_pings_once(site: Site, family: Family) -> None:
    for address in (OWN[family], EXTRA[family], VIP[family]):
        done = site.lab.client.run(["ping", "-c", "3", "-i", "0.05", "-W", "2", address])
        assert "3 received" in done.stdout
        assert "DUP" not in done.stdout
        assert "ttl=64" in done.stdout


def test_one_mac_address_answers_for_all(site: Site) -> None:
    """A question for an address of ours has one answer, and the bridge's kernel is silent."""
    mac = str(site.tunlb.wait_event(("ready",))["ports"][0]["mac"])  # type: ignore[index]
    for address in (OWN["v4"], EXTRA["v4"], VIP["v4"]):
        seen = arp_answers(site.lab, address)
        assert seen == [mac]
    shown = ip("-n", site.lab.director.ns, "-j", "link", "show", HOST)
    assert f'"address":"{mac}"' in shown.replace(" ", "")


def arp_answers(lab: Lab, address: str) -> list[str]:
    with lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0x0806))
        mine = sock.getsockname()[4]
        body = bytes.fromhex("0001080006040001") + mine + socket.inet_aton("10.0.0.2")
        sock.send(b"\xff" * 6 + mine + b"\x08\x06" + body + bytes(6) + socket.inet_aton(address))
        sock.settimeout(0.3)
        found = []
        try:
            while True:
                frame = sock.recv(2048)
                if frame[20:22] == b"\0\2" and frame[28:32] == socket.inet_aton(address):
                    found.append(frame[22:28].hex(":"))
        except TimeoutError:
            return found


def test_the_host_goes_out(site: Site, family: Family) -> None:
    """Like a BGP speaker: it asks for its peer's MAC address and connects."""
    ip("-n", site.lab.director.ns, "neigh", "flush", "dev", HOST)
    target = clients.url(SERVER[family], 8080)
    assert clients.fetch(site.lab.director, target).body.strip() == "s1"
    shown = site.lab.director.run(["ip", "neigh", "show", "dev", HOST]).stdout
    assert SERVER[family] in shown


def test_an_address_that_floats(site: Site, family: Family) -> None:
    """keepalived gives the host one that tunlb has never heard of."""
    length = 32 if family == "v4" else 128
    command = ["addr", "add", f"{FLOATING[family]}/{length}", "dev", HOST]
    ip("-n", site.lab.director.ns, *command, *(["nodad"] if family == "v6" else []))
    assert site.fetch(FLOATING[family]) == "host"


def test_multicast_reaches_the_host_and_leaves_it(site: Site) -> None:
    """VRRP advertisements, both ways."""
    message = bytes.fromhex("2101640100010a0a") + b"tunlb"
    for sender, via, receiver in (
        (site.lab.client, CLIENT["v4"], site.lab.director),
        (site.lab.director, OWN["v4"], site.lab.client),
    ):
        at = OWN["v4"] if receiver is site.lab.director else CLIENT["v4"]
        with (
            receiver.socket(socket.AF_INET, socket.SOCK_RAW, VRRP) as inside,
            sender.socket(socket.AF_INET, socket.SOCK_RAW, VRRP) as out,
        ):
            group = socket.inet_aton(VRRP_GROUP) + socket.inet_aton(at)
            inside.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            inside.settimeout(5)
            out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(via))
            out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            out.sendto(message, (VRRP_GROUP, 0))
            packet, (source, _) = inside.recvfrom(2048)
        assert (packet[20:], packet[8], source) == (message, 255, via)


def test_local_beside_remote_dests(site: Site, family: Family) -> None:
    took = Counter(site.fetch(VIP[family], LOCAL_PORT) for _ in range(18))
    assert set(took) == {"host", "s1", "s2"}
    assert min(took.values()) >= (4 if site.workers == 1 else 1), took


def test_a_large_transfer_of_the_host(site: Site, family: Family) -> None:
    """Both ways, whole and with offloads."""
    for reverse in (False, True):
        assert bulk(site, OWN[family], reverse=reverse) > (0.5 if COMPILED else 0.05)
    body = clients.fetch(site.lab.client, clients.url(OWN[family], SSH, "/bytes/3000000")).body
    assert len(body) == 3_000_000


def bulk(site: Site, address: str, *, reverse: bool) -> float:
    """Gbit/s. An iperf3 server resets who comes while it makes itself ready for the next one."""

    def once() -> float | None:
        try:
            return clients.iperf3(
                site.lab.client, address, port=5299, seconds=1, reverse=reverse
            ).gbps
        except LabError:
            return None

    found = eventually(once, 10)
    assert found is not None
    return found


def test_a_worker_that_is_killed(site: Site) -> None:
    before = workers_of(site.lab)
    with clients.connection(site.lab.client, OWN["v4"], 2007) as conn:
        assert conn.host == "host"
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        assert conn.echo(b"still there") == b"still there"
    eventually(lambda: not set(workers_of(site.lab).values()) & set(before.values()))
    eventually(lambda: len(workers_of(site.lab)) == site.workers)


def test_an_upgrade(site: Site) -> None:
    with clients.connection(site.lab.client, VIP["v4"], 2007) as conn:
        seen = len(site.tunlb.log_lines)
        os.kill(site.tunlb.pid, signal.SIGUSR2)
        site.tunlb.wait_event(("upgraded",), after=seen, timeout=30)
        assert conn.echo(b"still there") == b"still there"
    for family in FAMILIES:
        assert site.fetch(OWN[family]) == site.fetch(EXTRA[family]) == "host"


def test_both_devices_are_made_again(site: Site) -> None:
    for name in (HOST, "lb0"):
        ip("-n", site.lab.director.ns, "link", "del", name)
        eventually(partial(recovered, site.tunlb, name))
        assert eventually(lambda: _fetches(site, OWN["v4"]))
        assert eventually(lambda: _fetches(site, OWN["v6"]))


def recovered(tunlb: TunlbProcess, name: str) -> bool:
    return ("port_recovered", name) in {(e["event"], e.get("port")) for e in tunlb.events}


def _fetches(site: Site, address: str) -> bool:
    try:
        return site.fetch(address) == "host"
    except Exception:
        return False


def addresses_of(lab: Lab) -> set[str]:
    shown = lab.director.run(["ip", "-o", "addr", "show", "dev", HOST]).stdout
    return {line.split()[3] for line in shown.splitlines()}


def test_a_reload_moves_addresses(lab: LabFactory) -> None:
    made = lab("one-arm")
    text = host_config()
    drained = with_keys(text, "service", drain_s=0.5)
    tunlb = made.start_tunlb(drained)
    own = {"10.0.0.254/24", "fd00::fe/64", *BOTH}
    vips = {"10.0.0.100/32", "fd00::100/128"}
    assert own | vips <= addresses_of(made)
    moved = with_keys(drained, "port", addresses=["10.0.0.253/24", "fd00::fe/64"])
    moved = without(moved, kind="dest", fwdmode="local")
    assert tunlb.reload(moved)["event"] == "reloaded"
    assert vips <= addresses_of(made)  # conns to the host drain
    eventually(lambda: not vips & addresses_of(made))
    assert "10.0.0.253/24" in addresses_of(made)
    assert "10.0.0.254/24" not in addresses_of(made)
    assert tunlb.reload(drained)["event"] == "reloaded"
    assert own | vips <= addresses_of(made)
    assert tunlb.stop() == 0


@pytest.mark.skipif(rootless.inside(), reason="this user namespace has one user")
def test_without_a_capability(lab: LabFactory, tmp_path: Path) -> None:
    """On what `tunlb setup` has prepared, MAC address and switches included."""
    made = lab("one-arm")
    text = with_keys(host_config(), "tunlb", None, workers=2)
    prepared(made, tmp_path, text, "setup")
    tunlb = start(made, tmp_path, text)
    serve_on_host(made)
    assert serves(made)
    for family in FAMILIES:
        for address in (OWN[family], EXTRA[family], VIP[family]):
            assert clients.fetch(made.client, clients.url(address, SSH)).body.strip() == "host"
    assert tunlb.reload(with_keys(text, "port", None, host_mirror=True))["event"] == "reloaded"
    assert tunlb.stop() == 0
    prepared(made, tmp_path, text, "teardown")
    assert HOST not in made.director.run(["ip", "-o", "link"]).stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_the_mirror(lab: LabFactory, workers: int) -> None:
    """Switched on by a reload: the host sees every frame once, and answers none that is not its.

    Two workers are not steered, so frames are handed over.
    """
    made = lab("one-arm")

    def config(**keys: object) -> str:
        return with_keys(host_config(**keys), "tunlb", None, workers=workers, steering=False)

    tunlb = made.start_tunlb(config())
    serve_on_host(made)
    port = tunlb.wait_event(("ready",))["ports"][0]  # type: ignore[index]
    own = bytes.fromhex(str(port["mac"]).replace(":", ""))
    shadow = bytes((own[0] ^ SHADOW,)) + own[1:]

    def seen_while_fetching(address: str, number: int) -> Counter[bytes]:
        with made.director.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((HOST, 3))
            sock.settimeout(0.3)
            clients.fetch(made.client, clients.url(address, number))
            seen: Counter[bytes] = Counter()
            try:
                while True:
                    frame, where = sock.recvfrom(65536)
                    syn = frame[47] & 0x12 == 2 if frame[12:14] == b"\x08\0" else False
                    # 4: what the host itself sends
                    if where[2] != 4 and syn and frame[23] == 6:
                        seen[frame[:6]] += 1
            except TimeoutError:
                return seen

    assert not seen_while_fetching(VIP["v4"], 80)
    assert tunlb.reload(config(host_mirror=True))["event"] == "reloaded"
    for _ in range(1 if workers == 1 else 6):
        assert seen_while_fetching(VIP["v4"], 80) == {shadow: 1}
        assert seen_while_fetching(OWN["v4"], SSH) == {own: 1}
    assert clients.iperf3(made.client, VIP["v4"], seconds=1).gbps > (0.3 if COMPILED else 0.03)
    # A host that takes nothing does not hold up the others.
    ip("-n", made.director.ns, "link", "set", HOST, "down")
    assert clients.fetch(made.client, clients.url(VIP["v4"], 80)).status == 200
    assert tunlb.reload(config())["event"] == "reloaded"
    found = counters(tunlb)
    assert ("HANDED_OVER" in found) == (workers > 1)
    assert found["HOST_MIRRORED"] > 10
    assert found["drop.MIRROR_LOST"] > 0


def test_a_host_on_a_bridge_is_refused(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb(host_config())
    assert serves(made)  # from here on it watches
    ip("-n", made.director.ns, "link", "set", HOST, "master", "br0")
    eventually(lambda: [e for e in tunlb.events if e["event"] == "routing_problem"])
    frames = f"/sys/class/net/{HOST}/statistics/rx_packets"
    seen = int(made.director.run(["cat", frames]).stdout)
    time.sleep(0.3)
    assert int(made.director.run(["cat", frames]).stdout) < seen + 100
    event = tunlb.reload(host_config())
    assert event["event"] == "reload_refused"
    assert "on a bridge" in str(event["problems"])
    ip("-n", made.director.ns, "link", "set", HOST, "nomaster")
    assert tunlb.reload(host_config())["event"] == "reloaded"
    assert counters(tunlb)["HOST_OUT"] > 0


def test_what_was_switched_is_switched_back(lab: LabFactory) -> None:
    made = lab("one-arm")
    path = "/proc/sys/net/ipv4/conf/br0/arp_ignore"
    tunlb = made.start_tunlb(host_config())
    assert made.director.run(["cat", path]).stdout.strip() == "1"
    assert tunlb.stop() == 0
    assert made.director.run(["cat", path]).stdout.strip() == "0"
    assert HOST not in made.director.run(["ip", "-o", "link"]).stdout
