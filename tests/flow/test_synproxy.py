"""The SYN proxy, step by step, in both families and modes: frames, numbers, options, counters."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.flow.kit import Net, Rig, balanced, dropped, network, service, states, text, the_dest
from tests.flow.synproxy_kit import FULL, MASK, Call, Options, proxied, read_options, stamps_option
from tunlb.hook import Hook, Point, Verdict
from tunlb.ipvs.cookie import PERIOD_MS
from tunlb.ipvs.held import HELD_PER_CONN
from tunlb.testing import frames
from tunlb.testing.flow import Memory

MODES = ["fnat", "nat"]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def call(net: Net, mode: str) -> Call:
    return Call(Rig(proxied(net, mode)), net, mode)


def conns(rig: Rig) -> int:
    return rig.director.ipvs.conns.count


# -- step 1


def test_a_syn_is_answered_and_nothing_is_kept(call: Call) -> None:
    header = call.first()
    mss = 1460 if call.net.af == 4 else 1440
    assert call.synack == Options(mss, 7, sack=True, stamps=(call.clock, 7000))
    assert header.window == 10 * mss
    assert states(call.rig) == []
    assert len(call.rig.director.ipvs.life.pools) == 0
    assert call.rig.counters() == {"SYNPROXY_SYNACKS": 1}


@pytest.mark.parametrize(
    ("keys", "offer", "answer"),
    [
        pytest.param({}, Options(None), Options(1460), id="nothing offered"),
        pytest.param({}, Options(wscale=3), Options(1460, 7), id="window scale alone"),
        pytest.param({}, Options(sack=True), Options(1460, sack=True), id="sack alone"),
        pytest.param(
            {"synproxy_wscale": 0}, FULL, Options(1460, None, True, (0, 7000)), id="no ws"
        ),
        pytest.param(
            {"synproxy_sack": False}, FULL, Options(1460, 7, False, (0, 7000)), id="no sack"
        ),
        pytest.param({"synproxy_timestamps": False}, FULL, Options(1460, 7, True), id="no stamps"),
        pytest.param({"synproxy_mss": 1200}, Options(), Options(1200), id="mss"),
        pytest.param({"synproxy_mss": 9000}, Options(), Options(1460), id="mss beyond the port"),
    ],
)
def test_what_the_answer_offers(
    net: Net, keys: dict[str, Any], offer: Options, answer: Options
) -> None:
    call = Call(Rig(proxied(net, **keys)), net, offer=offer)
    call.first()
    found = call.synack
    stamps = None if found.stamps is None else (0, found.stamps[1])
    mss = answer.mss if net.af == 4 or answer.mss == 1200 else 1440
    assert Options(found.mss, found.wscale, found.sack, stamps) == Options(
        mss, answer.wscale, answer.sack, answer.stamps
    )


def test_a_syn_again_gets_the_same_answer_and_another_one_another(call: Call) -> None:
    first = call.first().seq
    assert call.first().seq == first
    call.isn += 1
    assert call.first().seq != first


def test_data_in_a_syn_is_not_taken(call: Call) -> None:
    [sent] = call.from_client("S", b"early", seq=call.isn, options=FULL.packed())
    header, payload = call.to_client(sent)
    assert (header.ack, payload) == ((call.isn + 1) & MASK, b"")


def test_a_station_gets_its_answer_without_a_question(net: Net) -> None:
    """Whoever sent the SYN is answered: a flood from addresses on link asks for no neighbour."""
    rig = Rig(proxied(net))
    neighs = len(rig.director.neighs)
    stranger = "10.0.0.99" if net.af == 4 else "fd00::99"
    transport = frames.tcp(1234, 80, flags="S", seq=1)
    packet = frames.ip(stranger, net.vip, transport)
    mac = "02:00:00:00:00:63"
    wan = rig.netif("wan").mac_bytes
    verdict, [sent] = rig.receive("wan", frames.vnet(frames.eth(wan, mac, payload=packet)))
    assert verdict == Verdict.STOLEN
    assert sent.frame[10:16].hex(":") == mac
    assert len(rig.director.neighs) == neighs
    assert rig.counters() == {"SYNPROXY_SYNACKS": 1}


def test_our_own_hooks_see_the_answer(net: Net) -> None:
    class Refuse(Hook):
        point = Point.POST_ROUTING

        def run(self, pkt: Any, now: int) -> int:
            return int(Verdict.DROP)

    rig = Rig(proxied(net), hooks=[Refuse()])
    call = Call(rig, net)
    assert call.from_client("S", seq=1) == []
    assert rig.counters() == {"drop.UNKNOWN": 1}


def test_an_answer_that_comes_back_is_a_loop(net: Net) -> None:
    call = Call(Rig(proxied(net)), net)
    [sent] = call.from_client("S", seq=1)
    frame = bytearray(sent.frame)
    wan, router = frame[16:22], frame[10:16]
    frame[10:22] = wan + router
    at = 10 + 14 + (8 if net.af == 4 else 7)
    frame[at] -= 1
    if net.af == 4:
        frame[at + 2] += 1
    assert call.rig.receive("wan", bytes(frame)) == (Verdict.DROP, [])
    assert call.rig.counters() == {"SYNPROXY_SYNACKS": 1, "drop.LOOP": 1, "LOOP_RETURNED": 1}


def test_a_forged_or_spent_syn_is_no_syn_proxys_business(net: Net) -> None:
    rig = Rig(proxied(net))
    transport = frames.tcp(1234, 80, flags="S")
    own = frames.eth(rig.netif("wan").mac_bytes, payload=frames.ip(net.wan, net.vip, transport))
    dropped(rig, "wan", frames.vnet(own), "MARTIAN")
    assert rig.counters() == {"drop.MARTIAN": 1}


# -- step 2


def test_a_cookie_that_comes_back_opens_a_conn(call: Call) -> None:
    call.first()
    header = call.second()
    assert read_options(header.options) == Options(1460, 9, sack=True, stamps=(7005, 0))
    assert header.window == 65535  # 500 << 9 does not fit
    assert states(call.rig) == ["SYN_SENT"]
    dest = the_dest(call.rig)
    assert (dest.actconns, dest.inactconns, dest.half_open) == (0, 1, 1)
    assert call.rig.counters() == {"SYNPROXY_SYNACKS": 1, "SYNPROXY_CONNS": 1, "CONN_NEW": 1}


@pytest.mark.parametrize(
    ("mss", "kept"), [(100, 128), (536, 536), (1459, 1440), (1460, 1460), (9000, 8940), (None, 536)]
)
def test_what_a_cookie_keeps_of_an_mss(net: Net, mss: int | None, kept: int) -> None:
    call = Call(Rig(proxied(net)), net, offer=Options(mss, wscale=14))
    call.first()
    assert read_options(call.second().options) == Options(kept, 14)


@pytest.mark.parametrize("age", [0, PERIOD_MS - 1])
def test_a_cookie_is_good_for_its_period_and_the_next(net: Net, age: int) -> None:
    rig = Rig(proxied(net))
    rig.now = 40 * PERIOD_MS
    call = Call(rig, net, offer=Options())
    call.first()
    rig.now += PERIOD_MS + age
    call.second()


def test_a_cookie_expires(net: Net) -> None:
    rig = Rig(proxied(net))
    rig.now = 41 * PERIOD_MS - 1
    call = Call(rig, net, offer=Options())
    call.first()
    rig.now += PERIOD_MS + 1
    dropped(rig, "wan", call.client_frame("A", **call.ack_fields()), "SYNPROXY_COOKIE")
    assert conns(rig) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"ack": 1},
        {"ack": 0},
        {"seq": 1},
        {"seq": -1},
        {"flags": "SA"},
        {"flags": "RA"},
        {"flags": "R"},
        {"flags": "F"},
        {"cport": 40001},
        {"clock": 1},
        {"clock": -(2 * PERIOD_MS + 1)},
    ],
    ids=str,
)
def test_nothing_but_the_cookie_opens_a_conn(net: Net, wrong: dict[str, Any]) -> None:
    call = Call(Rig(proxied(net)), net)
    call.first()
    wrong = dict(wrong)
    flags = wrong.pop("flags", "A")
    call.cport = wrong.pop("cport", call.cport)
    call.clock = (call.clock + wrong.pop("clock", 0)) & MASK
    fields = call.ack_fields()
    for key, value in wrong.items():
        fields[key] = (fields[key] + value) & MASK if value else 0
    dropped(call.rig, "wan", call.client_frame(flags, **fields), "SYNPROXY_COOKIE")
    assert conns(call.rig) == 0


def test_a_service_without_takes_no_cookie(net: Net) -> None:
    rig = Rig(balanced(net))
    call = Call(rig, net)
    dropped(rig, "wan", call.client_frame("A", seq=1, ack=1), "TCP_NOT_SYN")


def test_no_dest_for_a_client_that_has_its_cookie(call: Call) -> None:
    call.first()
    the_dest(call.rig).weight = 0
    [sent] = call.from_client("PA", b"hello", **call.ack_fields())
    assert call.verdict == Verdict.DROP
    header, _ = call.to_client(sent)
    assert header.flags == "RA"
    assert header.seq == (call.cookie + 1) & MASK
    assert header.ack == (call.isn + 6) & MASK
    assert call.rig.counters() == {
        "SYNPROXY_SYNACKS": 1,
        "SYNPROXY_REFUSED": 1,
        "drop.NO_DEST": 1,
    }


# -- step 3


def test_both_handshakes_meet(call: Call) -> None:
    call.first()
    call.second()
    header = call.third()
    assert read_options(header.options).stamps == (7005, 900_000)
    assert header.window == 500
    assert states(call.rig) == ["ESTABLISHED"]
    dest = the_dest(call.rig)
    assert (dest.actconns, dest.inactconns, dest.half_open) == (1, 0, 0)
    assert call.rig.counters() == {
        "SYNPROXY_SYNACKS": 1,
        "SYNPROXY_CONNS": 1,
        "SYNPROXY_OPENED": 1,
        "CONN_NEW": 1,
        "IPVS_IN_PACKETS": 1,
        "IPVS_IN_BYTES": 52 if call.net.af == 4 else 72,
    }


def test_segments_are_counted_as_each_side_counts(call: Call) -> None:
    call.open()
    # The client's: its data, an ACK of 10 bytes that the dest sent, and a hole behind them.
    sack = struct.pack("!BBII", 5, 10, (call.cookie + 21) & MASK, (call.cookie + 31) & MASK)
    options = b"\1\1" + stamps_option((7010, call.clock + 40)) + b"\1\1" + sack
    [sent] = call.from_client(
        "PA", b"hello", seq=call.isn + 1, ack=call.cookie + 11, window=300, options=options
    )
    header, payload = call.to_dest(sent, ttl=63)
    assert payload == b"hello"
    assert header.seq == (call.isn + 1) & MASK
    assert header.ack == call.dest_isn + 11
    assert header.window == 300
    assert header.options[2:12] == stamps_option((7010, 900_040))
    assert header.options[16:] == struct.pack("!II", call.dest_isn + 21, call.dest_isn + 31)
    # The dest's: in units of 2**7, as the client was told.
    options = b"\1\1" + stamps_option((900_050, 7010))
    [sent] = call.from_dest(
        "PA", b"welcome", seq=call.dest_isn + 1, ack=call.isn + 6, window=501, options=options
    )
    header, payload = call.to_client(sent, ttl=63)
    assert payload == b"welcome"
    assert header.seq == (call.cookie + 1) & MASK
    assert header.ack == (call.isn + 6) & MASK
    assert header.window == 501
    assert header.options[2:] == stamps_option(((call.clock + 50) & MASK, 7010))


@pytest.mark.parametrize(
    ("client", "dest", "told", "window", "seen"),
    [
        pytest.param(9, 7, 7, 1000, 1000, id="alike"),
        pytest.param(9, 9, 7, 1000, 4000, id="dest scales more"),
        pytest.param(9, 9, 7, 60000, 65535, id="more than the client can be told"),
        pytest.param(9, 5, 7, 1003, 250, id="dest scales less"),
        pytest.param(9, None, 7, 64000, 500, id="dest does not scale"),
        pytest.param(None, None, 7, 64000, 64000, id="client does not scale"),
    ],
)
def test_the_dests_window(
    net: Net, client: int | None, dest: int | None, told: int, window: int, seen: int
) -> None:
    call = Call(
        Rig(proxied(net, synproxy_wscale=told)),
        net,
        offer=Options(wscale=client),
        accepts=Options(wscale=dest),
    )
    call.open()
    [sent] = call.from_dest("A", seq=call.dest_isn + 1, ack=call.isn + 1, window=window)
    assert call.to_client(sent, ttl=63)[0].window == seen


@pytest.mark.parametrize(
    ("client", "dest", "window", "seen"),
    [(9, 7, 300, 300), (9, None, 100, 51200), (9, None, 300, 65535), (None, None, 300, 300)],
)
def test_the_clients_window(
    net: Net, client: int | None, dest: int | None, window: int, seen: int
) -> None:
    call = Call(
        Rig(proxied(net)),
        net,
        offer=Options(wscale=client),
        accepts=Options(wscale=dest),
        window=window,
    )
    call.first()
    in_syn = call.second().window
    assert in_syn == min(65535, window << (client or 0))
    assert call.third().window == seen
    [sent] = call.from_client("A", **call.ack_fields())
    assert call.to_dest(sent, ttl=63)[0].window == seen


def test_offloaded_frames(call: Call) -> None:
    """A partial checksum knows nothing of what is adjusted; the kernel adds the header's sum."""
    call.open()
    payload = bytes(40_000)
    options = b"\1\1" + stamps_option((900_050, 7010))
    transport = frames.tcp(
        8080, call.lport, payload, seq=call.dest_isn + 1, ack=call.isn + 1, options=options
    )
    daddr = call.net.laddr if call.mode == "fnat" else call.net.remote
    packet = frames.ip(call.net.dest, daddr, transport)
    lan, mac = call.rig.netif("lan").mac_bytes, "02:00:00:00:00:11"
    gso = frames.GSO_TCPV4 if call.net.af == 4 else frames.GSO_TCPV6
    frame = frames.vnet(
        frames.eth(lan, mac, payload=packet), needs_csum=True, gso_type=gso, gso_size=1400
    )
    verdict, [sent] = call.rig.receive("lan", frame)
    assert verdict == Verdict.ACCEPT
    header, seen = call.to_client(sent, ttl=63)
    assert seen == payload
    assert header.seq == (call.cookie + 1) & MASK
    assert header.options[2:] == stamps_option(((call.clock + 50) & MASK, 7010))


