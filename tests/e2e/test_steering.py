"""Steering in the kernel: the loaded program, and real queues that receive what it says."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import pytest

from tunlb.bpf import Bpf, BpfError, permissions
from tunlb.conf.values import IPAddress
from tunlb.ipvs.sharding import Sharding, shard_keys
from tunlb.netif import LADDR, VIP, Addresses, Netif
from tunlb.packet import VNET_LEN
from tunlb.steering import ADDRESS_LEN, Steering, SteeringError, assemble, map_key
from tunlb.tap import open_device
from tunlb.testing.frames import Transport, arp, echo, eth, ip, tcp, udp
from tunlb.testing.sctp import sctp

pytestmark = pytest.mark.e2e

CLONE_NEWNET = 0x40000000
BPF_PROG_TEST_RUN = 10
# As much of union bpf_attr: program, result, input and output length, input, output, repeat, time.
TEST_RUN = struct.Struct("=4I2Q2I")

WORKERS = 4
KEYS = shard_keys(b"test")
SHARDING = Sharding(WORKERS, 0, KEYS)
TAP, TUN, BRIDGE, VETH, WIRE = "tunlb-tap", "tunlb-tun", "tunlb-br", "tunlb-v0", "tunlb-v1"

VIPS = [ip_address(a) for a in ("10.0.0.100", "fd00::64")]
LADDRS = [ip_address(a) for a in ("10.0.0.200", "fd00::c8")]


def pair(address: IPAddress) -> tuple[int, int]:
    words = struct.unpack("=4I", map_key(address))
    return words[0] << 32 | words[1], words[2] << 32 | words[3]


def addresses_of(vips: Iterable[IPAddress], laddrs: Iterable[IPAddress]) -> Addresses:
    netif, ours = Netif(0, TAP, 0x02AABBCCDDEE), Addresses()
    for kind, some in ((VIP, vips), (LADDR, laddrs)):
        for address in some:
            ours.add(netif, address.version, *pair(address), kind)
    return ours


ADDRESSES = addresses_of(VIPS, LADDRS)


def owner(saddr: str, sport: int, daddr: str, dport: int, ours: Addresses = ADDRESSES) -> int:
    source, destination = pair(ip_address(saddr)), pair(ip_address(daddr))
    return SHARDING.owner(ours, *source, sport, *destination, dport)


@pytest.fixture
def bpf(privileged: None) -> Bpf:
    """bpf(2) is permitted: skipped at a desk, failed in CI where it is not."""
    made = Bpf()
    try:
        os.close(made.make_map(b"tunlb_test", ADDRESS_LEN, {}))
    except BpfError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    return made


# ---- the loaded program --------------------------------------------------------------------------


@contextmanager
def loaded(bpf: Bpf, workers: int, *, tun: bool) -> Iterator[int]:
    kinds = {map_key(a): VIP for a in VIPS} | {map_key(a): LADDR for a in LADDRS}
    map_fd = bpf.make_map(b"tunlb_test", ADDRESS_LEN, kinds)
    try:
        fd = bpf.load(assemble(workers, KEYS, map_fd, tun=tun), b"tunlb_test")
    finally:
        os.close(map_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def run(bpf: Bpf, program: int, frame: bytes) -> int:
    """What the program returns for a frame."""
    # The kernel takes an Ethernet header off before it runs a socket filter.
    data = ctypes.create_string_buffer(bytes(12) + b"\x88\xb5" + frame, 14 + len(frame))
    attr = TEST_RUN.pack(program, 0, len(data), 0, ctypes.addressof(data), 0, 1, 0)
    buffer = ctypes.create_string_buffer(attr, len(attr))
    bpf.call(BPF_PROG_TEST_RUN, buffer)
    result: int = TEST_RUN.unpack(buffer.raw)[1]
    return result


class Flow(NamedTuple):
    saddr: str
    sport: int
    daddr: str
    dport: int


def any_flow(rng: random.Random) -> Flow:
    version = rng.choice((4, 6))
    bits, family = (32, IPv4Address) if version == 4 else (128, IPv6Address)
    ours = [a for a in (*VIPS, *LADDRS) if a.version == version]
    daddr = rng.choice([*ours, *ours, family(rng.getrandbits(bits))])
    saddr = family(rng.getrandbits(bits))
    return Flow(str(saddr), rng.getrandbits(16), str(daddr), rng.getrandbits(16))


def packet_of(
    flow: Flow, build: Callable[..., Transport], payload: bytes, **fields: bytes
) -> bytes:
    return ip(flow.saddr, flow.daddr, build(flow.sport, flow.dport, payload), **fields)


@pytest.mark.parametrize("workers", [1, 2, 3, 64])
@pytest.mark.parametrize("tun", [False, True], ids=["tap", "tun"])
def test_the_kernel_computes_what_tunlb_does(bpf: Bpf, workers: int, tun: bool) -> None:
    rng = random.Random(workers)
    sharding = Sharding(workers, 0, KEYS)
    with loaded(bpf, workers, tun=tun) as program:
        for _ in range(2000):
            flow = any_flow(rng)
            v4 = {"options": rng.randbytes(4 * rng.randrange(11))} if "." in flow.saddr else {}
            packet = packet_of(
                flow, rng.choice((tcp, udp, sctp)), rng.randbytes(rng.randrange(80)), **v4
            )
            vlan = rng.choice((None, None, rng.getrandbits(16)))
            frame = packet if tun else eth(payload=packet, vlan=vlan)
            found = run(bpf, program, frame)
            source, destination = pair(ip_address(flow.saddr)), pair(ip_address(flow.daddr))
            expected = sharding.owner(ADDRESSES, *source, flow.sport, *destination, flow.dport)
            assert found == expected, frame.hex()


@pytest.mark.parametrize("tun", [False, True], ids=["tap", "tun"])
def test_frames_that_are_cut_short_go_to_worker_0(bpf: Bpf, tun: bool) -> None:
    """At each length up to the ports, in which everything is there that can be asked for."""
    with loaded(bpf, 64, tun=tun) as program:
        for flow in (
            Flow("192.0.2.7", 1, str(VIPS[0]), 2),
            Flow("2001:db8::7", 1, str(VIPS[1]), 2),
        ):
            packet = packet_of(flow, tcp, b"")
            frame = packet if tun else eth(payload=packet, vlan=5)
            ports_end = len(frame) - 20 + 4
            assert owner(*flow) != 0
            expected = Sharding(64, 0, KEYS).owner(
                *(ADDRESSES, *pair(ip_address(flow.saddr)), flow.sport),
                *(*pair(ip_address(flow.daddr)), flow.dport),
            )
            assert expected != 0
            found = [run(bpf, program, frame[:n]) for n in range(1, len(frame) + 1)]
            assert found == [0] * (ports_end - 1) + [expected] * (21 - 4)


# ---- real queues ---------------------------------------------------------------------------------


def sh(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True, timeout=10)


def enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path) as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def namespace(bpf: Bpf) -> Iterator[None]:
    """The test runs inside a new network namespace, in which no interface speaks by itself."""
    name = f"tunlb-steer-{os.getpid()}"
    with open("/proc/thread-self/ns/net") as before:
        sh(f"ip netns add {name}")
        try:
            enter(f"/run/netns/{name}")
            for scope in ("all", "default"):
                with open(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "w") as file:
                    file.write("1")
            yield
        finally:
            enter(f"/proc/self/fd/{before.fileno()}")
            sh(f"ip netns del {name}")


@pytest.fixture
def queues(namespace: None, request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """The queues of TAP, or of TUN where the test says so; TAP and VETH are ports of a bridge."""
    name = getattr(request, "param", TAP)
    fds: list[int] = []
    try:
        for _ in range(WORKERS):
            fds.append(open_device(name, tun=name == TUN, multi_queue=True).fd)
        sh(f"ip link set {name} txqueuelen 4096 up")
        if name == TAP:
            sh(
                f"ip link add {BRIDGE} type bridge mcast_snooping 0",
                f"ip link add {VETH} type veth peer name {WIRE}",
                *(f"ip link set {port} master {BRIDGE} up" for port in (TAP, VETH)),
                f"ip link set {WIRE} up",
                f"ip link set {BRIDGE} up",
            )
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


class Sender:
    """Sends frames into an interface as they are; a packet of a TUN goes by its version."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)

    def __call__(self, frame: bytes) -> None:
        if self.interface == TUN:
            kind = 0x86DD if frame[0] >> 4 == 6 else 0x0800
        else:
            kind = int.from_bytes(frame[12:14], "big")
        self.socket.sendto(frame, (self.interface, kind))


