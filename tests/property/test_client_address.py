"""`client_ip` takes whatever clients and dests send: nothing raises, and what leaves is whole."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.kit import V4, V6, Net
from tests.flow.talk import talk, toa
from tunlb.testing.frames import GSO_TCPV4, GSO_TCPV6
from tunlb.testing.parser import Tcp, parse

near = st.one_of(st.integers(-70, 200), st.integers(0, 0xFFFFFFFF))
options = st.one_of(
    st.binary(max_size=40),
    st.lists(
        st.sampled_from(
            [
                b"\1",
                b"\5\x0a" + bytes(8),
                b"\xfe\x08" + bytes(6),
                b"\x08\x0a" + bytes(8),
                b"\2\4\5\xb4",
            ]
        ),
        max_size=6,
    ).map(lambda parts: b"".join(parts)[:40]),
)
segment = st.fixed_dictionaries(
    {
        "up": st.booleans(),
        "flags": st.sets(st.sampled_from("FSRPAUEC")).map(lambda found: "".join(sorted(found))),
        "payload": st.binary(max_size=80),
        "seq": near,
        "ack": near,
        "options": options,
        "partial": st.booleans(),
        "gso": st.sampled_from([0, 1, 7, 1000]),
        "ms": st.sampled_from([0, 0, 250]),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    net=st.sampled_from([V4, V6]),
    how=st.sampled_from(["toa", "proxy-v1", "proxy-v2"]),
    opened=st.booleans(),
    segments=st.lists(segment, max_size=12),
)
def test_any_segments(net: Net, how: str, opened: bool, segments: list[dict[str, Any]]) -> None:
    t = talk(net, how)
    t.up("S")
    if opened:
        t.down("SA")
    for one in segments:
        fields = {"options": one["options"]}
        kind = GSO_TCPV4 if net.af == 4 else GSO_TCPV6
        offload: dict[str, Any] = {"needs_csum": one["partial"]}
        if one["gso"] and one["partial"]:
            offload |= {"gso_type": kind, "gso_size": one["gso"]}
        t.rig.now += one["ms"]
        if one["up"]:
            frame = t.frame(one["flags"], one["payload"], one["seq"], one["ack"], offload, fields)
            _, sent = t.rig.receive("wan", frame)
        else:
            frame = t.answer(one["flags"], one["payload"], one["seq"], one["ack"], fields)
            _, sent = t.rig.receive("lan", frame)
        for each in sent:
            assert not [p for p in parse(each.frame).problems if "option" not in p], each


@settings(max_examples=100, deadline=None)
@given(net=st.sampled_from([V4, V6]), segments=st.lists(segment, max_size=12))
def test_nobody_lies_to_a_dest_that_has_not_opened(
    net: Net, segments: list[dict[str, Any]]
) -> None:
    """Whatever a client sends until its dest has data: the only option 254 is ours. Meanwhile the
    dest says what a kernel may say before it opens a connection.
    """
    t = talk(net, "toa")
    t.up("S")
    t.down("SA")
    again = False
    for number in segments:
        if not number["up"]:
            t.rig.receive("lan", t.answer("A" if number["partial"] else "SA"))
            continue
        flags = number["flags"].replace("R", "")
        fields = {"options": number["options"]}
        frame = t.frame(flags, number["payload"], number["seq"], number["ack"], None, fields)
        for sent in t.rig.receive("wan", frame)[1]:
            found = parse(sent.frame).find(Tcp)
            assert sent.port == "lan"
            assert isinstance(found, Tcp)
            assert set(told(found.options)) <= {toa(net)}
            # Another SYN may have begun another conn, which has not been answered.
            again = again or "S" in found.flags
            assert again or "A" not in found.flags or told(found.options)


def told(options: bytes) -> list[bytes]:
    """Every option 254."""
    found = []
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if size < 2 or at + size > len(options):
            break
        if options[at] == 254:
            found.append(options[at : at + size])
        at += size
    return found