def test_timestamps_at_an_odd_place(call: Call) -> None:
    call.open()
    options = b"\1" + stamps_option((7010, call.clock)) + b"\0"
    [sent] = call.from_client(
        "A", seq=call.isn + 1, ack=call.cookie + 1, window=300, options=options
    )
    header, _ = call.to_dest(sent, ttl=63)
    assert header.options[1:11] == stamps_option((7010, 900_000))


def test_a_dest_without_timestamps(net: Net) -> None:
    call = Call(Rig(proxied(net)), net, accepts=Options(wscale=7))
    call.open()
    [sent] = call.from_client("A", **call.ack_fields())
    assert read_options(call.to_dest(sent, ttl=63)[0].options).stamps == (7005, call.clock)


def test_a_wrong_checksum_stays_wrong(call: Call) -> None:
    call.open()
    frame = bytearray(call.client_frame("PA", b"hello", **call.ack_fields()))
    frame[-1] ^= 1
    verdict, [sent] = call.rig.receive("wan", bytes(frame))
    assert verdict == Verdict.ACCEPT
    with pytest.raises(AssertionError, match="checksum"):
        call.to_dest(sent, ttl=63)


# -- what is held


def test_a_first_flight_waits_for_the_dest(call: Call) -> None:
    call.first()
    call.second(b"GET ")
    assert call.from_client("PA", b"/", **call.ack_fields(4)) == []
    assert call.verdict == Verdict.STOLEN
    assert call.from_client("FA", **call.ack_fields(5)) == []
    assert call.rig.director.ipvs.birth.synproxy.held.count == 3
    sent = call.answer()
    seen = [call.to_dest(each, ttl=63) for each in sent]
    assert [(header.flags, payload) for header, payload in seen] == [
        ("A", b""),
        ("PA", b"GET "),
        ("PA", b"/"),
        ("FA", b""),
    ]
    assert [header.seq for header, _ in seen] == [(call.isn + 1 + n) & MASK for n in (0, 0, 4, 5)]
    assert {header.ack for header, _ in seen} == {call.dest_isn + 1}
    assert {read_options(header.options).stamps for header, _ in seen} == {(7005, 900_000)}
    assert call.rig.director.ipvs.birth.synproxy.held.count == 0
    counted = call.rig.counters()
    assert counted["SYNPROXY_HELD"] == 3
    assert counted["IPVS_IN_PACKETS"] == 4


