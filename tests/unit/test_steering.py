"""The steering program against Sharding.owner, run by an interpreter; what bpf(2) may refuse.

The interpreter takes RFC 9669 at its word and is stricter than a processor: it faults on registers
and stack bytes never written, on registers that a call has spoilt, and on a jump back. Whether the
kernel agrees is shown end to end.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tunlb import bpf, steering
from tunlb.bpf import Assembler, Bpf, BpfError, Permissions, permissions, refusal
from tunlb.conf.values import IPAddress
from tunlb.ipvs.sharding import Sharding, shard_keys
from tunlb.netif import ADDRESS, LADDR, VIP, Addresses, Netif
from tunlb.packet import Packet
from tunlb.steering import Steering, SteeringError, assemble, map_key
from tunlb.testing.frames import PLAIN, Transport, arp, echo, eth, ip, tcp, udp
from tunlb.testing.sctp import sctp
from tunlb.wire import ether, ipv4, ipv6
from tunlb.wire import sctp as sctp_header
from tunlb.wire import tcp as tcp_header
from tunlb.wire import udp as udp_header

KEYS = shard_keys(b"test")
MAP_FD = 77
MASK64 = (1 << 64) - 1


# ---- the interpreter -----------------------------------------------------------------------------


class Pointer(NamedTuple):
    where: str  #: "frame", "stack", "map" or "value"
    offset: int


class FaultError(Exception):
    """The kernel's verifier would have refused the program."""


