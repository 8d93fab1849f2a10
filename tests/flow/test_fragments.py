"""Fragments of datagrams to services: they go where their first one goes, in any order."""

from __future__ import annotations

import itertools
import random
from ipaddress import ip_address
from typing import Any

import pytest

from tests.flow.fragmenting import cut, framed, joined
from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V6,
    WAN_MAC,
    Net,
    Rig,
    balanced,
    default_route,
    dest,
    dropped,
    neighbours,
    ports,
    service,
    text,
)
from tunlb.hook import Hook, Point, Verdict
from tunlb.ipvs.datagrams import DATAGRAMS, LIFE_MS, REUSE_MS
from tunlb.ipvs.fragments import HELD_BYTES, HELD_EACH, HELD_MAX, HELD_SOURCE, HOLD_MS
from tunlb.packet import Packet
from tunlb.testing.checkers import check, ether, ip, udp
from tunlb.testing.flow import Sent
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.frames import udp as datagram
from tunlb.testing.parser import Udp
from tunlb.testing.workers import Workers

CPORT, VPORT, DPORT = 40000, 80, 8080
DATA = bytes(range(256)) * 16  # 4096 bytes: three fragments


def upward(net: Net, data: bytes = DATA, size: int = 1440, **fields: Any) -> list[bytes]:
    """From the client to the VIP."""
    whole = packet(net.remote, net.vip, datagram(CPORT, VPORT, data))
    return [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole, size, **fields)]


def downward(net: Net, lport: int, laddr: str, data: bytes = DATA, **fields: Any) -> list[bytes]:
    """From the dest to what it takes for its client."""
    whole = packet(net.dest, laddr, datagram(DPORT, lport, data))
    return [framed(part, LAN_MAC, DEST_MAC) for part in cut(whole, **fields)]


def seen_by_dest(net: Net, sent: list[Sent], mode: str, data: bytes = DATA) -> int:
    """Checks what the dest puts together; the source port that it sees."""
    assert {one.port for one in sent} == {"lan"}
    saddr = net.laddr if mode == "fnat" else net.remote
    daddr = net.vip if mode == "dr" else net.dest
    for one in sent:
        check(one.frame, ether(src=LAN_MAC, dst=DEST_MAC), ip(saddr=saddr, daddr=daddr, ttl=63))
    dport = VPORT if mode == "dr" else DPORT
    whole = check(joined([one.frame for one in sent]), udp(dport=dport))
    assert whole.payload == data
    header = whole.find(Udp)
    assert isinstance(header, Udp)
    return header.sport


def seen_by_client(net: Net, sent: list[Sent], cport: int = CPORT) -> None:
    """Checks what the client puts together of an answer."""
    assert {one.port for one in sent} == {"wan"}
    for one in sent:
        check(
            one.frame,
            ether(src=WAN_MAC, dst=ROUTER_MAC),
            ip(saddr=net.vip, daddr=net.remote, ttl=63),
        )
    whole = check(joined([one.frame for one in sent]), udp(sport=VPORT, dport=cport))
    assert whole.payload == DATA


MODES = ["fnat", "nat", "dr"]


@pytest.mark.parametrize("mode", MODES)
def test_a_datagram_and_its_answer(net: Net, mode: str) -> None:
    rig = Rig(balanced(net, "udp", mode))
    up = upward(net)
    lport = seen_by_dest(net, rig.send("wan", up), mode)
    counted = {
        "CONN_NEW": 1,
        "FRAGMENT_FIRST": 1,
        "FRAGMENT_LATER": 2,
        "IPVS_IN_PACKETS": 3,
        "IPVS_IN_BYTES": sum(len(frame) - 24 for frame in up),
    }
    assert rig.counters() == counted
    if mode == "dr":
        return
    down = downward(net, lport, net.laddr if mode == "fnat" else net.remote)
    seen_by_client(net, rig.send("lan", down))
    assert rig.counters() == counted | {
        "FRAGMENT_FIRST": 2,
        "FRAGMENT_LATER": 4,
        "IPVS_OUT_PACKETS": 3,
        "IPVS_OUT_BYTES": sum(len(frame) - 24 for frame in down),
    }


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_any_order(net: Net, order: tuple[int, ...]) -> None:
    rig = Rig(balanced(net, "udp", "nat"))
    up = upward(net)
    seen_by_dest(net, rig.send("wan", [up[i] for i in order]), "nat")
    held = order.index(0)
    assert rig.counters().get("FRAGMENT_HELD", 0) == held
    assert rig.director.protection.fragments.held == 0
    assert not [name for name in rig.counters() if name.startswith("drop")]


