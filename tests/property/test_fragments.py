"""Fragments that nobody planned, with lists and classes on: nothing raises, nothing is kept."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.fragmenting import framed
from tests.flow.kit import ROUTER_MAC, V4, V6, WAN_MAC, Line, Rig, balanced, text
from tunlb.hook import Verdict
from tunlb.testing.frames import ip as packet

LINES: list[Line] = [
    {"kind": "acl", "action": "deny", "src": "203.0.113.0/24"},
    {"kind": "tc", "port": "lan", "rate": "100mbit", "burst": 1},
]

pieces = st.tuples(
    st.booleans(),  # v6
    st.sampled_from((6, 17, 1, 58, 132, 60, 51)),
    st.integers(0, 12).map(lambda n: 8 * n) | st.sampled_from((65512, 65528)),
    st.integers(0, 40),
    st.booleans(),  # more
    st.integers(0, 2),  # whose
    st.binary(max_size=24),
)


@given(st.lists(pieces, max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_fragments(found: list[tuple[bool, int, int, int, bool, int, bytes]]) -> None:
    rigs = {net.af: Rig(balanced(net, "udp", "nat") + "\n" + text(*LINES)) for net in (V4, V6)}
    for v6, proto, at, size, more, ident, start in found:
        net = V6 if v6 else V4
        body = (start + b"\x9c\x40\x00\x50" * 10)[:size]
        if v6:
            head = (at | more).to_bytes(2, "big") + ident.to_bytes(4, "big")
            extension = ((44, b"\0" + head),)
            whole = packet(net.remote, net.vip, body, proto=proto, extensions=extension)
        else:
            fields = {"mf": more, "fragment": at, "ident": ident, "df": False}
            whole = packet(net.remote, net.vip, body, proto=proto, **fields)
        rig = rigs[net.af]
        verdict, sent = rig.receive("wan", framed(whole, WAN_MAC, ROUTER_MAC))
        assert verdict in (Verdict.ACCEPT, Verdict.DROP, Verdict.STOLEN)
        for one in sent:
            assert one.port in ("lan", "wan")
    for rig in rigs.values():
        rig.advance(3000)
        assert rig.director.protection.fragments.held == 0
        counted = rig.counters()
        assert "drop.UNKNOWN" not in counted
        assert "HOOK_ERRORS" not in counted