class Machine:
    """Runs a program on frames; `table` is its map."""

    def __init__(self, program: bytes, table: Mapping[bytes, int]) -> None:
        self.code = list(struct.iter_unpack("<BBhi", program))
        self.table = {key: struct.pack("=I", value) for key, value in table.items()}

    def run(self, frame: bytes) -> int:
        self.frame = frame
        self.value = b""
        self.stack: dict[int, int] = {}
        self.registers: dict[int, int | Pointer] = {1: Pointer("frame", 0), 10: Pointer("stack", 0)}
        at = 0
        while 0 <= at < len(self.code):
            step = self.step(at)
            if step is None:
                result = self.register(0)
                assert isinstance(result, int)
                return result
            if step < 1:
                raise FaultError(f"{at}: jumps back")
            at += step
        raise FaultError(f"runs off to {at}")

    def register(self, number: int) -> int | Pointer:
        try:
            return self.registers[number]
        except KeyError:
            raise FaultError(f"r{number} was never written, or a call spoilt it") from None

    def number(self, register: int) -> int:
        value = self.register(register)
        if not isinstance(value, int):
            raise FaultError(f"r{register} is a pointer")
        return value

    def step(self, at: int) -> int | None:
        """The distance to the next instruction; None at the end, with the result in r0."""
        code, registers, off, imm = self.code[at]
        dst, src = registers & 15, registers >> 4
        match code & 7:
            case 0 if code == 0x18:
                high = self.code[at + 1][3]
                value = (high & 0xFFFFFFFF) << 32 | imm & 0xFFFFFFFF
                self.registers[dst] = {0: value, 1: Pointer("map", value)}[src]
                return 2
            case 0:
                return self.load_frame(code, src, imm)
            case 1 if code & 0xE0 == 0x60:
                self.registers[dst] = self.load(self.register(src), off, SIZES[code & 0x18])
            case 2 | 3 if code & 0xE0 == 0x60:
                value = imm if code & 7 == 2 else self.number(src)
                self.store(self.register(dst), off, SIZES[code & 0x18], value)
            case 5:
                return self.jump(code, dst, src, off, imm)
            case 7:
                self.registers[dst] = self.compute(
                    code, dst, self.register(src) if code & 8 else imm
                )
            case _:
                raise FaultError(f"{at}: opcode {code:#x}")
        return 1

    def load_frame(self, code: int, src: int, imm: int) -> int | None:
        size = SIZES[code & 0x18]
        if self.register(6) != Pointer("frame", 0):
            raise FaultError("r6 is not the frame")
        offset = imm + {0x20: lambda: 0, 0x40: lambda: self.number(src)}[code & 0xE0]()
        self.spoil()
        if offset < 0 or offset + size > len(self.frame):
            self.registers[0] = 0
            return None
        self.registers[0] = int.from_bytes(self.frame[offset : offset + size], "big")
        return 1

    def spoil(self) -> None:
        for number in range(1, 6):
            self.registers.pop(number, None)

    def load(self, base: int | Pointer, off: int, size: int) -> int:
        assert isinstance(base, Pointer)
        start = base.offset + off
        if base.where == "stack":
            return int.from_bytes(self.stacked(start, size), "little")
        if base.where != "value" or not 0 <= start <= len(self.value) - size:
            raise FaultError(f"loads from {base}")
        return int.from_bytes(self.value[start : start + size], "little")

    def stacked(self, start: int, size: int) -> bytes:
        try:
            return bytes(self.stack[i] for i in range(start, start + size))
        except KeyError:
            raise FaultError(f"reads what was never written at {start}") from None

    def store(self, base: int | Pointer, off: int, size: int, value: int) -> None:
        assert isinstance(base, Pointer)
        start = base.offset + off
        if base.where != "stack" or not -512 <= start <= -size:
            raise FaultError(f"stores to {base} + {off}")
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        self.stack.update(enumerate(data, start))

    def compute(self, code: int, dst: int, operand: int | Pointer) -> int | Pointer:
        if code & 0xF0 == 0xB0:
            return operand if isinstance(operand, Pointer) else operand & MASK64
        before = self.register(dst)
        assert isinstance(operand, int)
        if isinstance(before, Pointer):
            if code & 0xF0:
                raise FaultError("arithmetic with a pointer")
            return Pointer(before.where, before.offset + operand)
        return ALU[code & 0xF0](before, operand & MASK64) & MASK64

    def jump(self, code: int, dst: int, src: int, off: int, imm: int) -> int | None:
        match code:
            case 0x95:
                return None
            case 0x85:
                self.call(imm)
                return 1
            case 0x05:
                return 1 + off
        value = self.register(dst)
        if isinstance(value, Pointer):  # only asked whether it is none
            assert imm == 0
            value = 1
        operand = self.number(src) if code & 8 else imm & MASK64
        return 1 + (off if COMPARE[code & 0xF0](value, operand) else 0)

    def call(self, helper: int) -> None:
        key = self.register(2)
        assert (helper, self.register(1)) == (1, Pointer("map", MAP_FD))
        assert isinstance(key, Pointer)
        assert key.where == "stack"
        found = self.table.get(self.stacked(key.offset, 16))
        self.value = found or b""
        self.spoil()
        self.registers[0] = 0 if found is None else Pointer("value", 0)


SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
ALU: dict[int, Callable[[int, int], int]] = {
    0x00: lambda a, b: a + b,
    0x20: lambda a, b: a * b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << (b & 63),
    0x70: lambda a, b: a >> (b & 63),
    0x90: lambda a, b: a % b,
}
COMPARE: dict[int, Callable[[int, int], bool]] = {
    0x10: lambda a, b: a == b,
    0x50: lambda a, b: a != b,
    0xA0: lambda a, b: a < b,
}


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("9500000000000000", "r0 was never written"),
        ("b700000000000000", "runs off"),
        ("050000000000000005 00feff00000000", "jumps back"),
        ("61a0f0ff00000000", "never written at -16"),
        ("bf160000000000003000000000000000bf10000000000000", "r1 was never written, or a call"),
    ],
    ids=["no result", "no end", "a loop", "stack", "spoilt"],
)
def test_the_interpreter_finds_faults(program: str, problem: str) -> None:
    with pytest.raises(FaultError, match=problem):
        Machine(bytes.fromhex(program), {}).run(bytes(60))