def test_answers_in_any_order(net: Net) -> None:
    """A NAT dest's answers are to the client's own address: that is no address of ours."""
    rig = Rig(balanced(net, "udp", "nat"))
    rig.send("wan", upward(net))
    seen_by_client(net, rig.send("lan", reversed(downward(net, CPORT, net.remote))))
    assert rig.counters()["IPVS_OUT_PACKETS"] == 3


def test_without_a_checksum(net: Net) -> None:
    rig = Rig(balanced(net, "udp", "fnat"))
    whole = packet(net.remote, net.vip, datagram(CPORT, VPORT, DATA, checksum=0))
    sent = rig.send("wan", [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole)])
    seen = joined([one.frame for one in sent])
    at = 10 + 14 + (40 if net.af == 6 else 20) + 6
    assert seen[at : at + 2] == b"\0\0"


def test_a_wrong_checksum_stays_wrong(net: Net) -> None:
    rig = Rig(balanced(net, "udp", "fnat"))
    whole = bytearray(packet(net.remote, net.vip, datagram(CPORT, VPORT, DATA)))
    whole[-1] ^= 0xFF
    sent = rig.send("wan", [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(bytes(whole))])
    with pytest.raises(AssertionError, match="checksum"):
        check(joined([one.frame for one in sent]))


def test_a_tcp_segment_in_fragments(net: Net) -> None:
    rig = Rig(balanced(net, "tcp", "fnat"))
    whole = packet(net.remote, net.vip, segment(CPORT, VPORT, DATA, flags="S", mss=1460))
    sent = rig.send("wan", [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole)])
    assert check(joined([one.frame for one in sent])).payload == DATA
    assert rig.counters()["CONN_NEW"] == 1


def test_many_datagrams_at_once(net: Net) -> None:
    rig = Rig(balanced(net, "udp", "nat"))
    mixed = [list(upward(net, bytes([n]) * 4000, ident=n)) for n in range(20)]
    sent = rig.send("wan", itertools.chain(*zip(*mixed, strict=True)))
    for n in range(20):
        seen_by_dest(net, sent[n::20], "nat", bytes([n]) * 4000)


def test_dropped_by_option(net: Net) -> None:
    config = text({"kind": "tunlb", "fragments": "drop"}) + "\n" + balanced(net, "udp")
    rig = Rig(config)
    for frame in upward(net):
        dropped(rig, "wan", frame, "FRAGMENT")
    rig.reload(balanced(net, "udp"))
    seen_by_dest(net, rig.send("wan", upward(net)), "fnat")
    rig.reload(config)
    dropped(rig, "wan", upward(net)[0], "FRAGMENT")


def test_the_mtu_is_each_fragments_own(net: Net) -> None:
    """Too large a first one gets an error; a later one is dropped without (RFC 792)."""
    lines = [*ports(net), default_route(net), *neighbours(net)]
    lines[1]["mtu"] = 1280
    rig = Rig(text(*lines, service(net, "udp"), dest(net)))
    first, second, _ = upward(net)
    verdict, sent = rig.receive("wan", first)
    assert verdict == Verdict.DROP
    assert [one.port for one in sent] == ["wan"]
    assert rig.receive("wan", second) == (Verdict.DROP, [])
    assert rig.counters()["drop.FRAGMENT_ORPHAN"] == 1


# ---- what is refused ----------------------------------------------------------------------------


