"""Whatever is read: what goes into a tunnel comes out of it as it was, and nothing raises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.tunnels import unwrapped
from tests.property.corpus import EDITS, KINDS, Feed, Step
from tunlb.testing import frames as f
from tunlb.testing import parser
from tunlb.testing.audit import audit
from tunlb.testing.flow import Sent

numbers = st.integers(0, 65535)
edits = st.lists(st.tuples(st.sampled_from(EDITS), numbers, numbers), max_size=4)
pauses = st.sampled_from((0, 0, 0, 0, 30, 1000, 700_000))
steps = st.lists(st.tuples(st.integers(0, 120), edits, pauses), min_size=1, max_size=12)
NEAR = {"10.0.0.254", "fd00::fe"}
MANY = settings(max_examples=4 * settings().max_examples, deadline=None)


def inner_of(sent: Sent) -> parser.Frame | None:
    """What is inside a wrapped packet; None for any other."""
    head = parser.parse(sent.frame).find(parser.Ip)
    if not isinstance(head, parser.Ip) or head.saddr not in NEAR or head.proto in (1, 58):
        return None
    return parser.parse(unwrapped(sent.frame).inner, vnet=False, tun=True)


def step(feed: Feed, one: Step) -> None:
    _, data, _, sent, _ = feed.read(one)
    came = parser.parse(data)
    inside = [found for each in sent if (found := inner_of(each)) is not None]
    if not inside or came.problems:
        return
    head = came.find(parser.Ip)
    if isinstance(head, parser.Ip) and (head.mf or head.fragment):
        # Behind a first one come those that waited for it.
        own = 0
        while own < len(inside) and len(came.payload) > sum(len(x.payload) for x in inside[:own]):
            own += 1
        inside = inside[:own]
    assert [problem for found in inside for problem in found.problems] == []
    assert b"".join(found.payload for found in inside) == came.payload
    for found in inside:
        before, after = came.find(parser.Ip), found.find(parser.Ip)
        assert isinstance(before, parser.Ip)
        assert isinstance(after, parser.Ip)
        assert after.ttl == before.ttl - 1
        assert (after.saddr, after.daddr, after.tos) == (before.saddr, before.daddr, before.tos)


def test_good_frames() -> None:
    feed = Feed(KINDS["tunnel"])
    for number in range(len(feed.kind.frames)):
        step(feed, (number, [], 0))
    counters = feed.rig.counters()
    assert counters["CONN_NEW"] == 5
    assert counters["SEGMENTS_CUT"] == 2 * (3 + 2 * 3 + 4) + 4
    assert counters["FRAGMENTS_CUT"] == 2 * 2 + 2 + 3 * 2
    assert (counters["FRAGMENT_FIRST"], counters["FRAGMENT_LATER"]) == (4, 3 * 2)
    assert counters["TUNNEL_PMTU"] == 1
    assert counters["ICMP_RELATED"] == 1
    assert counters["MSS_CLAMPED"] == 1
    assert not {"drop.VNET_HEADER", "drop.SEGMENTS", "drop.TUNNEL_SOURCE"} & counters.keys()


@given(begin=st.integers(0, 100), taken=steps)
@MANY
def test_spoilt_frames(begin: int, taken: list[Step]) -> None:
    feed = Feed(KINDS["tunnel"])
    for number in range(begin, begin + 8):
        step(feed, (number, [], 0))
    for one in taken:
        step(feed, one)
    audit(feed.rig.director)


@given(data=st.binary(max_size=120))
@settings(deadline=None)
def test_any_quote(data: bytes) -> None:
    """Behind an ICMP header that says frag needed, to the tunnel's own end."""
    feed = Feed(KINDS["tunnel"])
    for number in range(4):
        step(feed, (number, [], 0))
    packet = f.ipv4("10.0.0.1", "10.0.0.254", f.icmp(3, 4, 1000, data))
    raw = f.vnet(f.eth("02:00:00:00:fe:01", "02:00:00:00:00:01", payload=packet))
    feed.rig.receive("lb0", raw)