# ---- the program ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda a: a.move(6, 1), "bf16000000000000"),
        (lambda a: a.op(bpf.BPF_MOD, 0, 4), "9700000004000000"),
        (lambda a: a.op(bpf.BPF_ADD, 2, -16), "07020000f0ffffff"),
        (lambda a: a.op_register(bpf.BPF_MUL, 1, 2), "2f21000000000000"),
        (lambda a: a.frame(bpf.BPF_H, 12), "280000000c000000"),
        (lambda a: a.frame(bpf.BPF_W, 16, 7), "4070000010000000"),
        (lambda a: a.constant(2, 0xF1F2F3F4_05060708), "1802000008070605 00000000f4f3f2f1"),
        (lambda a: a.constant(1, 9, bpf.BPF_PSEUDO_MAP_FD), "1811000009000000" + "0" * 16),
        (lambda a: a.finish(), "9500000000000000"),
    ],
    ids=["mov", "mod", "add", "mul", "ldh abs", "ldw ind", "lddw", "map", "exit"],
)
def test_an_instruction(write: Callable[[Assembler], None], code: str) -> None:
    a = Assembler()
    write(a)
    assert a.program() == bytes.fromhex(code)


def test_a_jump_counts_from_the_next_instruction() -> None:
    a = Assembler()
    a.jump("end", bpf.BPF_JEQ, 3, 17)
    a.constant(0, 1)
    a.label("end")
    a.finish()
    assert a.program()[:8] == bytes.fromhex("1503020011000000")


@pytest.mark.parametrize("tun", [False, True], ids=["tap", "tun"])
def test_the_program_is_short(tun: bool) -> None:
    """Kernels before 5.2 and unprivileged loaders get no more than 4096 instructions."""
    assert len(assemble(64, KEYS, MAP_FD, tun=tun)) // 8 < 128


VIPS = [ip_address(a) for a in ("10.0.0.100", "fd00::64", "203.0.113.255")]
LADDRS = [ip_address(a) for a in ("10.0.0.200", "10.0.0.201", "fd00::c8")]
OWN = [ip_address(a) for a in ("10.0.0.254", "fd00::fe")]
OURS: Mapping[bytes, int] = {
    **{map_key(address): LADDR for address in LADDRS},
    **{map_key(address): VIP for address in (*VIPS, *OWN)},
}


def pair(address: IPAddress) -> tuple[int, int]:
    key = struct.unpack("=4I", map_key(address))
    return key[0] << 32 | key[1], key[2] << 32 | key[3]


def netif_addresses(netif: Netif) -> Addresses:
    addresses = Addresses()
    for kind, ours in ((ADDRESS, OWN), (VIP, VIPS), (LADDR, LADDRS)):
        for address in ours:
            addresses.add(netif, address.version, *pair(address), kind)
    return addresses


BUILDERS: tuple[Callable[..., Transport], ...] = (tcp, udp, sctp)
TAP = Netif(0, "lb0", 0x020000000002)
TAP.vlans[5] = Netif(1, "lb0.5", TAP.mac, vid=5, queue=0)
TUN = Netif(2, "lb1", 0, tun=True)
ADDRESSES = netif_addresses(TAP)


@st.composite
def pairs_of_addresses(draw: st.DrawFn) -> tuple[IPAddress, IPAddress]:
    v6 = draw(st.booleans())
    family = IPv6Address if v6 else IPv4Address
    ours = [address for address in (*VIPS, *LADDRS, *OWN) if isinstance(address, family)]
    any_address: st.SearchStrategy[IPAddress] = st.builds(
        family, st.integers(0, (1 << (128 if v6 else 32)) - 1)
    )
    both = st.one_of(st.sampled_from(ours), any_address)
    return draw(any_address), draw(both)


class Seen(NamedTuple):
    """A TCP, UDP or SCTP packet that is whole, as its builder meant it."""

    packet: bytes
    saddr: IPAddress
    sport: int
    daddr: IPAddress
    dport: int

    def owner(self, sharding: Sharding) -> int:
        return sharding.owner(
            ADDRESSES, *pair(self.saddr), self.sport, *pair(self.daddr), self.dport
        )