def raw(
    net: Net,
    at: int,
    size: int,
    more: bool,
    ident: int = 7,
    proto: int = 17,
    src: str = "",
) -> bytes:
    """A fragment of zeros, or with ports when it is a first one."""
    src = src or net.remote
    body = (b"\x9c\x40\x00\x50" + bytes(size))[:size] if at == 0 else bytes(size)
    if net.af == 4:
        fields: dict[str, Any] = {"df": False, "mf": more, "fragment": at, "ident": ident}
        whole = packet(src, net.vip, body, proto=proto, **fields)
    else:
        head = (at | more).to_bytes(2, "big") + ident.to_bytes(4, "big")
        whole = packet(src, net.vip, body, proto=proto, extensions=((44, b"\0" + head),))
    return framed(whole, WAN_MAC, ROUTER_MAC)


def source(net: Net, number: int) -> str:
    """One of many clients behind the router, each a subscriber of its own."""
    if net.af == 4:
        return str(ip_address("100.64.0.0") + number)
    return str(ip_address("2001:db8:1::1") + (number << 64))


@pytest.mark.parametrize(
    ("at", "size", "more", "proto"),
    [
        pytest.param(0, 4, True, 17, id="half a UDP header"),
        pytest.param(0, 16, True, 6, id="half a TCP header"),
        pytest.param(0, 12, True, 17, id="not a multiple of 8"),
        pytest.param(8, 12, True, 17, id="a later one, not a multiple of 8"),
        pytest.param(65528, 16, False, 17, id="beyond the end of any datagram"),
        pytest.param(1440, 0, False, 17, id="empty"),
    ],
)
def test_no_host_sends_that(net: Net, at: int, size: int, more: bool, proto: int) -> None:
    dropped(
        Rig(balanced(net, "udp")), "wan", raw(net, at, size, more, proto=proto), "FRAGMENT_INVALID"
    )


def test_over_the_tcp_header(net: Net) -> None:
    """RFC 3128: flags would be overwritten behind the back of who looked at them."""
    rig = Rig(balanced(net, "tcp", "nat"))
    whole = packet(net.remote, net.vip, segment(CPORT, VPORT, DATA, flags="S"))
    rig.receive("wan", framed(cut(whole, 1440, ident=7)[0], WAN_MAC, ROUTER_MAC))
    dropped(rig, "wan", raw(net, 8, 16, True, proto=6), "FRAGMENT_INVALID")


def test_a_copy_is_dropped_and_the_rest_is_not(net: Net) -> None:
    rig = Rig(balanced(net, "udp", "nat"))
    first, second, third = upward(net)
    sent = rig.send("wan", [first, second])
    dropped(rig, "wan", second, "FRAGMENT_OVERLAP")
    dropped(rig, "wan", first, "FRAGMENT_OVERLAP")
    seen_by_dest(net, sent + rig.send("wan", [third]), "nat")


@pytest.mark.parametrize(
    ("at", "size", "more"),
    [(1432, 16, True), (1440, 16, False), (2872, 16, True), (2944, 2000, True), (4096, 800, False)],
)
def test_an_overlap_gives_the_datagram_up(net: Net, at: int, size: int, more: bool) -> None:
    """RFC 5722: nothing of it passes any more."""
    rig = Rig(balanced(net, "udp", "nat"))
    first, second, third = upward(net, ident=7)
    rig.send("wan", [first, third])
    dropped(rig, "wan", raw(net, at, size, more), "FRAGMENT_OVERLAP")
    dropped(rig, "wan", second, "FRAGMENT_OVERLAP")


def test_a_number_is_used_again(net: Net) -> None:
    rig = Rig(balanced(net, "udp", "nat"))
    for n in range(3):
        seen_by_dest(net, rig.send("wan", upward(net, bytes([n]) * 3000)), "nat", bytes([n]) * 3000)
    rig.receive("wan", upward(net)[0])
    rig.advance(LIFE_MS + 1)
    seen_by_dest(net, rig.send("wan", upward(net)), "nat")


@pytest.mark.parametrize("lost", [1, 2])
def test_a_number_is_used_again_after_a_loss(net: Net, lost: int) -> None:
    """A sender in a hurry has been through all numbers after a second or two (RFC 4963)."""
    rig = Rig(balanced(net, "udp", "nat"))
    some = [part for n, part in enumerate(upward(net, bytes(3000))) if n != lost]
    rig.send("wan", some)
    rig.advance(REUSE_MS)
    dropped(rig, "wan", some[0], "FRAGMENT_OVERLAP")
    rig.advance(1, 1)
    seen_by_dest(net, rig.send("wan", upward(net)), "nat")


