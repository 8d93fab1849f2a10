"""Two devices, one port: the link of one goes away, and connections go on over the other."""

from __future__ import annotations

import time

import pytest

from tests.e2e.kit import (
    LabFactory,
    counters,
    eventually,
    serves,
    stopped,
    with_keys,
    with_lines,
    workers_of,
)
from tests.e2e.test_worker_faults import kill
from tunlb.lab import Lab, TunlbProcess, clients
from tunlb.lab.host import ip

BACKUP = {"kind": "port", "name": "lb1", "bridge": "br1", "backup_of": "lb0"}


def two_cables(lab: Lab) -> None:
    """Between the lab's bridge, which plays the switch, and two bridges with a TAP each."""
    ns = lab.director.ns
    commands = []
    for leg in ("0", "1"):
        commands += [
            f"link add cable{leg} type veth peer name plug{leg}",
            f"link add leg{leg} type bridge mcast_snooping 0",
            f"link set plug{leg} master br0",
            f"link set cable{leg} master leg{leg}",
            *(f"link set {dev}{leg} up" for dev in ("cable", "plug", "leg")),
        ]
    ip("-n", ns, batch=commands)


def bonded(lab: Lab, workers: int = 1) -> str:
    text = with_keys(lab.topology.config_text, "port", "lb0", bridge="leg0")
    text = with_keys(text, "tunlb", workers=workers)
    return with_lines(text, {**BACKUP, "bridge": "leg1"})


def unplug(lab: Lab, leg: int) -> None:
    ip("-n", lab.director.ns, "link", "set", f"plug{leg}", "down")


def plug(lab: Lab, leg: int) -> None:
    ip("-n", lab.director.ns, "link", "set", f"plug{leg}", "up")


def failover(tunlb: TunlbProcess, after: int) -> tuple[object, object]:
    event = tunlb.wait_event(("port_failover",), after=after)
    return event["former"], event["active"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cable_is_pulled_and_put_back(lab: LabFactory, workers: int) -> None:
    made = lab("one-arm")
    two_cables(made)
    tunlb = made.start_tunlb(bonded(made, workers))
    with (
        clients.connection(made.client, made.topology.vips.v4, 7) as v4,
        clients.connection(made.client, made.topology.vips.v6, 7) as v6,
    ):
        for leg, expected in ((0, ("lb0", "lb1")), (0, ("lb1", "lb0"))):
            seen = len(tunlb.log_lines)
            (unplug if expected[0] == "lb0" else plug)(made, leg)
            assert failover(tunlb, seen) == expected
            assert v4.echo(b"four") == b"four"
            assert v6.echo(b"six") == b"six"
            assert serves(made)
            seen = len(tunlb.log_lines)
    assert counters(tunlb)["CONN_NEW"] >= 2


def test_the_backup_is_unplugged_and_nothing_happens(lab: LabFactory) -> None:
    made = lab("one-arm")
    two_cables(made)
    tunlb = made.start_tunlb(bonded(made))
    assert serves(made)
    unplug(made, 1)
    time.sleep(0.5)
    assert serves(made)
    assert "port_failover" not in [event["event"] for event in tunlb.events]
    # Both at once: it stays where it is.
    unplug(made, 0)
    time.sleep(0.5)
    assert "port_failover" not in [event["event"] for event in tunlb.events]
    plug(made, 0)
    assert serves(made)


def test_a_start_with_one_cable(lab: LabFactory) -> None:
    """Nobody says that a link is down which always was."""
    made = lab("one-arm")
    two_cables(made)
    unplug(made, 0)
    tunlb = made.start_tunlb(bonded(made))
    assert failover(tunlb, 0) == ("lb0", "lb1")
    assert serves(made)


def test_a_link_that_flaps(lab: LabFactory) -> None:
    """However often, at the end frames leave by the device that carries."""
    made = lab("one-arm")
    two_cables(made)
    tunlb = made.start_tunlb(bonded(made, 2))
    with clients.connection(made.client, made.topology.vips.v4, 7) as conn:
        for _ in range(10):
            unplug(made, 0)
            plug(made, 0)
        assert conn.echo(b"up") == b"up"
        for _ in range(10):
            plug(made, 0)
            unplug(made, 0)
        assert conn.echo(b"down") == b"down"
        assert failover(tunlb, 0) == ("lb0", "lb1")


def test_a_worker_that_dies_after_a_failover(lab: LabFactory) -> None:
    """Its successor knows which device is the active one."""
    made = lab("one-arm")
    two_cables(made)
    tunlb = made.start_tunlb(bonded(made))
    with clients.connection(made.client, made.topology.vips.v4, 7) as conn:
        unplug(made, 0)
        assert failover(tunlb, 0) == ("lb0", "lb1")
        for _ in range(2):  # the spare that was made before, and the one after it
            [pid] = workers_of(made).values()
            kill(tunlb, pid)
            assert conn.echo(b"alive") == b"alive"
    assert stopped(tunlb)["conns"] != 0


def test_a_broadcast_is_answered_once(lab: LabFactory) -> None:
    """Both devices hear it."""
    made = lab("one-arm")
    two_cables(made)
    tunlb = made.start_tunlb(bonded(made))
    arping = made.client.run(["python3", "-c", ARPING, made.topology.vips.v4], check=False)
    assert arping.stdout.strip() == "1", arping.stderr
    assert eventually(lambda: counters(tunlb))["drop.STANDBY"] > 0


ARPING = """
import socket, struct, sys, time
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
sock.bind(("eth0", 0))
own = sock.getsockname()[4]
ask = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + own + socket.inet_aton("10.0.0.2")
ask += bytes(6) + socket.inet_aton(sys.argv[1])
sock.send(b"\\xff" * 6 + own + b"\\x08\\x06" + ask)
sock.settimeout(0.5)
end, count = time.monotonic() + 0.5, 0
while time.monotonic() < end:
    try:
        frame = sock.recv(2048)
    except TimeoutError:
        break
    count += frame[20:22] == b"\\x00\\x02" and frame[28:32] == socket.inet_aton(sys.argv[1])
print(count)
"""