@st.composite
def flows(draw: st.DrawFn) -> Seen:
    saddr, daddr = draw(pairs_of_addresses())
    sport, dport = draw(st.integers(0, 0xFFFF)), draw(st.integers(0, 0xFFFF))
    build = draw(st.sampled_from(BUILDERS))
    payload = draw(st.binary(max_size=8))
    fields = {} if saddr.version == 6 else {"options": draw(st.binary(max_size=40))}
    packet = ip(str(saddr), str(daddr), build(sport, dport, payload), **fields)
    return Seen(packet, saddr, sport, daddr, dport)


def program(workers: int, keys: bytes = KEYS, *, tun: bool) -> Machine:
    return Machine(assemble(workers, keys, MAP_FD, tun=tun), OURS)


@given(
    workers=st.integers(1, 64),
    keys=st.sampled_from([KEYS, b"\xff" * 48]) | st.binary(min_size=48, max_size=48),
    seen=flows(),
    vlan=st.sampled_from((None, 5, 0xEFFF)),
)
@settings(max_examples=1500, deadline=None)
def test_the_program_is_the_owner(workers: int, keys: bytes, seen: Seen, vlan: int | None) -> None:
    owner = seen.owner(Sharding(workers, 0, keys))
    assert program(workers, keys, tun=True).run(seen.packet) == owner
    frame = eth(payload=seen.packet, vlan=vlan)
    assert program(workers, keys, tun=False).run(frame) == owner


def parsed(frame: bytes, netif: Netif) -> Packet | None:
    """A frame that tunlb takes for a TCP or UDP packet whose ports the program can find, or None.

    A frame for another station counts: the kernel's choice of a queue does not look at it.
    """
    pkt = Packet()
    pkt.load(PLAIN + frame, netif)
    if pkt.end <= pkt.start or (not netif.tun and ether.parse(pkt)):
        return None
    version = pkt.mem[pkt.l3] >> 4
    if not netif.tun and pkt.ether_type != (0x86DD if version == 6 else 0x0800):
        return None
    if (ipv6 if version == 6 else ipv4).parse(pkt) or pkt.fragment:
        return None
    parse = {6: tcp_header.parse, 17: udp_header.parse, 132: sctp_header.parse}.get(pkt.proto)
    if parse is None or parse(pkt):
        return None
    return None if version == 6 and pkt.l4 - pkt.l3 > 40 else pkt


@given(
    seen=flows(),
    vlan=st.sampled_from((None, None, 5)),
    tun=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=3),
    kept=st.integers(0, 200),
)
@settings(max_examples=1000, deadline=None)
def test_what_tunlb_parses_goes_to_its_owner(
    seen: Seen, vlan: int | None, tun: bool, changes: list[tuple[int, int]], kept: int
) -> None:
    """Frames with wrong bytes, cut short: a worker of ours, and the owner if it is a packet."""
    netif = TUN if tun else TAP
    frame = bytearray(seen.packet if tun else eth(payload=seen.packet, vlan=vlan))
    for at, value in changes:
        frame[at % len(frame)] = value
    damaged = bytes(frame[:kept])
    found = program(5, tun=tun).run(damaged)
    assert 0 <= found < 5
    pkt = parsed(damaged, netif)
    if pkt is not None:
        source = (pkt.saddr_hi, pkt.saddr, pkt.sport)
        destination = (pkt.daddr_hi, pkt.daddr, pkt.dport)
        assert found == Sharding(5, 0, KEYS).owner(ADDRESSES, *source, *destination)