def test_no_more_is_held_than_a_first_flight(call: Call) -> None:
    call.first()
    call.second(b"x")
    for n in range(1, HELD_PER_CONN + 3):
        call.from_client("PA", b"x", **call.ack_fields(n))
    assert len(call.answer()) == HELD_PER_CONN + 1
    assert call.rig.counters()["drop.SYNPROXY_HELD_FULL"] == 3


def test_acks_and_strangers_while_waiting(call: Call) -> None:
    call.first()
    call.second()
    before = call.rig.counters()
    assert call.from_client("A", **call.ack_fields()) == []  # again: nothing to say to the dest
    assert call.verdict == Verdict.STOLEN
    assert call.rig.counters() == before
    strangers: list[tuple[str, dict[str, Any]]] = [
        ("A", {"ack": call.cookie + 2}),
        ("A", {"seq": call.isn + 80_000}),
        ("S", {}),
        ("R", {"seq": call.isn + 2}),
    ]
    for flags, fields in strangers:
        frame = call.client_frame(flags, **(call.ack_fields() | fields))
        dropped(call.rig, "wan", frame, "SYNPROXY_WAITING")
        assert states(call.rig) == ["SYN_SENT"]
    dest = the_dest(call.rig)
    assert (dest.actconns, dest.inactconns, dest.half_open) == (0, 1, 1)
    call.third()