def test_a_number_is_used_again_after_a_contradiction(net: Net) -> None:
    rig = Rig(balanced(net, "udp", "nat"))
    first, second, third = upward(net, ident=7)
    rig.send("wan", [first, second])
    dropped(rig, "wan", raw(net, 2872, 16, True), "FRAGMENT_OVERLAP")
    rig.advance(REUSE_MS + 1)
    dropped(rig, "wan", third, "FRAGMENT_OVERLAP")
    seen_by_dest(net, rig.send("wan", [first, second, third]), "nat")


@pytest.mark.parametrize("extension", [(), ((60, b"\0" + bytes(6)),)], ids=["bare", "options"])
@pytest.mark.parametrize("mode", MODES)
def test_an_atomic_fragment_is_a_whole_packet(mode: str, extension: Any) -> None:
    """RFC 6946: it has nothing to do with others of its number, which nobody can break by it."""
    net = V6
    rig = Rig(balanced(net, "udp", mode))
    first, second, third = upward(net, ident=7)
    sent = rig.send("wan", [first])
    head = bytes(3) + (7).to_bytes(4, "big")
    extensions = (*extension, (44, head))
    body = packet(net.remote, net.vip, datagram(CPORT, VPORT, b"atom"), extensions=extensions)
    atom = rig.send("wan", [framed(body, WAN_MAC, ROUTER_MAC)] * 2)
    for one in atom:
        assert check(one.frame, udp(dport=VPORT if mode == "dr" else DPORT)).payload == b"atom"
    seen_by_dest(net, sent + rig.send("wan", [second, third]), mode)
    assert not [name for name in rig.counters() if name.startswith("drop")]


def test_behind_extension_headers() -> None:
    """The fragment header is found behind those that every router may look at."""
    net = V6
    rig = Rig(balanced(net, "udp", "nat"))
    whole = datagram(CPORT, VPORT, DATA)
    at_dest = b""
    # The checksum is of the datagram, which packet() would not compute for a part.
    plain = packet(net.remote, net.vip, whole)[40:]
    for at in range(0, len(plain), 1424):
        more = at + 1424 < len(plain)
        head = bytes(1) + (at | more).to_bytes(2, "big") + (7).to_bytes(4, "big")
        body = packet(
            net.remote,
            net.vip,
            plain[at : at + 1424],
            proto=17,
            extensions=((0, b"\0\1\4" + bytes(4)), (60, b"\0\1\4" + bytes(4)), (44, head)),
        )
        (sent,) = rig.send("wan", [framed(body, WAN_MAC, ROUTER_MAC)])
        check(sent.frame, ip(saddr=net.remote, daddr=net.dest, ttl=63))
        at_dest += sent.frame[10 + 14 + 40 + 24 :]
    assert at_dest[8:] == DATA
    assert at_dest[2:4] == DPORT.to_bytes(2, "big")
    assert rig.counters()["FRAGMENT_LATER"] == 2


def test_a_service_of_something_else_drops_them(net: Net) -> None:
    """A ping's identifier is in the first one alone."""
    proto = 1 if net.af == 4 else 58
    line, to = service(net, "icmp", "fnat"), dest(net)
    del line["vport"], to["dport"]
    rig = Rig(text(*ports(net), default_route(net), *neighbours(net), line, to))
    for at, more in ((0, True), (64, False)):
        dropped(rig, "wan", raw(net, at, 64, more, proto=proto), "FRAGMENT")
    assert rig.director.ipvs.conns.count == 0


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    "keys", [{"client_ip": "proxy-v2"}, {"reset_on_expire": True}], ids=["proxy", "reset"]
)
def test_of_a_segment_that_cannot_be_changed_in_part(
    net: Net, keys: dict[str, Any], backwards: bool
) -> None:
    """What is done to its conn's segments needs the whole: nothing of it arrives."""
    rig = Rig(balanced(net, "tcp", "fnat", **keys))
    syn = packet(net.remote, net.vip, segment(CPORT, VPORT, flags="S"))
    rig.send("wan", [framed(syn, WAN_MAC, ROUTER_MAC)])
    whole = packet(net.remote, net.vip, segment(CPORT, VPORT, DATA, flags="PA"))
    parts = [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole)]
    assert rig.send("wan", reversed(parts) if backwards else parts) == []
    assert rig.counters()["drop.FRAGMENT"] == 3
    assert rig.counters()["IPVS_IN_PACKETS"] == 1


