"""Several workers on real devices: who gets which frame, who learns what, and what they may do."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    counters,
    serves,
    with_keys,
    workers_of,
)
from tunlb.lab import Host, clients, rootless
from tunlb.privileges import mapped, status

ETH_P_ALL = 0x0003
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
IDLE_S = 4.0  #: the kernel's own choice of queues forgets a flow after 3 s (TUN_FLOW_EXPIRE)


@contextmanager
def overheard(host: Host, device: str) -> Iterator[list[bytes]]:
    """Every frame on a device of a host, complete at the end of the block."""
    frames: list[bytes] = []
    with host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        sock.bind((device, ETH_P_ALL))
        sock.setblocking(False)
        yield frames
        try:
            while True:
                frames.append(sock.recv(65536))
        except BlockingIOError:
            pass


def asked_for(frames: list[bytes], address: str) -> int:
    """How many requests for an address are among the frames: ARP, or neighbour solicitations."""
    if ":" in address:
        target = socket.inet_pton(socket.AF_INET6, address)
        return sum(
            struct.unpack_from("!H", frame, 12)[0] == ETH_P_IPV6
            and frame[20] == 58
            and frame[54] == 135
            and frame[62:78] == target
            for frame in frames
            if len(frame) >= 78
        )
    target = socket.inet_pton(socket.AF_INET, address)
    return sum(
        struct.unpack_from("!H", frame, 12)[0] == ETH_P_ARP
        and frame[20:22] == b"\x00\x01"
        and frame[38:42] == target
        # A gratuitous one asks for its own sender.
        and frame[28:32] != target
        for frame in frames
        if len(frame) >= 42
    )


def test_two_workers_each_take_their_share(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "tunlb", workers=2))
    assert tunlb.wait_event(("ready",))["workers"] == 2
    found = workers_of(made)
    assert sorted(found) == [0, 1]
    cpus = [os.sched_getaffinity(pid) for pid in found.values()]
    if len(os.sched_getaffinity(0)) > 1:
        assert len(set.union(*cpus)) == 2
        assert all(len(cpu) == 1 for cpu in cpus)
    assert serves(made)
    assert tunlb.stop() == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steering", [True, False], ids=["steered", "unsteered"])
@pytest.mark.parametrize("topology", ["two-arm", "one-arm"])
def test_flows_that_were_idle_for_long(
    lab: LabFactory, topology: str, steering: bool, family: Family
) -> None:
    """NAT and full NAT: both directions come to one worker, also after the kernel forgot."""
    made = lab(topology)
    text = with_keys(made.topology.config_text, "tunlb", workers=2, steering=steering)
    tunlb = made.start_tunlb(text)
    vip = made.topology.vips.of(family)
    with ExitStack() as stack:
        conns = [stack.enter_context(clients.connection(made.client, vip, 7)) for _ in range(100)]
        time.sleep(IDLE_S)
        for number, conn in enumerate(conns):
            assert conn.echo(b"%d" % number) == b"%d" % number
    found = counters(tunlb)
    assert not found.keys() & {"drop.TCP_NOT_SYN", "drop.PORT_UNREACHABLE", "drop.HANDOVER_FULL"}
    # A user namespace may not load the program.
    steered = steering and not rootless.inside()
    assert (found.get("HANDED_OVER", 0) > 0) is not steered, found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steering", [True, False], ids=["steered", "unsteered"])
def test_one_request_on_the_wire_for_an_address(
    lab: LabFactory, steering: bool, family: Family
) -> None:
    """Two workers need each neighbour at once: the answer reaches both, the question is one."""
    made = lab("one-arm")
    text = with_keys(made.topology.config_text, "tunlb", workers=2, steering=steering)
    vip = made.topology.vips.of(family)
    with ExitStack() as stack:
        wires = [stack.enter_context(overheard(made.host(n), "eth0")) for n in ("s1", "s2", "s3")]
        wires.append(stack.enter_context(overheard(made.client, "eth0")))
        tunlb = made.start_tunlb(text)
        for _ in range(60):
            assert clients.tcp_echo(made.client, vip, 7).data == b"tunlb"
    servers = [pair.of(family) for _, pair in made.topology.servers]
    for frames, address in zip(wires, servers, strict=False):
        assert asked_for(frames, address) == 1, address
    found = counters(tunlb)
    assert "drop.NEIGH_UNREACHABLE" not in found


@pytest.mark.parametrize("topology", ["one-arm", "two-arm", "dr", "tun"])
def test_what_a_worker_may_do(lab: LabFactory, topology: str) -> None:
    """Nothing: no capability, no way to one, an ordinary uid, no descriptor but those it needs."""
    made = lab(topology)
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "tunlb", workers=2))
    for number, pid in workers_of(made).items():
        found = status(pid)
        assert found[:5] == (0, 0, 0, 0, 0)  # every capability set, the bounding one too
        assert found.no_new_privs
        assert set(found.uids) == {65534 if mapped(65534) else 0}
        assert 0 not in found.gids or not mapped(65534)
        assert found.groups == ()
        links = [link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir()]
        assert links.count("tun") == len(made.topology.ports)
        memory = {name.split()[0] for name in links if name.startswith("memfd:")}
        # Its own conns, and what all of them count (limits hold over all workers).
        own = f"memfd:tunlb-conns-{number}"
        assert memory == {own, "memfd:tunlb-stats-0", "memfd:tunlb-stats-1"}
    assert serves(made)
    assert tunlb.stop() == 0


def test_a_lab_worker_is_found_by_its_name(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    assert list(workers_of(made)) == [0]
    assert tunlb.stop() == 0
    assert workers_of(made) == {}