# -- a dest that does not answer as it should


def test_a_dest_is_asked_again_and_then_the_client_told(call: Call) -> None:
    call.first()
    call.second(b"hello")
    for _ in range(3):
        [sent] = call.rig.advance(1250)
        header, _ = call.to_dest(sent)
        assert (header.flags, header.seq) == ("S", call.isn)
    [sent] = call.rig.advance(1250)
    header, _ = call.to_client(sent)
    assert header.flags == "RA"
    assert (header.seq, header.ack) == ((call.cookie + 1) & MASK, (call.isn + 1) & MASK)
    assert states(call.rig) == []
    assert call.rig.director.ipvs.birth.synproxy.held.count == 0
    assert the_dest(call.rig).half_open == 0
    assert call.rig.counters() == {
        "SYNPROXY_SYNACKS": 1,
        "SYNPROXY_CONNS": 1,
        "SYNPROXY_HELD": 1,
        "SYNPROXY_RETRIES": 3,
        "SYNPROXY_REFUSED": 1,
        "CONN_NEW": 1,
    }


def test_a_dest_that_is_removed_is_not_asked_for_long(net: Net) -> None:
    rig = Rig(proxied(net, drain_s=0))
    call = Call(rig, net)
    call.first()
    call.second()
    rig.reload(text(*network(net), service(net, synproxy=True, drain_s=0)))
    [sent] = rig.advance(1250)
    assert call.to_client(sent)[0].flags == "RA"
    assert states(rig) == []


