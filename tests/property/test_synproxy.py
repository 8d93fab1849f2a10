"""Whatever two sides say to a SYN proxy, in whatever order: no exception, no frame with a wrong
checksum, no row without a cookie, and books that agree.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.kit import V4, V6, Net, Rig
from tests.flow.synproxy_kit import MASK, Call, Options, proxied, stamps_option
from tunlb.hook import Verdict
from tunlb.ipvs.conn import B_STATE, ROW_SIZE
from tunlb.ipvs.held import HELD_PER_CONN
from tunlb.testing.audit import audit
from tunlb.testing.checkers import check
from tunlb.testing.flow import Sent
from tunlb.testing.parser import Tcp

Said = tuple[bool, str, int, int, bytes, bytes]

CALLS = 3
HALF_OPEN = (0, 2, 3, 10)

numbers = st.integers(0, 0xFFFFFFFF)
near = st.one_of(st.sampled_from((-1, 0, 1, 2, 5, 65536, 0x80000000)), numbers)
flags = st.sampled_from(("S", "SA", "A", "PA", "FA", "R", "RA", "", "SF", "SAR"))
options = st.one_of(st.just(b""), st.binary(max_size=40), st.just(b"\1\1" + stamps_option((9, 9))))
said = st.tuples(st.booleans(), flags, near, near, st.binary(max_size=8), options)
steps = st.one_of(
    st.tuples(st.just("first"), said),
    st.tuples(st.just("ack"), said),
    st.tuples(st.just("answer"), said),
    st.tuples(st.just("say"), said),
    st.tuples(st.just("wait"), said),
    st.tuples(st.just("reload"), said),
)
lives = st.lists(st.tuples(st.integers(0, CALLS - 1), steps), min_size=3, max_size=30)


def step(call: Call, what: str, said: Said) -> list[Sent]:
    inward, flag, seq, ack, payload, more = said
    if what == "first":
        sent = call.from_client("S", seq=call.isn, options=call.offer.packed())
        if call.verdict == Verdict.STOLEN:
            call.hear(sent[0])
        return sent
    if what == "ack":
        return call.from_client("PA" if payload else "A", payload, **call.ack_fields())
    if what == "answer" and call.lport:
        options = Options(
            wscale=seq % 15, stamps=(ack & MASK, seq & MASK) if inward else None
        ).packed()
        return call.from_dest("SA", seq=call.dest_isn, ack=call.isn + 1, options=options)
    fields = {"seq": (call.isn + seq) & MASK, "ack": (call.cookie + ack) & MASK}
    if what == "say" and inward:
        return call.from_client(flag, payload, **fields, options=more)
    if what == "say" and call.lport:
        fields = {"seq": (call.dest_isn + seq) & MASK, "ack": (call.isn + ack) & MASK}
        return call.from_dest(flag, payload, **fields, options=more)
    if what == "wait":
        return call.rig.advance(seq % 3000)
    if what == "reload":
        mode = call.mode
        call.rig.reload(proxied(call.net, mode, synproxy_above=seq % 3, synproxy_wscale=ack % 15))
    return []


@given(net=st.sampled_from((V4, V6)), mode=st.sampled_from(("fnat", "nat")), taken=lives)
@settings(deadline=None, max_examples=60)
def test_any_conversation(net: Net, mode: str, taken: list[tuple[int, tuple[str, Said]]]) -> None:
    rig = Rig(proxied(net, mode), conn_max=16)
    calls = [Call(rig, net, mode, cport=40000 + n, isn=n * 0x7FFFFFF0) for n in range(CALLS)]
    for who, (what, said) in taken:
        call = calls[who]
        for sent in step(call, what, said):
            if what == "say" and said[5]:
                continue  # options that make no sense pass, and the checker does not like them
            header = check(sent.frame).find(Tcp)
            if header is None and what in ("answer", "say"):
                continue  # the dest spoke on an lport that was given back: port unreachable
            assert isinstance(header, Tcp)
            if sent.port == "lan" and not call.lport:
                call.lport = header.sport
        if mode == "nat":
            call.lport = call.cport
    director = rig.director
    conns = director.ipvs.conns
    half = sum(conns.mem[row * ROW_SIZE + B_STATE] in HALF_OPEN for row in conns.rows())
    assert sum(dest.half_open for dest in director.ipvs.dests) == half
    assert [service.half_open.count for service in director.services()] == [half]
    assert director.ipvs.birth.synproxy.held.count <= HELD_PER_CONN * conns.count
    audit(director)  # ends all conns
    assert director.ipvs.birth.synproxy.held.count == 0
    assert [service.half_open.count for service in director.services()] == [0]
