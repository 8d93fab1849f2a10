"""Devices that go away under us, and starts that cannot work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.kit import LabFactory, counters, eventually, serves, with_keys, with_lines
from tunlb.lab import Host, Lab, clients
from tunlb.lab.clients import EchoConnection
from tunlb.lab.host import ip
from tunlb.lab.process import environment

NO_CAPABILITIES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
TOPOLOGIES = pytest.mark.parametrize("topology", ["one-arm", "tun"])


@contextmanager
def conn_through(lab: Lab) -> Iterator[EchoConnection]:
    """A connection that still works at the end of the block."""
    with clients.connection(lab.client, lab.topology.vips.v4, 7, timeout=20) as conn:
        assert conn.echo(b"before") == b"before"
        yield conn
        assert conn.echo(b"after") == b"after"


def works_now(lab: Lab) -> bool:
    try:
        return bool(clients.udp_echo(lab.client, lab.topology.vips.v4, 7, timeout=0.2).data)
    except OSError:
        return False


# ---- devices


@TOPOLOGIES
def test_a_link_down_and_up(lab: LabFactory, topology: str) -> None:
    made = lab(topology)
    tunlb = made.start_tunlb()
    with conn_through(made):
        ip("-n", made.director.ns, "link", "set", "lb0", "down")
        assert not works_now(made)
        ip("-n", made.director.ns, "link", "set", "lb0", "up")
    # The kernel forgets a TUN's routes with its link; tunlb puts its own back.
    assert serves(made)
    assert "NETIF_LOST" not in counters(tunlb)


def test_a_device_that_is_moved_keeps_working(lab: LabFactory) -> None:
    """To another network namespace, with a bridge there that leads to the old one."""
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    other = f"{made.director.ns}-b"
    ip("netns", "add", other)
    try:
        with conn_through(made):
            ip("-n", made.director.ns, "link", "set", "lb0", "netns", other)
            director = made.director.ns
            ip(
                "-n",
                other,
                batch=[
                    "link add br1 type bridge",
                    f"link add uplink type veth peer name to-b netns {director}",
                    "link set uplink master br1",
                    "link set lb0 master br1",
                    "link set uplink up",
                    "link set lb0 up",
                    "link set br1 up",
                ],
            )
            ip("-n", director, batch=["link set to-b master br0", "link set to-b up"])
        assert serves(made)
        assert tunlb.stop() == 0
        assert not [e for e in tunlb.events if e["event"] in ("port_lost", "not_undone")]
    finally:
        ip("netns", "del", other)


@TOPOLOGIES
def test_a_deleted_device_is_made_anew(lab: LabFactory, topology: str) -> None:
    made = lab(topology)
    tunlb = made.start_tunlb()
    with conn_through(made):
        for number in (1, 2):
            seen = len(tunlb.log_lines)
            ip("-n", made.director.ns, "link", "del", "lb0")
            assert tunlb.wait_event(("port_lost",), after=seen)["port"] == "lb0"
            tunlb.wait_event(("port_recovered",), after=seen)
            assert len([e for e in tunlb.events if e["event"] == "port_lost"]) == number
    assert serves(made)
    assert counters(tunlb)["NETIF_LOST"] == 2


def test_a_deleted_device_waits_for_its_bridge(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    director = made.director.ns
    [bridge] = made.director.spec.bridges
    with conn_through(made):
        ip("-n", director, "link", "del", "br0")
        ip("-n", director, "link", "del", "lb0")
        failed = tunlb.wait_event(("port_reopen_failed",))
        assert "there is no bridge br0" in str(failed["error"])
        ip(
            "-n",
            director,
            batch=[
                "link add br0 type bridge",
                *(f"link set {member} master br0" for member in bridge.members),
                "link set br0 up",
            ],
        )
        tunlb.wait_event(("port_recovered",))
    assert serves(made)
    assert tunlb.stop() == 0


def test_a_bridge_that_is_made_again(lab: LabFactory) -> None:
    """Whoever makes the bridge puts its members back, lb0 among them; tunlb never noticed."""
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    [bridge] = made.director.spec.bridges
    with conn_through(made):
        ip("-n", made.director.ns, "link", "del", "br0")
        assert not works_now(made)
        ip(
            "-n",
            made.director.ns,
            batch=[
                "link add br0 type bridge",
                *(f"link set {member} master br0" for member in (*bridge.members, "lb0")),
                "link set br0 up",
            ],
        )
    assert serves(made)
    assert tunlb.stop() == 0


def test_a_link_change_of_one_port_leaves_the_other_alone(lab: LabFactory) -> None:
    made = lab("two-arm")
    tunlb = made.start_tunlb()
    with conn_through(made):
        ip("-n", made.director.ns, "link", "del", "lb-in")
        tunlb.wait_event(("port_recovered",))
    assert serves(made)
    lost = [event["port"] for event in tunlb.events if event["event"] == "port_lost"]
    assert lost == ["lb-in"]
    assert tunlb.stop() == 0


# ---- starts


def start(
    host: Host, config: Path, wrapper: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    command = ["env", *(f"{k}={v}" for k, v in environment().items() if k.startswith("PYTHON"))]
    return host.run(
        [*wrapper, *command, sys.executable, "-m", "tunlb", "run", "-c", str(config)],
        check=False,
        timeout=20,
    )


@pytest.fixture
def config(lab: LabFactory) -> tuple[Lab, Path]:
    made = lab("one-arm")
    return made, made.dir / "tunlb.jsonl"


def test_no_device_node(config: tuple[Lab, Path]) -> None:
    made, path = config
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "hide"]
    done = start(made.director, path, hide)
    assert done.returncode == 71
    assert "/dev/net/tun is missing" in done.stderr
    assert "mknod /dev/net/tun c 10 200" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_permission(config: tuple[Lab, Path]) -> None:
    made, path = config
    done = start(made.director, path, NO_CAPABILITIES)
    assert done.returncode == 71
    assert "no permission to create or attach the tap device lb0" in done.stderr
    assert f"ip tuntap add dev lb0 mode tap user {os.geteuid()}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ("link add lb0 type veth", "the name lb0 is taken by a device that is not a tap"),
        ("link del br0", "there is no bridge br0 (ip link add br0 type bridge"),
        ("link set br0 down", "the bridge br0 is down"),
    ],
    ids=["name taken", "bridge missing", "bridge down"],
)
def test_a_device_that_cannot_be(config: tuple[Lab, Path], prepare: str, message: str) -> None:
    made, path = config
    ip("-n", made.director.ns, *prepare.split())
    done = start(made.director, path)
    assert done.returncode == 71
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_second_tunlb_is_told_of_the_first(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    done = start(made.director, tunlb.config)
    assert done.returncode == 71
    assert f"the device lb0 is in use by pid {tunlb.pid} (" in done.stderr
    assert serves(made)


def test_a_port_that_fails_takes_the_others_back(config: tuple[Lab, Path]) -> None:
    made, path = config
    text = with_lines(
        made.topology.config_text,
        {"kind": "port", "name": "lb1", "bridge": "br9", "addresses": ["10.9.0.1/24"]},
    )
    path.write_text(text, encoding="utf-8")
    assert start(made.director, path).returncode == 71
    eventually(lambda: "lb0" not in made.director.run(["ip", "-o", "link"]).stdout)


def test_a_prepared_device_needs_no_capability(lab: LabFactory) -> None:
    """An administrator makes the device once; tunlb itself runs with empty capability sets."""
    made = lab("one-arm")
    ip(
        "-n",
        made.director.ns,
        batch=[
            f"tuntap add dev lb0 mode tap user {os.geteuid()}",
            "link set lb0 master br0 txqueuelen 4096 up",
        ],
    )
    original = made.tunlb_argv
    with pytest.MonkeyPatch.context() as patch:

        def stripped(config: Path, python: str = sys.executable) -> list[str]:
            argv = original(config, python)
            return [*argv[:4], *NO_CAPABILITIES, *argv[4:]]

        patch.setattr(made, "tunlb_argv", stripped)
        tunlb = made.start_tunlb()
    status = Path(f"/proc/{tunlb.pid}/status").read_text("ascii")
    assert "CapEff:\t0000000000000000" in status
    assert serves(made)
    assert tunlb.stop() == 0
    with ExitStack() as stack:  # the device is the administrator's: it stays
        stack.callback(ip, "-n", made.director.ns, "link", "del", "lb0")
        assert "lb0" in made.director.run(["ip", "-o", "link"]).stdout


def test_the_kernels_mac_is_refused(config: tuple[Lab, Path]) -> None:
    made, path = config
    ip("-n", made.director.ns, "tuntap", "add", "dev", "lb0", "mode", "tap")
    mac = "02:00:00:00:00:77"
    ip("-n", made.director.ns, "link", "set", "lb0", "address", mac)
    path.write_text(with_keys(made.topology.config_text, "port", mac=mac), encoding="utf-8")
    done = start(made.director, path)
    assert done.returncode == 71
    assert f"the configured mac {mac} is the kernel side's (choose another one)" in done.stderr