def test_a_dest_that_refuses(call: Call) -> None:
    call.first()
    call.second()
    [sent] = call.from_dest("RA", seq=0, ack=call.isn + 1)
    assert call.verdict == Verdict.STOLEN
    header, _ = call.to_client(sent)
    assert (header.flags, header.seq) == ("RA", (call.cookie + 1) & MASK)
    assert states(call.rig) == []


def test_a_dest_that_remembers_another_conn_forgets_it(call: Call) -> None:
    call.first()
    call.second()
    [sent] = call.from_dest("A", seq=77, ack=4242)
    assert call.verdict == Verdict.DROP
    header, _ = call.to_dest(sent)
    assert (header.flags, header.seq) == ("R", 4242)
    [sent] = call.rig.advance(1250)
    assert call.to_dest(sent)[0].flags == "S"
    call.third()


def test_a_blind_rst_of_the_dests_side(call: Call) -> None:
    call.first()
    call.second()
    dropped(call.rig, "lan", call.dest_frame("RA", seq=0, ack=call.isn + 2), "SYNPROXY_WAITING")
    dropped(call.rig, "lan", call.dest_frame("R", seq=1), "SYNPROXY_WAITING")
    call.third()


def test_a_client_that_gives_up(call: Call) -> None:
    call.first()
    call.second(b"hello")
    [sent] = call.from_client("R", seq=call.isn + 1)
    header, _ = call.to_dest(sent)
    assert (header.flags, header.seq) == ("R", (call.isn + 1) & MASK)
    assert states(call.rig) == []
    assert call.rig.director.ipvs.birth.synproxy.held.count == 0
    assert call.rig.counters()["SYNPROXY_ABORTED"] == 1