@contextmanager
def sender(interface: str) -> Iterator[Sender]:
    made = Sender(interface)
    with made.socket:
        yield made


def mark(number: int) -> bytes:
    """What a frame ends with, by which it is known again."""
    return b"tunlb" + struct.pack("!H", number)


def received(queues: Sequence[int], wanted: int, seconds: float = 3.0) -> dict[int, int]:
    """Which queue each frame came to, by its number; returns when all that are wanted have."""
    found: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(found) < wanted and time.monotonic() < deadline:
        for fd in select.select(queues, [], [], 0.1)[0]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame = os.read(fd, 65536)[VNET_LEN:]
                    if frame[-7:-2] == b"tunlb":
                        (number,) = struct.unpack("!H", frame[-2:])
                        assert number not in found, f"frame {number} came twice"
                        found[number] = queues.index(fd)
    return found


V4, V6 = ("192.0.2.7", "10.0.0.100"), ("2001:db8::7", "fd00::64")
PADDING = (60, b"\0" + bytes([1, 4, 0, 0, 0, 0]))


def ip_packets() -> list[tuple[Callable[[bytes], bytes], int]]:
    """(packet with this payload, the worker that it is for), of every kind."""
    rows: list[tuple[Callable[[bytes], bytes], int]] = []
    rng = random.Random(3)

    def add(build: Callable[[bytes], bytes], worker: int) -> None:
        rows.append((build, worker))

    for n in range(120):
        flow = any_flow(rng)
        if n % 3 == 0:  # what comes to a laddr
            laddr = next(a for a in LADDRS if (a.version == 6) == (":" in flow.daddr))
            flow = flow._replace(daddr=str(laddr))
        transport = (tcp, udp, sctp)[n // 3 % 3]
        options = {"options": bytes(4 * (n % 11))} if n % 4 == 0 and "." in flow.saddr else {}
        add(partial(packet_of, flow, transport, **options), owner(*flow))
    add(lambda payload: ip(*V4, udp(9, 80, payload), mf=True, df=False), 0)
    add(lambda payload: ip(*V4, payload, proto=17, fragment=1480, df=False), 0)
    add(lambda payload: ip(*V4, echo(7, 1, payload)), 0)
    add(lambda payload: ip(*V6, echo(7, 1, payload, v6=True)), 0)
    add(lambda payload: ip(*V6, udp(9, 80, payload), extensions=(PADDING,)), 0)
    add(lambda payload: ip(*V6, udp(9, 80, payload), extensions=((44, bytes(7)),)), 0)
    add(lambda payload: ip(*V4, payload, proto=47), 0)
    return rows


def check(queues: list[int], sent: Mapping[int, int], wanted: Iterable[int]) -> None:
    found = received(queues, len(sent))
    assert found == dict(sent)
    assert set(found.values()) == set(wanted), "the frames were to show every queue"


@pytest.mark.parametrize("queues", [TUN], indirect=True)
def test_a_tun_hands_each_packet_to_its_owner(queues: list[int]) -> None:
    steering = Steering(WORKERS, KEYS)
    steering.install([(queues[0], True)], VIPS, LADDRS)
    steering.close()
    sent: dict[int, int] = {}
    with sender(TUN) as send:
        for number, (build, worker) in enumerate(ip_packets()):
            send(build(mark(number)))
            sent[number] = worker
    check(queues, sent, range(WORKERS))


@pytest.mark.parametrize("vlan", [None, 5], ids=["untagged", "tagged"])
@pytest.mark.parametrize("into", [TAP, WIRE], ids=["direct", "bridged"])
def test_a_tap_hands_each_frame_to_its_owner(
    queues: list[int], into: str, vlan: int | None
) -> None:
    """Sent into the TAP itself, a tag is part of the frame; by the bridge, it lies beside it."""
    steering = Steering(WORKERS, KEYS)
    steering.install([(queues[-1], False)], VIPS, LADDRS)
    steering.close()
    sent: dict[int, int] = {}
    with sender(into) as send:
        for number, (build, worker) in enumerate(ip_packets()):
            send(eth(payload=build(mark(number)), vlan=vlan))
            sent[number] = worker
        for number, kind in ((1000, 0x88B5), (1001, 0x0806)):
            send(eth(type=kind, payload=bytes(46) + mark(number), vlan=vlan))
            sent[number] = 0
        send(arp(1, "02:00:00:00:00:01", "10.0.0.1", tpa=V4[1], vlan=vlan) + mark(1002))
        sent[1002] = 0
    check(queues, sent, range(WORKERS))


@pytest.mark.parametrize("queues", [TUN], indirect=True)
def test_what_sockets_send_comes_to_its_owner(queues: list[int]) -> None:
    sh(f"ip addr add 10.0.0.1/24 dev {TUN}")
    steering = Steering(WORKERS, KEYS)
    steering.install([(queues[0], True)], VIPS, LADDRS)
    sent: dict[int, int] = {}
    for number in range(64):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp_socket:
            udp_socket.sendto(mark(number), (V4[1], 80))
            sent[number] = owner("10.0.0.1", udp_socket.getsockname()[1], V4[1], 80)
    check(queues, sent, range(WORKERS))
    steering.close()


# ---- change --------------------------------------------------------------------------------------


def flows_to(address: IPAddress, n: int) -> list[Flow]:
    """Flows that go elsewhere when the address is a laddr instead of a VIP."""
    flows = (Flow("192.0.2.7", 1024 + i, str(address), i & 0xFFFF) for i in range(60000))
    moving = (flow for flow in flows if owner(*flow) != flow.dport % WORKERS)
    return [next(moving) for _ in range(n)]


def test_a_swap_while_frames_flow(queues: list[int]) -> None:
    """Each frame goes as one of the two programs says, none is lost, and the last one stays."""
    vip, flows, total = VIPS[0], flows_to(VIPS[0], 64), 64 * 50
    steering = Steering(WORKERS, KEYS)
    steering.install([(queues[0], False)], [vip], [])
    frames = [
        eth(payload=packet_of(flows[n % 64], udp, mark(n))) for n in range(total + len(flows))
    ]
    swaps = 0
    with sender(TAP) as send:

        def send_all() -> None:
            for frame in frames[:total]:
                send(frame)
                time.sleep(0.0001)

        thread = threading.Thread(target=send_all)
        thread.start()
        while thread.is_alive():
            swaps += 1
            vips, laddrs = ([vip], []) if swaps % 2 else ([], [vip])
            steering.install([(queues[swaps % WORKERS], False)], vips, laddrs)
        thread.join()
        found = received(queues, total)
        assert len(found) == total
        as_vip = [owner(*flow) for flow in flows]
        as_laddr = [flow.dport % WORKERS for flow in flows]
        n_vip = sum(found[n] == as_vip[n % 64] for n in range(total))
        n_laddr = sum(found[n] == as_laddr[n % 64] for n in range(total))
        assert n_vip + n_laddr == total
        assert min(n_vip, n_laddr, swaps) > 10
        steering.install([(queues[0], False)], [], [vip])
        for frame in frames[total:]:
            send(frame)
        last = {total + n: as_laddr[n] for n in range(len(flows))}
        assert received(queues, len(last)) == last
    steering.close()


def test_the_kernel_chooses_again_when_steering_is_cleared(queues: list[int]) -> None:
    flows = [f for f in flows_to(VIPS[0], 200) if owner(*f) == 3]
    frames = [eth(payload=packet_of(flow, udp, mark(n))) for n, flow in enumerate(flows)]
    steering = Steering(WORKERS, KEYS)
    steering.install([(queues[0], False)], VIPS, LADDRS)
    used = []
    with sender(TAP) as send:
        for clear in (False, True):
            if clear:
                steering.clear(queues[0])
            for frame in frames:
                send(frame)
            used.append(set(received(queues, len(frames)).values()))
    assert used[0] == {3}
    assert len(used[1]) > 1
    steering.close()


def test_installing_leaks_no_descriptor(queues: list[int]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    steering = Steering(WORKERS, KEYS)
    for n in range(100):
        address = IPv4Address(f"10.0.1.{n}")
        steering.install([(queues[0], False), (queues[1], True)], [*VIPS, address], LADDRS)
    steering.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_device_that_is_gone(queues: list[int]) -> None:
    sh(f"ip link del {TAP}")
    steering = Steering(WORKERS, KEYS)
    with pytest.raises(SteeringError, match=r"a port takes no steering: .*the device is gone"):
        steering.install([(queues[0], False)], VIPS, LADDRS)
    steering.close()
    with (
        open(os.devnull) as file,
        pytest.raises(SteeringError, match="is this the descriptor of a queue"),
    ):
        Steering.clear(file.fileno())


# ---- refused -------------------------------------------------------------------------------------


def test_the_verifier_says_why(bpf: Bpf) -> None:
    """r0 = r3, which was never written; exit."""
    with pytest.raises(BpfError, match=r"verifier refuses it: .*R3 !read_ok") as caught:
        bpf.load(bytes.fromhex("bf300000000000009500000000000000"), b"tunlb_test")
    assert "r0 = r3" in caught.value.log


REFUSED = """
import ctypes, struct, sys
from tunlb.steering import Steering, SteeringError
if sys.argv[1] == "without":
    ctypes.CDLL(None).capset(struct.pack("=Ii", 0x20080522, 0), bytes(24))
try:
    Steering(2, bytes(48)).install([(0, False)], [], [])
except SteeringError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("start", "capabilities", "hint"),
    [
        ([], "without", "so it takes CAP_BPF"),
        (["unshare", "--user", "--map-root-user"], "with", "inside a user namespace do not count"),
    ],
    ids=["no capability", "user namespace"],
)
@pytest.mark.skipif(
    permissions().unprivileged_bpf_disabled == "0", reason="everybody may use bpf(2) here"
)
def test_who_may_not_is_told_why(
    unprivileged: None, start: list[str], capabilities: str, hint: str
) -> None:
    if permissions().user_namespace:
        hint = "inside a user namespace do not count"
    command = [*start, sys.executable, "-c", REFUSED, capabilities]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("cannot make a BPF map: Operation not permitted")
    assert hint in done.stdout