@given(frame=st.binary(max_size=90), tun=st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_bytes_come_to_a_worker(frame: bytes, tun: bool) -> None:
    assert 0 <= program(3, tun=tun).run(frame) < 3


V4, V6 = ("192.0.2.7", "10.0.0.100"), ("2001:db8::7", "fd00::64")
PADDING = (60, b"\0" + bytes([1, 4, 0, 0, 0, 0]))


@pytest.mark.parametrize(
    "packet",
    [
        ip(*V4, echo(1, 1)),
        ip(*V6, echo(1, 1, v6=True)),
        ip(*V4, udp(1, 2), mf=True, df=False),
        ip(*V4, b"later fragment..", proto=17, fragment=8, df=False),
        ip(*V4, udp(1, 2), ihl=4),
        ip(*V4, b"", proto=6),
        ip(*V4, b"gre of some kind", proto=47),
        ip(*V6, tcp(1, 2), extensions=(PADDING,)),
        ip(*V6, udp(1, 2), extensions=((44, bytes(7)),)),
        ip(*V6, b"\0\1", proto=6),
        b"",
        b"\x50" + bytes(60),
    ],
    ids=[
        *("icmp", "icmpv6", "first fragment", "later fragment", "short header", "no ports"),
        *("gre", "destination options", "atomic fragment", "half the ports", "nothing"),
        "version 5",
    ],
)
@pytest.mark.parametrize("link", ["tun", "tap", "vlan"])
def test_what_cannot_be_placed_goes_to_worker_0(packet: bytes, link: str) -> None:
    """With these keys, the hash of anything is the last worker's."""
    keys = struct.pack("=6Q", MASK64, *[0] * 5)
    tun, vlan = link == "tun", 5 if link == "vlan" else None
    frame = packet if tun else eth(payload=packet, vlan=vlan)
    machine = program(16, keys, tun=tun)
    assert machine.run(frame) == 0
    other = ip(*V4, udp(1, 2))
    assert machine.run(other if tun else eth(payload=other, vlan=vlan)) == 15


@pytest.mark.parametrize(
    "frame",
    [
        arp(1, "02:00:00:00:00:01", "10.0.0.1", tpa="10.0.0.100"),
        arp(1, "02:00:00:00:00:01", "10.0.0.1", tpa="10.0.0.100", vlan=5),
        eth(payload=ip(*V4, udp(1, 2)), vlan=(5, 6)),
        eth(type=0x88A8, payload=b"\0\5\x08\0" + ip(*V4, udp(1, 2))),
        eth(type=100, payload=bytes(100)),
        bytes(13),
        eth(type=0x8100),
        eth(),
    ],
    ids=["arp", "tagged arp", "two tags", "802.1ad", "802.3", "short", "half a tag", "no packet"],
)
def test_other_frames_go_to_worker_0(frame: bytes) -> None:
    assert program(16, struct.pack("=6Q", MASK64, *[0] * 5), tun=False).run(frame) == 0


def test_without_addresses_all_goes_by_destination() -> None:
    """A new director without services: what is not ours is a dest's answer to a client."""
    machine = Machine(assemble(64, KEYS, MAP_FD, tun=True), {})
    client = Sharding(64, 0, KEYS).by_endpoint(*pair(ip_address(V4[1])), 2)
    assert machine.run(ip(*V4, tcp(1, 2))) == client


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("10.0.0.100", (0, 0, 0xFFFF, 0x0A000064)),
        ("2001:db8::1:2:3", (0x20010DB8, 0, 0x00000001, 0x00020003)),
    ],
)
def test_a_map_key_is_four_words_as_the_processor_has_them(
    address: str, words: tuple[int, ...]
) -> None:
    assert map_key(ip_address(address)) == struct.pack("=4I", *words)


# ---- what bpf(2) may refuse ----------------------------------------------------------------------

ROOT = Permissions(True, False, "2", False, -1)


