"""The lab itself, without tunlb: what the other end-to-end tests stand on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from tunlb.lab import TOPOLOGIES, Host, Lab, LabError, Topology, clients, net, rootless
from tunlb.lab.host import NETNS_DIR, ip
from tunlb.lab.process import TunlbError

LabFactory = Callable[[str], Lab]
ALL = sorted(TOPOLOGIES)
ONE_SEGMENT = ["one-arm", "dr"]


def addresses(topology: Topology) -> list[tuple[str, str]]:
    return [(name, address) for name, pair in topology.servers for address in pair]


def client_address(lab: Lab, towards: str) -> str:
    found = [
        a.partition("/")[0] for _, a in lab.client.spec.addresses if (":" in a) == (":" in towards)
    ]
    return found[0]


def left_of(lab: Lab) -> list[str]:
    names = [name for name in os.listdir(NETNS_DIR) if f"-{lab.suffix}-" in name]
    return names + ([str(lab.dir)] if lab.dir.exists() else [])


@pytest.mark.parametrize("name", ALL)
def test_a_lab_comes_up_and_leaves_nothing(privileged: None, name: str) -> None:
    lab = Lab(TOPOLOGIES[name], f"{name}-{os.getpid()}-up")
    with lab:
        [state] = [state for state in net.running() if state.suffix == lab.suffix]
        assert state.complete
        assert set(state.namespaces) == {host.ns for host in lab.hosts.values()}
        pids = net.processes_in(state.namespaces)
        assert len(pids) >= 2 * len(lab.topology.servers)
    assert left_of(lab) == []
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []


@pytest.mark.parametrize("name", [*ONE_SEGMENT, "tun"])
def test_the_client_reaches_every_server_and_is_seen_as_itself(lab: LabFactory, name: str) -> None:
    made = lab(name)
    for server, address in addresses(made.topology):
        mine = client_address(made, address)
        assert clients.fetch(made.client, clients.url(address, 8080)).body == f"{server}\n"
        tcp = clients.tcp_echo(made.client, address, 7777, b"x" * 3000)
        assert (tcp.host, tcp.peer, tcp.data) == (server, mine, b"x" * 3000)
        udp = clients.udp_echo(made.client, address, 7777, b"y" * 1200)
        assert (udp.host, udp.peer, udp.data) == (server, mine, b"y" * 1200)


def test_two_arms_are_apart_without_tunlb(lab: LabFactory) -> None:
    made = lab("two-arm")
    for _, address in addresses(made.topology):
        with pytest.raises(OSError):
            clients.udp_echo(made.client, address, 7777, timeout=0.05)


def test_a_body_of_a_fetch_is_whole(lab: LabFactory) -> None:
    made = lab("one-arm")
    target = clients.url("10.0.0.11", 80, "/bytes/100000")
    size = made.client.run(["curl", "-s", "-o", "/dev/null", "-w", "%{size_download}", target])
    assert size.stdout == "100000"


def test_the_fetch_without_curl(lab: LabFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    made = lab("one-arm")
    monkeypatch.setattr("shutil.which", lambda _: None)
    for path, expected in (("/", (200, "s2\n")), ("/nothing", (404, ""))):
        target = clients.url("fd00::12", 8080, path)
        answer = clients.fetch(made.client, target, python=sys.executable)
        assert (answer.status, answer.body) == expected


def test_iperf3_reports_what_arrived(lab: LabFactory) -> None:
    made = lab("one-arm")
    assert clients.iperf3(made.client, "10.0.0.11", seconds=1).gbps > 0.1
    udp = clients.iperf3(made.client, "fd00::12", seconds=1, udp=True, bitrate="10M")
    assert 0.001 < udp.gbps < 0.011
    with pytest.raises(LabError, match=r"iperf3 failed: .*refused"):
        clients.iperf3(made.client, "10.0.0.11", port=5999, seconds=1)


def mac_of(host: Host) -> str:
    [link] = json.loads(host.run(["ip", "-j", "link", "show", "eth0"]).stdout)
    return str(link["address"])


def test_dr_servers_hold_the_vip_silently_and_answer_from_it(lab: LabFactory) -> None:
    made = lab("dr")
    mac = mac_of(made.host("s2"))
    for vip in made.topology.vips:
        with pytest.raises(OSError):  # nobody answers for the VIP on the wire
            clients.udp_echo(made.client, vip, 7, timeout=0.1)
        ip("-n", made.client.ns, "neigh", "replace", vip, "lladdr", mac, "dev", "eth0")
        assert clients.fetch(made.client, clients.url(vip, 80)).body == "s2\n"
        # A connected socket takes answers from the VIP only.
        assert clients.udp_echo(made.client, vip, 7).host == "s2"
        assert clients.iperf3(made.client, vip, seconds=1, udp=True, bitrate="5M").gbps > 0.001


def route(host: Host, *words: str) -> dict[str, object]:
    [found] = json.loads(host.run(["ip", "-j", "route", "get", *words]).stdout)
    return dict(found)


@pytest.mark.parametrize(
    ("client", "server", "vip"),
    [("10.0.1.2", "10.0.2.11", "10.0.3.100"), ("fd01::2", "fd02::11", "fd03::100")],
    ids=["v4", "v6"],
)
def test_tun_director_routes_what_tunlb_needs(
    lab: LabFactory, client: str, server: str, vip: str
) -> None:
    made = lab("tun")
    director = made.director
    ip("-n", director.ns, "tuntap", "add", "dev", "lb0", "mode", "tun")
    ip("-n", director.ns, "link", "set", "lb0", "up")
    for _ in range(2):  # a tunlb that is started again finds its routes gone with the device
        made.after_ready()
    tcp = ("ipproto", "tcp", "dport", "40000")
    reply = (client, "from", server, "iif", "br-in", *tcp, "sport")
    assert route(director, *reply, "8081")["dev"] == "lb0"
    assert route(director, *reply, "8080")["dev"] == "to-client"
    # What tunlb writes must leave, in both directions, and never come back into the TUN.
    written = route(director, client, "from", vip, "iif", "lb0", *tcp, "sport", "8081")
    assert written["dev"] == "to-client"
    assert route(director, server, "from", client, "iif", "lb0")["dev"] == "br-in"


def test_a_set_up_that_fails_half_way_leaves_nothing(
    privileged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Lab) -> None:
        raise LabError("no servers today")

    monkeypatch.setattr(Lab, "_start_servers", fail)
    lab = Lab(TOPOLOGIES["one-arm"], f"one-arm-{os.getpid()}-half")
    with pytest.raises(LabError, match="no servers today"):
        lab.up()
    assert left_of(lab) == []


def test_what_a_crash_left_is_listed_and_removed_with_its_processes(privileged: None) -> None:
    suffix = f"dr-{os.getpid()}-crash"
    left = net.namespace(suffix, "client")
    other = net.namespace(f"{suffix}-other", "client")
    ip(batch=[f"netns add {left}", f"netns add {other}"])
    try:
        argv = ["ip", "netns", "exec", left, "cat"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
            assert cat.stdin is not None
            assert cat.stdout is not None
            cat.stdin.write(b"in the namespace\n")
            cat.stdin.flush()
            assert cat.stdout.readline() == b"in the namespace\n"
            [state] = [state for state in net.running() if state.suffix == suffix]
            assert not state.complete
            assert net.remove(suffix) == [left]
            assert cat.wait(5) == -9
        assert net.remove(suffix) == []
        assert other in os.listdir(NETNS_DIR)
    finally:
        net.remove(suffix)
        assert net.remove(f"{suffix}-other") == [other]


def test_a_tunlb_that_does_not_start_is_quoted(lab: LabFactory) -> None:
    made = lab("one-arm")
    with pytest.raises(TunlbError, match=r"exit status 78(.|\n)*\$\.vaddr"):
        made.start_tunlb('{"kind":"service","name":"web","proto":"tcp","vaddr":"nonsense"}\n')


def run(argv: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "TUNLB_ROOTLESS"}
    env["SHELL"] = "/bin/sh"
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=60, check=False, env=env
    )


def test_lab_up_and_down_by_the_command_line(privileged: None) -> None:
    """In a mount namespace with a /run of its own, so that nobody's lab of that name is met."""
    tunlb = f"{sys.executable} -m tunlb lab"
    script = f"""
        mount -t tmpfs tmpfs /run && set -e
        {tunlb} up one-arm; {tunlb} list
        {tunlb} up one-arm || echo "second up: $?"
        ip netns exec tunlb-one-arm-client curl -s http://10.0.0.13:8080/
        {tunlb} down one-arm; {tunlb} down one-arm; ls /run/netns /run/tunlb/lab
    """
    done = run(["unshare", "--net", "--mount", "sh", "-c", script])
    assert done.returncode == 0, done.stderr
    for part in (
        "one-arm is up",
        "ip netns exec tunlb-one-arm-client curl -g http://10.0.0.100:80/",
        "5 namespaces, 6 processes",
        "second up: 1",
        "\ns3\n",
        "removed tunlb-one-arm-client",
        "one-arm is not up: nothing to remove\n/run/netns:\n\n/run/tunlb/lab:\n",
    ):
        assert part in done.stdout
    assert "one-arm is up already; remove it with: tunlb lab down one-arm" in done.stderr


def test_lab_without_root_lives_as_long_as_its_shell(unprivileged: None) -> None:
    before = os.listdir(NETNS_DIR) if NETNS_DIR.exists() else []
    script = "ip netns exec tunlb-tun-client curl -sg http://[fd02::11]:8080/\n"
    argv = [sys.executable, "-m", "tunlb", "lab", "up", "tun", "--rootless"]
    done = run(argv, stdin=script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Leave with: exit\ns1\n")
    after = os.listdir(NETNS_DIR) if NETNS_DIR.exists() else []
    assert [name for name in after if name not in before and "tun-client" in name] == []


def test_any_command_runs_without_root(unprivileged: None) -> None:
    command = [
        sys.executable,
        "-m",
        "tunlb.lab.rootless",
        "sh",
        "-c",
        "ip netns add x; ls /run; exit 3",
    ]
    done = run(command)
    assert (done.stdout, done.returncode) == ("netns\n", 3)
    assert rootless.inside() or "x" not in os.listdir(NETNS_DIR)