def test_a_synack_again_is_the_clients_to_answer(call: Call) -> None:
    call.open()
    options = Options(wscale=7, sack=True, stamps=(900_500, 7005)).packed()
    [sent] = call.from_dest(
        "SA", seq=call.dest_isn, ack=call.isn + 1, window=64000, options=options
    )
    header, _ = call.to_client(sent, ttl=63)
    assert (header.flags, header.seq, header.window) == ("SA", call.cookie, 64000)
    assert read_options(header.options).stamps == ((call.clock + 500) & MASK, 7005)
    assert states(call.rig) == ["ESTABLISHED"]


# -- the conn's later life


def test_a_closed_conn_is_reopened_by_a_cookie(call: Call) -> None:
    call.open()
    call.from_client("RA", **call.ack_fields())
    assert states(call.rig) == ["CLOSE"]
    call.isn += 5_000_000
    call.dest_isn += 999
    call.lport = 0 if call.mode == "fnat" else call.lport
    call.open()
    assert states(call.rig) == ["ESTABLISHED"]
    assert call.rig.counters()["CONN_REUSED"] == 1


def test_it_expires_like_any_other(call: Call) -> None:
    call.open()
    assert call.rig.advance(899_000, step=1000) == []
    assert states(call.rig) == ["ESTABLISHED"]
    call.rig.advance(2000)
    assert states(call.rig) == []
    assert call.rig.counters()["CONN_EXPIRED"] == 1


def test_a_reload_leaves_it(net: Net, mode: str) -> None:
    call = Call(Rig(proxied(net, mode)), net, mode)
    call.first()
    call.rig.reload(balanced(net, mode=mode))
    call.second()  # cookies that are out stay good
    call.rig.reload(proxied(net, mode, synproxy_wscale=4))
    call.third()
    [sent] = call.from_client("PA", b"hello", **call.ack_fields())
    assert call.to_dest(sent, ttl=63)[0].ack == call.dest_isn + 1


def test_what_a_reload_retires(net: Net) -> None:
    rig = Rig(proxied(net))
    rig.now = 40 * PERIOD_MS
    call = Call(rig, net)
    call.first()
    rig.reload(balanced(net))
    other = Call(rig, net, cport=40001)
    [sent] = other.from_client("S", seq=1)
    assert other.to_dest(sent, ttl=63)[0].flags == "S"
    rig.now += 2 * PERIOD_MS
    dropped(rig, "wan", call.client_frame("A", **call.ack_fields()), "TCP_NOT_SYN")


@pytest.mark.parametrize("waiting", [True, False])
def test_a_successor_goes_on(net: Net, mode: str, waiting: bool) -> None:
    memory = Memory()
    call = Call(Rig(proxied(net, mode), memory=memory), net, mode)
    call.first()
    call.second()
    if not waiting:
        call.third()
    now = call.rig.now
    call.rig = Rig(proxied(net, mode), memory=memory.copy(), now=now)
    assert call.rig.director.adopt(call.rig.now) == (1, 0)
    assert the_dest(call.rig).half_open == waiting
    if waiting:
        [sent] = call.rig.advance(1250)
        assert call.to_dest(sent)[0].flags == "S"
        call.third()
    [sent] = call.from_client("PA", b"hello", **call.ack_fields())
    header, payload = call.to_dest(sent, ttl=63)
    assert (header.ack, payload) == (call.dest_isn + 1, b"hello")
    assert read_options(header.options).stamps == (7005, 900_000)