def test_of_a_first_one_that_was_refused(net: Net) -> None:
    config = text(*ports(net), default_route(net), *neighbours(net), service(net, "udp"))
    rig = Rig(config)  # no dest
    first, second, _ = upward(net)
    rig.receive("wan", first)
    dropped(rig, "wan", second, "FRAGMENT_ORPHAN")


def test_with_an_offload_that_cannot_be(net: Net) -> None:
    frame = upward(net)[0]
    head = bytes((1, 0)) + bytes(4) + (34).to_bytes(2, "little") + (6).to_bytes(2, "little")
    dropped(Rig(balanced(net, "udp")), "wan", head + frame[10:], "VNET_HEADER")


# ---- bounds -------------------------------------------------------------------------------------


def test_one_that_waits_in_vain(net: Net) -> None:
    rig = Rig(balanced(net, "udp"))
    for frame in upward(net)[1:]:
        assert rig.receive("wan", frame) == (Verdict.STOLEN, [])
    rig.advance(HOLD_MS)
    assert rig.director.protection.fragments.held == 2
    assert rig.advance(500) == []
    assert rig.director.protection.fragments.held == 0
    assert rig.counters() == {"FRAGMENT_HELD": 2, "drop.FRAGMENT_TIMEOUT": 2}


def test_so_many_of_one_datagram_wait(net: Net) -> None:
    rig = Rig(balanced(net, "udp"))
    for n in range(HELD_EACH):
        rig.receive("wan", raw(net, 1440 + 8 * n, 8, True))
    dropped(rig, "wan", raw(net, 1440 + 8 * HELD_EACH, 8, True), "FRAGMENT_QUEUE_FULL")


def waiting(rig: Rig) -> tuple[int, int]:
    """How many wait, and their bytes."""
    fragments = rig.director.protection.fragments
    return fragments.held, fragments.held_bytes


def test_one_source_takes_no_places_of_others(net: Net) -> None:
    rig = Rig(balanced(net, "udp", "nat"))
    for n in range(HELD_SOURCE + 10):
        rig.receive("wan", raw(net, 1440, 8, True, ident=10_000 + n, src=source(net, 1)))
    assert waiting(rig)[0] == HELD_SOURCE
    dropped(rig, "wan", raw(net, 1440, 8, True, src=source(net, 1)), "FRAGMENT_QUEUE_FULL")
    seen_by_dest(net, rig.send("wan", reversed(upward(net))), "nat")
    rig.advance(HOLD_MS + 250)
    assert waiting(rig) == (0, 0)
    verdict, _ = rig.receive("wan", raw(net, 1440, 8, True, src=source(net, 1)))
    assert verdict == Verdict.STOLEN, "its places are free again"


def test_a_flood_of_later_ones_pushes_out_the_oldest(net: Net) -> None:
    """When it has many sources, true or not."""
    rig = Rig(balanced(net, "udp", "nat"))
    for n in range(3 * HELD_MAX):
        rig.receive("wan", raw(net, 1440, 8, True, ident=n, src=source(net, n)))
    assert waiting(rig)[0] == HELD_MAX
    assert rig.counters() == {
        "FRAGMENT_HELD": 3 * HELD_MAX,
        "drop.FRAGMENT_QUEUE_FULL": 2 * HELD_MAX,
    }
    seen_by_dest(net, rig.send("wan", reversed(upward(net))), "nat")
    rig.advance(HOLD_MS + 250)
    assert waiting(rig) == (0, 0)