@pytest.mark.parametrize(
    ("error", "why", "hint"),
    [
        (errno.ENOSYS, ROOT, "the kernel has no bpf(2), or a seccomp filter hides it"),
        (errno.EPERM, ROOT._replace(capable=False), "unprivileged_bpf_disabled is 2, so it takes"),
        (errno.EPERM, Permissions(False, False, "", False, 0), "disabled is hidden, so it takes"),
        (errno.EPERM, ROOT._replace(user_namespace=True), "inside a user namespace do not count"),
        (errno.EPERM, Permissions(False, True, "0", True, 0), "a seccomp filter refuses bpf(2)"),
        (errno.EPERM, ROOT._replace(seccomp=True), "a seccomp filter refuses bpf(2)"),
        (errno.EPERM, ROOT._replace(memlock=65536), "RLIMIT_MEMLOCK, now 65536 bytes"),
        (errno.EPERM, ROOT, "a security module refuses bpf(2)"),
        (errno.EINVAL, ROOT, "Linux 5.6 or later is needed"),
    ],
    ids=[
        "no bpf",
        "no right",
        "no sysctl",
        "namespace",
        "open",
        "seccomp",
        "memlock",
        "lsm",
        "old",
    ],
)
def test_a_refusal_says_what_to_do(error: int, why: Permissions, hint: str) -> None:
    assert str(refusal("do it", errno.ENOMEM, why)) == f"cannot do it: {os.strerror(errno.ENOMEM)}"
    text = str(refusal("make a BPF map", error, why))
    assert text.startswith(f"cannot make a BPF map: {os.strerror(error)} (")
    assert hint in text


def test_permissions_are_read_from_proc() -> None:
    found = permissions()
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("CapEff"))
    capabilities = int(line.split()[1], 16)
    assert found.capable == bool(capabilities >> 39 & 1 or capabilities >> 21 & 1)
    assert found.unprivileged_bpf_disabled in ("", "0", "1", "2")


@pytest.mark.parametrize("machine", ["ppc64le", "s390x", "i686", ""])
def test_a_machine_whose_number_is_not_known(machine: str) -> None:
    with pytest.raises(BpfError, match=f"bpf.2. on {machine} is not known here .*aarch64"):
        Bpf(machine)


