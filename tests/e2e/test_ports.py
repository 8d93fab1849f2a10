"""Real TAPs and TUNs in a network namespace of their own: devices, links, routes, loops."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
import uvloop

from tests.e2e.kit import in_child
from tunlb.conf.load import loads
from tunlb.conf.schema import Port as PortLine
from tunlb.conf.values import IPInterface, parse
from tunlb.counters import Counters, DropReason
from tunlb.links import (
    LoopProblem,
    check_loops,
    configure_port,
    derive_mac,
    find_link,
    install_tun_routes,
    undo,
    watch,
)
from tunlb.netif import Netif
from tunlb.outbox import PLAIN_VNET
from tunlb.packet import ETHER_LEN, Packet
from tunlb.tap import DeviceError, Port, open_device, open_queues

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("namespace")]

CLONE_NEWNET = 0x40000000
TUNGETVNETHDRSZ = 0x800454D7
TUNSETSTEERINGEBPF = 0x800454E0
TAP = "tunlb-tap"
TUN = "tunlb-tun"
OURS = Netif(0, TAP, 0x02AABBCCDDEE)


def sh(*commands: str) -> str:
    """Runs commands in the namespace of the test; their output."""
    return "".join(
        subprocess.run(
            command.split(), check=True, capture_output=True, text=True, timeout=10
        ).stdout
        for command in commands
    )


def enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path) as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def namespace(privileged: None) -> Iterator[str]:
    """The test runs inside a new network namespace."""
    name = f"tunlb-ports-{os.getpid()}"
    with open("/proc/thread-self/ns/net") as before:
        sh(f"ip netns add {name}")
        try:
            enter(f"/run/netns/{name}")
            sh("ip link set lo up")
            yield name
        finally:
            enter(f"/proc/self/fd/{before.fileno()}")
            sh(f"ip netns del {name}")


@contextmanager
def opened(name: str, *, multi_queue: bool = False, offload: bool = True) -> Iterator[Port]:
    tun = name == TUN
    device = open_device(name, tun=tun, multi_queue=multi_queue, offload=offload)
    netif = Netif(0, name, 0 if tun else OURS.mac, tun=tun)
    port = Port(netif, device.fd, Counters(), device.offloads)
    try:
        yield port
    finally:
        port.close()


def line(name: str, **keys: object) -> PortLine:
    addresses = keys.pop("host_addresses", ())
    assert isinstance(addresses, tuple)
    hosts = tuple(parse(IPInterface, text) for text in addresses)
    return PortLine(name=name, host_addresses=hosts, **keys)  # type: ignore[arg-type]


def read_all(port: Port, wait_s: float = 0.2) -> list[bytes]:
    """The frames that arrive until none does for `wait_s`."""
    frames, pkt = [], Packet()
    while port.fd >= 0 and select.select([port.fd], [], [], wait_s)[0]:
        while port.read_frame(pkt) == 1:
            frames.append(pkt.frame())
        if port.lost:
            break
    return frames


def without_capabilities(call: Callable[[], object]) -> str:
    """What `call` returns or raises, as text, in a child process with empty capability sets."""

    def dropped() -> object:
        header = struct.pack("=Ii", 0x20080522, 0)
        assert ctypes.CDLL(None).capset(header, bytes(24)) == 0
        return call()

    return in_child(dropped)


def wait_until(what: Callable[[], bool], seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


# ---- devices


@pytest.mark.parametrize("multi_queue", [False, True], ids=["one queue", "multi-queue"])
@pytest.mark.parametrize("name", [TAP, TUN])
def test_a_device_takes_header_and_offloads(name: str, multi_queue: bool) -> None:
    with opened(name, multi_queue=multi_queue) as port:
        assert port.offloads[:4] == ("csum", "tso4", "tso6", "tso_ecn")
        assert not os.get_blocking(port.fd)
        size = fcntl.ioctl(port.fd, TUNGETVNETHDRSZ, bytes(4))
        assert struct.unpack("i", size) == (10,)
    assert find_link(name) is None


def test_offloads_of_an_earlier_program_do_not_stick() -> None:
    """A persistent device remembers: each time it is told anew what we take."""
    sh(f"ip tuntap add dev {TUN} mode tun", f"ip addr add 10.7.0.1/24 dev {TUN}")
    needs_csum = []
    for offload in (True, False, True):
        with opened(TUN, offload=offload) as port, socket.socket(type=socket.SOCK_DGRAM) as udp:
            assert bool(port.offloads) == offload
            sh(f"ip link set {TUN} up")
            udp.sendto(b"datagram", ("10.7.0.2", 9))
            pkt = Packet()
            while port.read_frame(pkt) == 1 and not pkt.frame().endswith(b"datagram"):
                pass  # what IPv6 says about itself when a link comes up
            needs_csum.append(pkt.mem[pkt.start - len(PLAIN_VNET)] & 1)
    assert needs_csum == [1, 0, 1]


@pytest.mark.parametrize("name", [TAP, TUN])
def test_a_frame_in_and_a_frame_out(name: str) -> None:
    """A datagram is read, turned round and written: it comes back to its sender."""
    with opened(name) as port:
        mac = OURS.mac_bytes.hex(":")
        configure_port(line(name, type=name[-3:], host_addresses=("10.7.0.1/24",)))
        if name == TAP:
            sh(f"ip neigh add 10.7.0.2 lladdr {mac} dev {TAP}")
        read_all(port, 0.05)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("10.7.0.1", 0))
            udp.settimeout(3)
            udp.sendto(b"round trip", ("10.7.0.2", udp.getsockname()[1]))
            (frame,) = (f for f in read_all(port) if f.endswith(b"round trip"))
            ip = ETHER_LEN if name == TAP else 0
            ether = frame[6:12] + frame[:6] + frame[12:14] if ip else b""
            swapped = frame[ip : ip + 12] + frame[ip + 16 : ip + 20] + frame[ip + 12 : ip + 16]
            # Same ports both ways and a checksum of 0 (none): nothing to recompute but addresses.
            reply = ether + swapped + frame[ip + 20 : ip + 26] + b"\0\0" + frame[ip + 28 :]
            assert port.write_frame(PLAIN_VNET + reply)
            assert udp.recvfrom(100) == (b"round trip", ("10.7.0.2", udp.getsockname()[1]))
    assert port.counters.dropped(DropReason.TX_REFUSED) == 0


def broadcast(port: Port) -> bytes:
    """A frame that any up device takes."""
    if port.netif.tun:
        return PLAIN_VNET + bytes.fromhex("4500001c000000004011") + bytes(18)
    return PLAIN_VNET + b"\xff" * 6 + OURS.mac_bytes + b"\x88\xb5" + bytes(46)


@pytest.mark.parametrize("name", [TAP, TUN])
def test_a_link_that_goes_down_comes_back(name: str) -> None:
    with opened(name) as port:
        steps = []
        for state in ("down", "up", "down", "up"):
            sh(f"ip link set {name} {state}")
            read_all(port, 0.05)
            steps.append((state, bool(port.write_frame(broadcast(port))), port.lost))
        assert steps == [("down", False, False), ("up", True, False)] * 2
        assert port.error == errno.EIO
        assert port.counters.dropped(DropReason.PORT_DOWN) == 2


@pytest.mark.parametrize("name", [TAP, TUN])
def test_a_device_that_is_moved_keeps_working(namespace: str, name: str) -> None:
    other = f"{namespace}-b"
    sh(f"ip netns add {other}")
    try:
        with opened(name) as port:
            sh(f"ip link set {name} up")
            read_all(port, 0.05)
            sh(f"ip link set {name} netns {other}")
            assert find_link(name) is None
            assert port.read_frame(Packet()) == 0
            assert not port.write_frame(broadcast(port))
            assert not port.lost
            sh(f"ip -n {other} link set {name} up")
            sh(f"ip -n {other} addr add fd07::1/64 dev {name} nodad")
            assert read_all(port), "the kernel says hello to the new link"
            assert port.write_frame(broadcast(port))
            assert not port.lost
    finally:
        sh(f"ip netns del {other}")


@pytest.mark.parametrize("name", [TAP, TUN])
def test_a_deleted_device_is_lost_and_can_be_made_again(name: str) -> None:
    with opened(name) as port:
        sh(f"ip link set {name} up", f"ip link del {name}")
        with select.epoll() as poll:
            poll.register(port.fd, select.EPOLLIN)
            assert poll.poll(1) == [(port.fd, select.EPOLLERR)]
        assert port.read_frame(Packet()) == -1
        assert (port.lost, port.error) == (True, errno.EBADFD)
        assert not port.write_frame(broadcast(port))
        assert port.counters.dropped(DropReason.PORT_DOWN) == 1
    with opened(name) as again:
        sh(f"ip link set {name} up")
        assert again.write_frame(broadcast(again))


def test_writing_is_enough_to_notice_a_deleted_device() -> None:
    with opened(TAP) as port:
        sh(f"ip link del {TAP}")
        assert not port.write_frame(broadcast(port))
        assert (port.lost, port.error) == (True, errno.EBADFD)


def test_uvloop_tells_a_reader_once_that_its_device_is_gone() -> None:
    """At times just before the device is gone, so that only the next read finds it."""

    async def main(port: Port) -> list[int]:
        results: list[int] = []
        loop = asyncio.get_running_loop()
        loop.add_reader(port.fd, lambda: results.append(port.read_frame(Packet())))
        await asyncio.to_thread(sh, f"ip link del {TAP}")
        await asyncio.sleep(0.2)
        loop.remove_reader(port.fd)
        return results

    with opened(TAP) as port:
        assert uvloop.run(main(port)) in ([-1], [0])
        assert port.read_frame(Packet()) == -1
        assert port.lost


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        (TAP, PLAIN_VNET + bytes(13)),
        (TAP, b"\x01\x00" + struct.pack("=HHHH", 100, 0, 90, 16) + bytes(60)),
        (TUN, PLAIN_VNET + b"\x15" + bytes(40)),
        (TUN, PLAIN_VNET[:4]),
    ],
    ids=["short frame", "checksum beyond the end", "neither IPv4 nor IPv6", "short header"],
)
def test_what_the_kernel_refuses_is_counted(name: str, frame: bytes) -> None:
    with opened(name) as port:
        sh(f"ip link set {name} up")
        assert not port.write_frame(frame)
        assert port.counters.snapshot() == {"drop.TX_REFUSED": 1}
        assert not port.lost


@pytest.mark.parametrize(
    ("prepare", "tun", "multi_queue", "message"),
    [
        ("ip tuntap add dev {} mode tun", False, False, "not a tap with one queue"),
        ("ip tuntap add dev {} mode tap", True, False, "not a tun with one queue"),
        ("ip tuntap add dev {} mode tap", False, True, "not a tap with several queues"),
        ("ip link add {} type veth", False, False, "not a tap with one queue"),
    ],
    ids=["a tun", "a tap", "one queue", "a veth"],
)
def test_a_name_that_is_taken(prepare: str, tun: bool, multi_queue: bool, message: str) -> None:
    sh(prepare.format("tunlb-x"))
    with pytest.raises(DeviceError) as caught:
        open_device("tunlb-x", tun=tun, multi_queue=multi_queue)
    assert message in caught.value.message
    assert "ip -d link show tunlb-x" in caught.value.hint


def test_a_device_in_use_names_its_user() -> None:
    with opened(TAP), pytest.raises(DeviceError, match=rf"in use by .*pid {os.getpid()} \("):
        open_device(TAP)


def test_a_process_without_capabilities() -> None:
    """It may attach what was made for it, and is told what to have made otherwise."""
    sh(f"ip tuntap add dev {TUN} mode tun user {os.geteuid()}", f"ip link set {TUN} up")
    made = without_capabilities(lambda: open_device(TUN, tun=True).offloads)
    assert "tso4" in made
    refused = without_capabilities(lambda: open_device(TAP))
    assert refused.startswith(
        f"DeviceError: no permission to create or attach the tap device {TAP}"
    )
    assert f"ip tuntap add dev {TAP} mode tap user {os.geteuid()}" in refused


# ---- several queues


@contextmanager
def queues(name: str, count: int) -> Iterator[list[Port]]:
    tun = name == TUN
    netif = Netif(0, name, 0 if tun else OURS.mac, tun=tun)
    devices = open_queues(name, count, tun=tun)
    ports = [Port(netif, device.fd, Counters(), device.offloads) for device in devices]
    try:
        yield ports
    finally:
        for port in ports:
            port.close()


def steer_all_to(queue: int, fd: int) -> None:
    """Give the device a program of two instructions: r0 = queue; exit."""
    program = struct.pack("=BBhiBBhi", 0xB7, 0, 0, queue, 0x95, 0, 0, 0)
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"")
    attr = struct.pack("=IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(licence))
    attr = attr.ljust(120, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    loaded = libc.syscall(number, 5, attr, len(attr))
    if loaded < 0:
        pytest.skip(f"bpf(2): {os.strerror(ctypes.get_errno())}")
    fcntl.ioctl(fd, TUNSETSTEERINGEBPF, struct.pack("i", loaded))
    os.close(loaded)


@pytest.mark.parametrize("prepared", [False, True], ids=["new", "persistent"])
@pytest.mark.parametrize("name", [TAP, TUN])
@pytest.mark.parametrize("count", [1, 3])
def test_queues_of_one_device(name: str, count: int, prepared: bool) -> None:
    if prepared:
        sh(f"ip tuntap add dev {name} mode {name.removeprefix('tunlb-')} multi_queue")
    with queues(name, count) as ports:
        sh(f"ip link set {name} up")
        about = sh(f"ip -d link show {name}")
        assert (f"numqueues {count} numdisabled 0" in about) == (prepared or count > 1)
        for port in ports:
            assert port.offloads[:4] == ("csum", "tso4", "tso6", "tso_ecn")
            assert port.write_frame(broadcast(port))
    assert (find_link(name) is not None) == prepared


def test_a_queue_has_the_number_of_its_place() -> None:
    with queues(TUN, 3) as ports, socket.socket(type=socket.SOCK_DGRAM) as udp:
        sh(f"ip addr add 10.7.0.1/24 dev {TUN}", f"ip link set {TUN} up")
        for index in range(3):
            steer_all_to(index, ports[0].fd)
            udp.sendto(b"for queue %d" % index, ("10.7.0.2", 9))
        got = [
            [frame[28:] for frame in read_all(port) if frame.startswith(b"\x45")] for port in ports
        ]
    assert got == [[b"for queue 0"], [b"for queue 1"], [b"for queue 2"]]


@pytest.mark.parametrize("count", [1, 2])
def test_queues_of_a_device_in_use(count: int) -> None:
    """A multi-queue device would take more of them, at the cost of who has it already."""
    with queues(TAP, 2), pytest.raises(DeviceError, match=rf"in use by .*pid {os.getpid()} \("):
        open_queues(TAP, count)
    with queues(TAP, count):
        pass


def test_several_queues_of_a_device_that_has_one() -> None:
    sh(f"ip tuntap add dev {TAP} mode tap")
    with pytest.raises(DeviceError, match="not a tap with several queues"):
        open_queues(TAP, 2)
    with queues(TAP, 1):
        pass


# ---- links


def test_a_port_is_configured_once() -> None:
    sh("ip link add tunlb-br type bridge", "ip link set tunlb-br up")
    wanted = line(TAP, bridge="tunlb-br", mtu=9000, host_addresses=("10.7.0.1/24", "fd07::1/64"))
    with opened(TAP):
        setup = configure_port(wanted)
        assert setup.changed == (
            f"ip link set {TAP} mtu 9000",
            f"ip link set {TAP} txqueuelen 4096",
            f"ip link set {TAP} master tunlb-br",
            f"ip link set {TAP} up",
            f"ip addr add 10.7.0.1/24 dev {TAP}",
            f"ip addr add fd07::1/64 dev {TAP} nodad",
        )
        link, bridge = find_link(TAP), find_link("tunlb-br")
        assert link is not None
        assert bridge is not None
        assert (link.up, link.mtu, link.txqueuelen) == (True, 9000, 4096)
        assert link.master == bridge.index
        assert "tentative" not in sh(f"ip addr show dev {TAP} to fd07::1")
        assert configure_port(wanted).changed == ()


@pytest.mark.parametrize(
    ("prepare", "message", "hint"),
    [
        ((), "there is no bridge tunlb-br", "ip link add tunlb-br type bridge"),
        (("ip link add tunlb-br type veth",), "not a bridge but a veth", "ip -d link"),
        (("ip link add tunlb-br type bridge",), "tunlb-br is down", "ip link set tunlb-br up"),
    ],
    ids=["missing", "not a bridge", "down"],
)
def test_a_bridge_that_will_not_do(prepare: tuple[str, ...], message: str, hint: str) -> None:
    sh(*prepare)
    with opened(TAP), pytest.raises(DeviceError) as caught:
        configure_port(line(TAP, bridge="tunlb-br"))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_mtu_that_the_kernel_does_not_take_changes_nothing() -> None:
    with opened(TAP):
        with pytest.raises(DeviceError, match=f"`ip link set {TAP} mtu 70000`: Invalid argument"):
            configure_port(line(TAP, mtu=70000))
        link = find_link(TAP)
        assert link is not None
        assert not link.up


def test_ipv6_that_is_switched_off_is_named() -> None:
    with opened(TAP):
        sh(f"sysctl -qw net.ipv6.conf.{TAP}.disable_ipv6=1")
        with pytest.raises(DeviceError, match="IPv6 is disabled there"):
            configure_port(line(TAP, host_addresses=("fd07::1/64",)))


def test_a_prepared_device_needs_no_capability() -> None:
    wanted = line(TAP, host_addresses=("10.7.0.1/24",))
    with opened(TAP):
        text = without_capabilities(lambda: configure_port(wanted))
        assert text.startswith(f"DeviceError: {TAP} is not prepared (down, 10.7.0.1/24 is missing)")
        assert f"ip link set {TAP} up && ip addr add 10.7.0.1/24 dev {TAP}" in text
        assert "txqueuelen" not in text
        sh(f"ip link set {TAP} up", f"ip addr add 10.7.0.1/24 dev {TAP}")
        text = without_capabilities(lambda: configure_port(wanted).warnings)
        assert f"ip link set {TAP} txqueuelen 4096" in text


def test_our_mac_is_not_the_kernels() -> None:
    with opened(TAP):
        link = find_link(TAP)
        assert link is not None
        mac = derive_mac(link.mac, TAP)
        assert mac.to_bytes(6, "big") != link.mac
        assert mac == derive_mac(link.mac, TAP)


# ---- routes into a TUN

VIPS = [ip_address("10.7.0.100"), ip_address("fd07::100")]
LADDRS = [ip_address(f"10.7.0.{200 + n}") for n in range(8)]


def sysctl(path: str) -> str:
    with open(f"/proc/sys/net/{path}") as handle:
        return handle.read().strip()


def rules() -> str:
    return sh("ip rule", "ip -6 rule")


def test_tun_routes_are_installed_once_and_taken_back() -> None:
    sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.all.rp_filter=1")
    before = rules()
    with opened(TUN):
        configure_port(line(TUN, type="tun"))
        setup = install_tun_routes(TUN, VIPS, LADDRS)
        assert sh("ip route get 10.7.0.100", "ip route get 10.7.0.207").count(f"dev {TUN}") == 2
        assert f"dev {TUN}" in sh("ip -6 route get fd07::100")
        assert sysctl("ipv4/ip_forward") == sysctl("ipv6/conf/all/forwarding") == "1"
        assert sysctl(f"ipv4/conf/{TUN}/rp_filter") == "2"
        assert sysctl(f"ipv4/conf/{TUN}/send_redirects") == "0"
        assert rules().count(f"not from all iif {TUN} lookup") == 2
        assert install_tun_routes(TUN, VIPS, LADDRS) == ((), (), ())

        moved = [ip_address("10.7.0.101")]
        assert len(install_tun_routes(TUN, moved, LADDRS).changed) == 4
        assert rules().count(f"not from all iif {TUN} lookup") == 1
        assert f"dev {TUN}" in sh("ip route get 10.7.0.101")
        with pytest.raises(subprocess.CalledProcessError):
            sh("ip route get 10.7.0.100")

        assert install_tun_routes(TUN, VIPS, LADDRS).warnings == ()
        assert undo(setup.undo) == []
        assert rules() == before
        assert sysctl("ipv4/ip_forward") == "0"
        assert undo(setup.undo) == []


def test_routes_are_lost_with_the_link_and_installed_again() -> None:
    with opened(TUN):
        configure_port(line(TUN, type="tun"))
        install_tun_routes(TUN, VIPS, [])
        sh(f"ip link set {TUN} down")
        with pytest.raises(DeviceError, match=f"{TUN} is down"):
            install_tun_routes(TUN, VIPS, [])
        sh(f"ip link set {TUN} up")
        lost = check_loops(loads(ON_TUN))
        assert all("is not routed into" in p.message and not p.loop for p in lost)
        assert {p.address for p in lost} >= {"10.7.0.100"}
        assert len(install_tun_routes(TUN, VIPS, []).changed) == 2
        assert f"dev {TUN}" in sh("ip route get 10.7.0.100")


def test_an_advertised_default_route_survives() -> None:
    """Forwarding makes the kernel deaf to router advertisements, unless it is told otherwise."""
    sh("ip link add tunlb-o type veth peer name tunlb-p", "ip link set tunlb-o up")
    sh("ip -6 route add default via fe80::1 dev tunlb-o proto ra")
    sh("sysctl -qw net.ipv6.conf.tunlb-o.accept_ra=1 net.ipv6.conf.tunlb-p.accept_ra=1")
    with opened(TUN):
        configure_port(line(TUN, type="tun"))
        setup = install_tun_routes(TUN, VIPS, [])
        assert sysctl("ipv6/conf/tunlb-o/accept_ra") == "2"
        assert sysctl("ipv6/conf/tunlb-p/accept_ra") == "1"
        assert undo(setup.undo) == []
        assert sysctl("ipv6/conf/tunlb-o/accept_ra") == "1"


def udp_packet(saddr: str, daddr: str, ttl: int = 64) -> bytes:
    addresses = socket.inet_aton(saddr) + socket.inet_aton(daddr)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 36, 1, 0, ttl, 17, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    udp = struct.pack("!HHHH", 1000, 1000, 16, 0) + b"not back"
    return head[:10] + struct.pack("!H", check) + head[12:] + udp


def router() -> None:
    """A way out: 10.8.0.0/24 with a dest on it, and everything else behind 10.8.0.1."""
    sh("ip link add tunlb-o type veth peer name tunlb-p")
    sh("ip link set tunlb-o up", "ip link set tunlb-p up", "ip addr add 10.8.0.9/24 dev tunlb-o")
    sh("ip neigh add 10.8.0.1 lladdr 02:00:00:00:00:01 dev tunlb-o")
    sh("ip neigh add 10.8.0.11 lladdr 02:00:00:00:00:11 dev tunlb-o")
    sh("ip route add default via 10.8.0.1")


@pytest.mark.parametrize(
    ("saddr", "daddr"),
    [
        ("10.7.0.200", "10.8.0.11"),
        ("10.7.0.100", "203.0.113.9"),
        ("203.0.113.9", "10.8.0.11"),
        ("10.7.0.200", "10.7.0.100"),
    ],
    ids=["fnat to a dest", "reply to a client", "nat to a dest", "to a VIP"],
)
@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_what_is_written_leaves_and_does_not_return(saddr: str, daddr: str, rp_filter: int) -> None:
    """Whatever the reverse path filter of the machine is."""
    sh(*(f"sysctl -qw net.ipv4.conf.{c}.rp_filter={rp_filter}" for c in ("all", "default")))
    router()
    with (
        opened(TUN) as port,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as wire,
    ):
        configure_port(line(TUN, type="tun"))
        install_tun_routes(TUN, VIPS, LADDRS)
        read_all(port, 0.05)
        wire.bind(("tunlb-p", 0x0800))
        wire.settimeout(2)
        assert port.write_frame(PLAIN_VNET + udp_packet(saddr, daddr))
        assert wire.recv(100).endswith(b"not back")
        assert not [f for f in read_all(port) if f.endswith(b"not back")]


# ---- routing loops

ON_TUN = """
{"kind": "port", "name": "tunlb-tun", "type": "tun", "addresses": ["10.7.0.254/24"]}
{"kind": "route", "dst": "0.0.0.0/0", "port": "tunlb-tun"}
{"kind": "service", "name": "web", "proto": "tcp", "vaddr": "10.7.0.100", "vport": 80,
 "fwdmode": "fnat", "laddrs": ["10.7.0.200-10.7.0.207"]}
{"kind": "dest", "service": "web", "daddr": "10.8.0.11"}
""".replace(",\n ", ", ")
ON_TAP = """
{"kind": "port", "name": "tunlb-tap", "addresses": ["10.7.0.254/24"]}
{"kind": "route", "dst": "0.0.0.0/0", "via": "10.7.0.1", "port": "tunlb-tap"}
{"kind": "service", "name": "web", "proto": "tcp", "vaddr": "10.7.0.100", "vport": 80,
 "fwdmode": "fnat", "laddrs": ["10.7.0.200-10.7.0.207"]}
{"kind": "dest", "service": "web", "daddr": "10.8.0.11"}
{"kind": "dest", "service": "web", "daddr": "10.7.0.11"}
""".replace(",\n ", ", ")


def tun_problems(*commands: str) -> list[LoopProblem]:
    router()
    with opened(TUN):
        configure_port(line(TUN, type="tun"))
        install_tun_routes(TUN, VIPS, LADDRS)
        sh(*commands)
        return check_loops(loads(ON_TUN))


def tap_problems(*commands: str) -> list[LoopProblem]:
    router()
    with opened(TAP):
        sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0")
        configure_port(line(TAP, host_addresses=("10.7.0.1/24",)))
        sh(*commands)
        return check_loops(loads(ON_TAP))


def test_the_recommended_tun_has_no_problem() -> None:
    assert tun_problems() == []


@pytest.mark.parametrize("mode", ["fnat", "nat", "tunnel"])
def test_a_dest_behind_the_tun_is_a_loop_and_its_fix_works(mode: str) -> None:
    """Asked with the source that the packet has: a laddr's, a client's, or the outer one."""
    config = loads(ON_TUN.replace('"fwdmode": "fnat"', f'"fwdmode": "{mode}"'))
    router()
    with opened(TUN):
        configure_port(line(TUN, type="tun"))
        install_tun_routes(TUN, VIPS, LADDRS)
        sh(f"ip route add 10.8.0.11/32 dev {TUN}")
        (problem,) = check_loops(config)
        assert (problem.port, problem.address, problem.loop) == (TUN, "10.8.0.11", True)
        assert problem.fix.startswith("ip route add 10.8.0.11/32 dev tunlb-o table 100 && ip rule")
        sh(*problem.fix.split(" && "))
        assert check_loops(config) == []


def test_a_default_route_into_the_tun_is_a_loop_and_its_fix_works() -> None:
    router()
    with opened(TUN):
        configure_port(line(TUN, type="tun"))
        install_tun_routes(TUN, VIPS, LADDRS)
        sh("ip route del default", "ip route add default via 10.8.0.1 metric 10")
        sh(f"ip route add default dev {TUN}")
        (problem,) = check_loops(loads(ON_TUN))
        assert (problem.address, problem.loop) == ("default", True)
        assert problem.fix.startswith("ip route add 0.0.0.0/0 via 10.8.0.1 dev tunlb-o table 100")
        sh(*problem.fix.split(" && "))
        assert check_loops(loads(ON_TUN)) == []


@pytest.mark.parametrize(
    ("problems", "commands", "address", "fix", "loop"),
    [
        (
            tun_problems,
            ("ip addr add 10.7.0.100/32 dev tunlb-o",),
            "10.7.0.100",
            "ip addr del 10.7.0.100/32 dev tunlb-o",
            False,
        ),
        (
            tun_problems,
            ("ip rule add priority 100 to 10.7.0.200 lookup main",),
            "10.7.0.200",
            "ip route add 10.7.0.200 dev tunlb-tun",
            False,
        ),
        (
            tap_problems,
            ("ip addr add 10.7.0.100/32 dev tunlb-o",),
            "10.7.0.100",
            "ip addr del 10.7.0.100/32 dev tunlb-o",
            False,
        ),
        (
            tap_problems,
            ("ip route add 10.8.0.11/32 via 10.7.0.254",),
            "10.8.0.11",
            "ip route add 10.8.0.11/32 dev tunlb-o table 100",
            True,
        ),
    ],
    ids=["VIP is the kernel's", "laddr not routed", "VIP is the kernel's, tap", "via ourselves"],
)
def test_a_problem_and_its_fix(
    problems: Callable[..., list[LoopProblem]],
    commands: tuple[str, ...],
    address: str,
    fix: str,
    loop: bool,
) -> None:
    found = problems(*commands)
    assert [(p.address, p.loop) for p in found] == [(address, loop)]
    assert found[0].fix.startswith(fix)


def test_a_tap_without_loops() -> None:
    assert tap_problems() == []


def test_a_hairpin_on_the_bridge_is_a_loop() -> None:
    sh("ip link add tunlb-br type bridge", "ip link set tunlb-br up")
    with opened(TAP):
        configure_port(line(TAP, bridge="tunlb-br"))
        assert check_loops(loads(ON_TAP)) == []
        sh(f"bridge link set dev {TAP} hairpin on")
        (problem,) = check_loops(loads(ON_TAP))
        assert problem.loop
        sh(problem.fix)
        assert check_loops(loads(ON_TAP)) == []


def test_a_device_that_is_elsewhere_is_not_asked_about() -> None:
    assert check_loops(loads(ON_TUN)) == []


# ---- changes made by others


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_a_burst_of_changes_is_one_call(run: Callable[..., list[float]]) -> None:
    async def main() -> list[float]:
        calls: list[float] = []
        loop = asyncio.get_running_loop()
        watcher = asyncio.create_task(watch(lambda: calls.append(loop.time()), settle_s=0.3))
        await asyncio.sleep(0.05)
        assert calls == []
        for command in (
            "ip link add tunlb-w type veth",
            "ip addr add 10.7.9.1/24 dev tunlb-w",
            "ip link set tunlb-w up",
            "ip rule add to 10.7.9.9 lookup main",
        ):
            await asyncio.to_thread(sh, command)
        await asyncio.sleep(0.8)
        first = len(calls)
        await asyncio.to_thread(sh, "ip -6 rule add to fd07::9 lookup main")
        await asyncio.sleep(0.5)
        watcher.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watcher
        assert first in (1, 2)  # a link's state may settle a little later than its command
        assert len(calls) == first + 1
        return calls

    run(main())