def test_so_many_bytes_wait(net: Net) -> None:
    """Fragments of jumbo frames."""
    rig = Rig(balanced(net, "udp", "nat"))
    size = 8960
    most = 0
    for n in range(HELD_BYTES // size + 20):
        rig.receive("wan", raw(net, size, size, True, ident=n, src=source(net, n)))
        most = max(most, waiting(rig)[1])
    held, held_bytes = waiting(rig)
    assert held_bytes <= most <= HELD_BYTES
    assert HELD_BYTES // (size + 100) <= held < HELD_MAX
    assert rig.counters()["drop.FRAGMENT_QUEUE_FULL"] == HELD_BYTES // size + 20 - held


@pytest.mark.parametrize("order", ["forwards", "backwards", "first, then backwards", "shuffled"])
@pytest.mark.parametrize("mode", MODES)
def test_as_large_as_a_datagram_may_be(net: Net, mode: str, order: str) -> None:
    """65,507 bytes of IPv4, and the same of IPv6, in pieces of 1232."""
    data = bytes(range(251)) * 261
    data = data[:65507]
    rig = Rig(balanced(net, "udp", mode))
    parts = upward(net, data, 1232)
    assert len(parts) == 54
    if order == "backwards":
        parts.reverse()
    elif order == "first, then backwards":
        parts = [parts[0], *reversed(parts[1:])]
    elif order == "shuffled":
        random.Random(7).shuffle(parts)
    seen_by_dest(net, rig.send("wan", parts), mode, data)
    assert not [name for name in rig.counters() if name.startswith("drop")]


def test_a_flood_of_first_ones_forgets_the_oldest(net: Net) -> None:
    rig = Rig(balanced(net, "udp", "nat"))
    rig.send("wan", upward(net))
    for n in range(DATAGRAMS + 1000):
        rig.receive("wan", raw(net, 0, 16, True, ident=n))
    found = rig.counters()
    assert 1000 <= found["FRAGMENT_EVICTED"] <= 2000
    assert {name for name in found if name.startswith("drop.")} == set()
    seen_by_dest(net, rig.send("wan", upward(net, ident=65000)), "nat")


def test_as_many_gaps_as_there_may_be(net: Net) -> None:
    rig = Rig(balanced(net, "udp", "nat"))
    rig.receive("wan", raw(net, 0, 16, True))
    for n in range(16):
        assert rig.receive("wan", raw(net, 32 + 16 * n, 8, True))[0] == Verdict.ACCEPT
    dropped(rig, "wan", raw(net, 32 + 16 * 16, 8, True), "FRAGMENT_INVALID")


# ---- what is not ours ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_a_router_passes_fragments_on(net: Net, mode: str) -> None:
    rig = Rig(balanced(net, "udp", mode))
    whole = packet(net.remote, net.dest2, datagram(CPORT, 53, DATA))
    parts = cut(whole)
    sent = rig.send("wan", [framed(part, WAN_MAC, ROUTER_MAC) for part in parts])
    assert {one.port for one in sent} == {"lan"}
    seen = check(joined([one.frame for one in sent]), ip(saddr=net.remote, daddr=net.dest2, ttl=63))
    assert seen.payload == DATA
    assert rig.counters()["FORWARDED"] == 3


def test_to_an_address_of_ours(net: Net) -> None:
    """No service takes it: local input puts nothing together."""
    rig = Rig(balanced(net, "udp"))
    whole = packet(net.remote, net.wan, datagram(CPORT, 53, DATA))
    first, second, _ = (framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole))
    rig.receive("wan", first)
    assert rig.counters() == {"FRAGMENT_FIRST": 1, "drop.FRAGMENT": 1}
    dropped(rig, "wan", second, "FRAGMENT")


def test_local_input_sees_them_whoever_came_first(net: Net) -> None:
    """A hook there may have use for fragments."""
    seen: list[tuple[int, int]] = []

    class Taker(Hook):
        point = Point.LOCAL_IN

        def run(self, pkt: Packet, now: int) -> int:
            seen.append((pkt.fragment, pkt.dport))
            return Verdict.STOLEN

    rig = Rig(balanced(net, "udp"), hooks=[Taker()])
    whole = packet(net.remote, net.wan, datagram(CPORT, 53, DATA))
    first, second, third = (framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole))
    rig.send("wan", [second, first, third])
    assert seen == [(1, 53), (2, 53), (2, 53)]
    assert rig.counters() == {"FRAGMENT_FIRST": 1, "FRAGMENT_HELD": 1}