class FakeKernel:
    """bpf(2) with errnos to say, one a call; a call beyond them opens a descriptor."""

    def __init__(self, *errors: int, log: bytes = b"") -> None:
        self.errors = list(errors)
        self.log = log
        self.commands: list[int] = []
        self.opened: list[int] = []
        self.table: dict[bytes, int] = {}  #: what the last map was filled with

    def __call__(
        self, number: object, command: int, attr: ctypes.Array[ctypes.c_char], size: int
    ) -> int:
        assert len(attr) == size
        self.commands.append(command)
        if command == bpf.BPF_PROG_LOAD:
            log_size, address = struct.unpack_from("=IQ", attr, 28)
            if log_size:
                ctypes.memmove(address, self.log + b"\0", len(self.log) + 1)
        error = self.errors.pop(0) if self.errors else 0
        if error:
            ctypes.set_errno(error)
            return -1
        if command == bpf.BPF_MAP_UPDATE_BATCH:
            keys, values, count = struct.unpack_from("=2QI", attr, 16)
            words = struct.unpack(f"={count}I", ctypes.string_at(values, 4 * count))
            data = ctypes.string_at(keys, 16 * count)
            self.table = {data[16 * i : 16 * i + 16]: word for i, word in enumerate(words)}
            return 0
        self.opened.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        return self.opened[-1]

    @property
    def still_open(self) -> list[int]:
        return [fd for fd in {*self.opened} if os.path.exists(f"/proc/self/fd/{fd}")]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    """Steering meets this one; devices take whatever program they are given, or -1."""
    fake = FakeKernel()

    def make(self: Bpf) -> None:
        self._number, self._syscall = 321, fake

    monkeypatch.setattr(Bpf, "__init__", make)
    yield fake
    for fd in fake.still_open:
        os.close(fd)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The program of each device, as set by ioctl; negative descriptors are refused."""
    programs: dict[int, int] = {}

    def ioctl(fd: int, request: int, argument: bytes) -> None:
        assert request == 0x800454E0
        if fd < 0:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
        (programs[fd],) = struct.unpack("i", argument)

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    return programs


def test_ports_of_a_kind_share_a_program(kernel: FakeKernel, devices: dict[int, int]) -> None:
    made = Steering(2, KEYS)
    made.install([(100, False), (101, True), (102, False)], VIPS, LADDRS)
    assert devices[100] == devices[102] != devices[101]
    assert kernel.commands == [0, 26, 5, 5]
    assert kernel.table == {
        **{map_key(address): LADDR for address in LADDRS},
        **{map_key(address): VIP for address in VIPS},
    }
    assert sorted(kernel.still_open) == sorted({devices[100], devices[101]})
    made.close()
    made.close()
    assert kernel.still_open == []


def test_a_port_that_is_opened_anew_gets_the_program_in_force(
    kernel: FakeKernel, devices: dict[int, int]
) -> None:
    made = Steering(2, KEYS)
    made.install([(100, False), (101, False)], VIPS, LADDRS)
    made.install([(103, False)], reversed(VIPS), LADDRS)
    assert devices[103] == devices[100]
    assert len(kernel.opened) == 2
    made.install([(104, True)], VIPS, LADDRS)
    assert len(kernel.opened) == 4
    assert kernel.still_open == [devices[104]]


def test_other_addresses_are_another_program(kernel: FakeKernel, devices: dict[int, int]) -> None:
    made = Steering(2, KEYS)
    made.install([(100, False)], VIPS, LADDRS)
    for vips, laddrs in ((VIPS[1:], LADDRS), (VIPS, LADDRS[1:]), (LADDRS, VIPS), ([], [])):
        n = len(kernel.opened)
        made.install([(100, False)], vips, laddrs)
        assert kernel.opened[n:] != []
        assert kernel.still_open == [devices[100]]


@pytest.mark.parametrize("failing", range(4), ids=["map", "batch", "tap", "tun"])
def test_a_program_that_cannot_be_made_changes_nothing(
    failing: int, kernel: FakeKernel, devices: dict[int, int]
) -> None:
    made = Steering(2, KEYS)
    made.install([(100, False), (101, True)], VIPS, LADDRS)
    before, kept = dict(devices), kernel.still_open
    kernel.errors = [0] * failing + [errno.EPERM]
    with pytest.raises(SteeringError, match=r"cannot .* not permitted"):
        made.install([(100, False), (101, True)], VIPS[:1], [])
    assert devices == before
    assert kernel.still_open == kept
    made.install([(100, False), (101, True)], VIPS, LADDRS)
    assert devices == before


def test_a_device_that_is_gone_does_not_keep_others_from_theirs(
    kernel: FakeKernel, devices: dict[int, int]
) -> None:
    made = Steering(2, KEYS)
    with pytest.raises(SteeringError, match="the device is gone"):
        made.install([(-1, False), (100, False)], VIPS, [])
    assert list(devices) == [100]


def test_clearing(devices: dict[int, int]) -> None:
    Steering.clear(100)
    assert devices == {100: -1}


def test_the_verifier_explains_itself(kernel: FakeKernel) -> None:
    kernel.errors = [errno.EACCES, errno.EACCES]
    kernel.log = b"0: (bf) r6 = r1\n1: (95) exit\nR0 !read_ok\nprocessed 2 insns\n"
    with pytest.raises(BpfError, match=r"refuses it: .*R0 !read_ok \| processed") as caught:
        Bpf().load(bytes(16), b"test")
    assert caught.value.log.splitlines()[0] == "0: (bf) r6 = r1"
    assert kernel.commands == [5, 5]


def test_too_many_addresses(
    kernel: FakeKernel, devices: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "ADDRESSES_MAX", 5)
    made = Steering(2, KEYS)
    with pytest.raises(SteeringError, match="6 VIPs and local addresses are more than the 5"):
        made.install([(100, False)], VIPS, LADDRS)
    assert (kernel.commands, devices) == ([], {})
    made.install([(100, False)], VIPS, [*LADDRS[:2], VIPS[0]])
    assert kernel.table[map_key(VIPS[0])] == VIP
