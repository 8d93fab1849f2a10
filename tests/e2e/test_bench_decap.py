"""The benchmark's own end of a tunnel, under real connections to the kernel's TCP and UDP."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.e2e.kit import FAMILIES, Family, LabFactory, client_address, counters, drops
from tests.e2e.test_tunnel import OTHER, PLANNED_DROPS, by_tunnel
from tunlb.bench import decap
from tunlb.bpf import BPF_PROG_TYPE_SCHED_CLS, Bpf
from tunlb.lab import clients
from tunlb.lab.servers import pattern

GUE_PORT = 6080
BPF_PROG_TEST_RUN = 10
# As much of union bpf_attr: program, result, input and output length, input, output, repeat, time.
TEST_RUN = struct.Struct("=4I2Q2I")

IPIP, UDP, IPV6, GRE = 4, 17, 41, 47
INNER = {"v4": bytes([0x45]) + bytes(range(1, 28)), "v6": bytes([0x60]) + bytes(range(1, 48))}


@pytest.fixture(autouse=True)
def _possible(privileged: None) -> None:
    problem = decap.missing()
    if problem and os.environ.get("CI") == "true":
        pytest.fail(problem)
    elif problem:
        pytest.skip(problem)


@pytest.mark.parametrize("csum", [False, True], ids=["plain", "with checksums"])
@pytest.mark.parametrize("mixed", [False, True], ids=["one family", "mixed families"])
def test_what_comes_out_of_a_tunnel(lab: LabFactory, mixed: bool, csum: bool) -> None:
    """A server behind each wrapping, of either family in either."""
    made = lab("dr")
    outer: dict[Family, Family] = OTHER if mixed else {"v4": "v4", "v6": "v6"}
    wrappings: tuple[dict[str, object], ...] = (
        {"type": "ipip"},
        {"type": "gre", "csum": csum},
        {"type": "gue", "csum": csum, "port": GUE_PORT},
    )
    with contextlib.ExitStack() as stack:
        for name in made.topology.server_names:
            stack.enter_context(decap.decapsulating(made.host(name), "eth0", GUE_PORT))
        tunlb = made.start_tunlb(by_tunnel(made, outer, wrappings))
        for family in FAMILIES:
            vip = made.topology.vips.of(family)
            met = set()
            for size in (1, 1300, 60_000, 60_000, 60_000):
                answer = clients.tcp_echo(made.client, vip, 7, pattern(size))
                assert answer.data == pattern(size)
                assert answer.peer == client_address(made, family)
                met.add(clients.fetch(made.client, clients.url(vip, 80)).body.strip())
                datagram = clients.udp_echo(made.client, vip, 7, pattern(min(size, 1300)))
                assert datagram.data == pattern(min(size, 1300))
            assert met == set(made.topology.server_names)
        found = counters(tunlb)
    assert found["SEGMENTS_CUT"] > 50
    assert drops(found) <= PLANNED_DROPS | {"MTU_EXCEEDED"}, found


def test_the_device_is_as_it_was_after_the_block(lab: LabFactory) -> None:
    made = lab("dr")
    server = made.host(made.topology.server_names[0])
    vip = made.topology.vips.v4
    ipip: dict[str, object] = {"type": "ipip"}
    made.start_tunlb(by_tunnel(made, {"v4": "v4", "v6": "v6"}, [ipip] * 3))
    with decap.decapsulating(server, "eth0", GUE_PORT):
        pass
    with pytest.raises(OSError):  # refused, unreachable or silence
        clients.tcp_echo(made.client, vip, 7, b"?", timeout=1.0)


# ---- the program by itself -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> Iterator[int]:
    fd = Bpf().load(decap.assemble(GUE_PORT), b"tunlb_test", BPF_PROG_TYPE_SCHED_CLS)
    yield fd
    os.close(fd)


def run(program: int, frame: bytes) -> bytes:
    """What is left of a frame."""
    data = ctypes.create_string_buffer(frame, len(frame))
    out = ctypes.create_string_buffer(2048)
    where = ctypes.addressof(data), ctypes.addressof(out)
    attr = TEST_RUN.pack(program, 0, len(frame), len(out), *where, 1, 0)
    buffer = ctypes.create_string_buffer(attr, len(attr))
    Bpf().call(BPF_PROG_TEST_RUN, buffer)
    _, verdict, _, length, *_ = TEST_RUN.unpack(buffer.raw)
    assert verdict == decap.TCX_PASS
    return out.raw[:length]


def outer(family: str, proto: int, body: bytes, *, options: bytes = b"", frag: int = 0) -> bytes:
    """A frame with an outer header that has no right checksum."""
    macs = bytes.fromhex("02000000000b02000000000a")
    if family == "v4":
        addresses = ip_address("10.0.0.254").packed + ip_address("10.0.0.11").packed
        words = 0x45 + len(options) // 4, 0, 20 + len(options) + len(body), 0, frag, 64, proto, 0
        return macs + b"\x08\x00" + struct.pack("!2B3H2BH", *words) + addresses + options + body
    addresses = ip_address("fd00::fe").packed + ip_address("fd00::11").packed
    header = struct.pack("!IH2B", 6 << 28, len(body), proto, 64)
    return macs + b"\x86\xdd" + header + addresses + body


def gue(first: int, proto: int, body: bytes, port: int = GUE_PORT) -> bytes:
    head = struct.pack("!2BH", first, proto, 0) + bytes((first & 0x1F) * 4)
    return struct.pack("!4H", 50000, port, 8 + len(head) + len(body), 0) + head + body


V4, V6 = INNER["v4"], INNER["v6"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("proto", "body", "inner"),
    [
        pytest.param(IPIP, V4, V4, id="ipv4"),
        pytest.param(IPV6, V6, V6, id="ipv6"),
        pytest.param(GRE, bytes.fromhex("00000800") + V4, V4, id="gre"),
        pytest.param(GRE, bytes.fromhex("800086dd12340000") + V6, V6, id="gre with a checksum"),
        pytest.param(UDP, gue(0, IPIP, V4), V4, id="gue"),
        pytest.param(UDP, gue(2, IPV6, V6), V6, id="gue with fields"),
    ],
)
def test_an_outer_header_is_taken_off(
    family: Family, proto: int, body: bytes, inner: bytes, program: int
) -> None:
    frame = outer(family, proto, body)
    assert run(program, frame) == frame[:14] + inner


def test_options_of_an_outer_header_go_with_it(program: int) -> None:
    frame = outer("v4", IPIP, V4, options=bytes([1] * 8))
    assert run(program, frame) == frame[:14] + V4


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(outer("v4", 6, V4), id="no tunnel"),
        pytest.param(bytes(12) + b"\x08\x06" + bytes(46), id="arp"),
        pytest.param(outer("v4", IPIP, V4, frag=0x2000), id="first fragment"),
        pytest.param(outer("v4", IPIP, V4, frag=0x0010), id="later fragment"),
        pytest.param(outer("v4", GRE, bytes.fromhex("2000080000000001") + V4), id="gre, a key"),
        pytest.param(outer("v4", GRE, bytes.fromhex("00010800") + V4), id="gre, version 1"),
        pytest.param(outer("v6", GRE, bytes.fromhex("00006558") + V4), id="gre, ethernet"),
        pytest.param(outer("v4", UDP, gue(0, IPIP, V4, port=53)), id="another port"),
        pytest.param(outer("v4", UDP, gue(0x20, IPIP, V4)), id="gue, control"),
        pytest.param(outer("v6", UDP, gue(0x40, IPIP, V4)), id="gue, variant 1"),
        pytest.param(outer("v6", UDP, gue(0, UDP, V4)), id="gue, no ip inside"),
        pytest.param(outer("v4", IPIP, b""), id="nothing inside"),
        pytest.param(outer("v4", IPIP, V4[:19]), id="too little inside"),
        pytest.param(outer("v6", IPV6, V6[:39]), id="too little ipv6 inside"),
        pytest.param(outer("v4", GRE, b"\0\0"), id="gre, cut short"),
        pytest.param(outer("v4", UDP, gue(0x1F, IPIP, b"")[:20]), id="gue, cut short"),
    ],
)
def test_what_is_no_tunnel_of_ours_passes_as_it_is(frame: bytes, program: int) -> None:
    assert run(program, frame) == frame


def test_a_kernel_that_cannot_is_told_from_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunlb.bpf.BPF_TCX_INGRESS", 255)
    assert (
        decap.missing() == "cannot attach a BPF program to a device: Linux 6.6 or later is needed"
    )