def test_a_users_hook_sees_each_once(net: Net) -> None:
    seen: list[int] = []

    class Watcher(Hook):
        def run(self, pkt: Packet, now: int) -> int:
            seen.append(pkt.fragment)
            pkt.mark = len(seen)
            return Verdict.ACCEPT

    class After(Hook):
        point = Point.POST_ROUTING

        def run(self, pkt: Packet, now: int) -> int:
            marks.append(pkt.mark)
            return Verdict.ACCEPT

    marks: list[int] = []
    rig = Rig(balanced(net, "udp"), hooks=[Watcher(), After()])
    rig.send("wan", reversed(upward(net)))
    assert seen == [2, 2, 1]
    assert marks == [3, 1, 2], "and what it wrote down stays with the packet"


# ---- several workers ----------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_whoever_reads_them(net: Net, mode: str, backwards: bool) -> None:
    """One worker reads all fragments; each conn is where its ports lead."""
    workers = Workers(balanced(net, "udp", mode), 3)
    for rig in workers.rigs:
        rig.advance(3000)
    owners = set()
    for cport in range(40000, 40012):
        whole = packet(net.remote, net.vip, datagram(cport, VPORT, DATA))
        parts = [framed(p, WAN_MAC, ROUTER_MAC) for p in cut(whole, ident=cport)]
        sent = []
        for part in reversed(parts) if backwards else parts:
            sent += workers.receive(0, "wan", part)
        lport = seen_by_dest(net, sent, mode)
        answer = downward(net, lport, net.laddr if mode == "fnat" else net.remote, ident=cport)
        sent = []
        for part in reversed(answer) if backwards else answer:
            sent += workers.receive(0, "lan", part)
        seen_by_client(net, sent, cport)
        owners |= {n for n, rig in enumerate(workers.rigs) if rig.director.ipvs.conns.count}
    assert owners == {0, 1, 2}
    assert not [name for name in workers.counters() if name.startswith("drop")]


@pytest.mark.parametrize("backwards", [False, True])
def test_the_owner_of_the_conn_is_killed(net: Net, backwards: bool) -> None:
    """What was on its way is lost, as on any bad wire; the conn, and what comes next, is not."""
    workers = Workers(balanced(net, "udp", "fnat"), 2)
    for rig in workers.rigs:
        rig.advance(3000)

    def parts(ident: int) -> list[bytes]:
        whole = packet(net.remote, net.vip, datagram(cport, VPORT, DATA))
        found = [framed(p, WAN_MAC, ROUTER_MAC) for p in cut(whole, ident=ident)]
        return found[::-1] if backwards else found

    for cport in itertools.count(40000):  # one whose conn is the other worker's
        for part in parts(cport):
            workers.receive(0, "wan", part)
        if workers.rigs[1].director.ipvs.conns.count:
            break
    first, second, third = parts(1)
    workers.receive(0, "wan", first)
    workers.kill(1)
    late = workers.receive(0, "wan", second) + workers.receive(0, "wan", third)
    assert late == [] or backwards
    workers.advance(2000)
    assert all(rig.director.protection.fragments.held == 0 for rig in workers.rigs)
    sent = [one for part in parts(2) for one in workers.receive(0, "wan", part)]
    seen_by_dest(net, sent, "fnat")
    assert workers.rigs[1].director.ipvs.conns.count == 1
    assert "CONN_NEW" not in workers.rigs[1].counters()


@pytest.mark.parametrize("backwards", [False, True])
def test_their_reader_is_killed(net: Net, backwards: bool) -> None:
    """It alone knew their ports."""
    workers = Workers(balanced(net, "udp", "nat"), 2)
    for rig in workers.rigs:
        rig.advance(3000)
    first, second, third = upward(net)[::-1] if backwards else upward(net)
    workers.receive(0, "wan", first)
    workers.kill(0)
    workers.receive(0, "wan", second)
    workers.receive(0, "wan", third)
    workers.advance(2000)
    assert all(rig.director.protection.fragments.held == 0 for rig in workers.rigs)
    sent = [one for part in upward(net, ident=9) for one in workers.receive(0, "wan", part)]
    seen_by_dest(net, sent, "nat")