def test_a_successor_takes_the_cookies_of_its_predecessor(net: Net) -> None:
    call = Call(Rig(proxied(net)), net)
    call.first()
    call.rig = Rig(proxied(net), now=call.rig.now)
    call.second()


# -- above a threshold


def test_only_while_too_many_are_half_open(net: Net) -> None:
    rig = Rig(proxied(net, synproxy_above=4))

    def syn(cport: int) -> str:
        call = Call(rig, net, cport=cport)
        [sent] = call.from_client("S", seq=1)
        return sent.port

    assert [syn(40000 + n) for n in range(5)] == ["lan"] * 5
    assert [syn(41000 + n) for n in range(3)] == ["wan"] * 3
    assert rig.counters()["SYNPROXY_ON"] == 1
    assert conns(rig) == 5
    # A conn by its cookie, which is half-open itself until its dest has answered.
    call = Call(rig, net, cport=42000).open()
    rig.advance(61_000, step=1000)  # those five expire
    assert states(rig) == ["ESTABLISHED"]
    assert syn(40000) == "lan"
    # Off, and cookies that are out are still good.
    assert rig.counters()["SYNPROXY_ON"] == 1
    [sent] = call.from_client("A", **call.ack_fields())
    assert sent.port == "lan"


def test_half_as_many_end_it(net: Net) -> None:
    rig = Rig(proxied(net, synproxy_above=4))
    service = next(rig.director.services())
    waiting = [Call(rig, net, cport=40000 + n) for n in range(5)]
    for call in waiting:
        [sent] = call.from_client("S", seq=call.isn)
        call.to_dest(sent, ttl=63)
    assert service.half_open.count == 5
    ports: list[str] = []
    for call in waiting:
        probe = Call(rig, net, cport=43000 + len(ports))
        [sent] = probe.from_client("S", seq=1)
        ports.append(sent.port)
        call.from_dest("RA", seq=0, ack=call.isn + 1)
    # 5, 4, 3: on; from 2 on off, whereupon the probes are half-open themselves.
    assert ports == ["wan", "wan", "wan", "lan", "lan"]


def test_a_reload_keeps_what_it_counts(net: Net) -> None:
    rig = Rig(proxied(net, synproxy_above=4))
    waiting = [Call(rig, net, cport=40000 + n) for n in range(5)]
    for call in waiting:
        call.from_client("S", seq=call.isn)
    assert Call(rig, net, cport=41000).from_client("S", seq=1)[0].port == "wan"
    rig.reload(proxied(net, synproxy_above=4, drain_s=10))
    service = next(rig.director.services())
    assert service.half_open.count == 5
    rig.director.ipvs.life.end(0)
    rig.director.ipvs.life.end(1)
    assert service.half_open.count == 3  # more than half: still on
    assert Call(rig, net, cport=41001).from_client("S", seq=1)[0].port == "wan"


# -- together with the client's address


@pytest.mark.parametrize("how", ["toa", "proxy-v1", "proxy-v2"])
def test_the_dest_is_told_whose_handshake_it_was(call: Call, how: str) -> None:
    net, mode = call.net, call.mode
    call.rig = Rig(proxied(net, mode, client_ip=how))
    header = call.first()
    if how == "toa":
        assert header.mss == 1460 - 8 if net.af == 4 else 1440 - 20
    call.second(b"hello")
    sent = [call.to_dest(each, ttl=63) for each in call.answer()]
    [(ack, told), (data, payload)] = sent
    assert ack.ack == data.ack == call.dest_isn + 1
    assert payload == b"hello"
    if how == "toa":
        kind = 254
        assert (ack.options[0], data.options[0], told) == (kind, kind, b"")
        step = 0
    else:
        assert told.startswith(b"PROXY TCP" if how == "proxy-v1" else b"\r\n\r\n\0\r\nQUIT\n")
        step = len(told)
    assert (ack.seq, data.seq) == ((call.isn + 1) & MASK, (call.isn + 1 + step) & MASK)
    [back] = call.from_dest("A", seq=call.dest_isn + 1, ack=call.isn + 6 + step)
    header, _ = call.to_client(back, ttl=63)
    assert (header.seq, header.ack) == ((call.cookie + 1) & MASK, (call.isn + 6) & MASK)
