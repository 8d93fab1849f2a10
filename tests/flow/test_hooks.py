"""A user's hooks in plain Python: each point, each verdict, order, mistakes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.flow.kit import ROUTER_MAC, WAN_MAC, Net, Rig, balanced, one, the_dest
from tunlb.counters import DropReason
from tunlb.hook import Hook, Point, Verdict
from tunlb.packet import Packet
from tunlb.pipeline.hooks import REPEAT_MAX
from tunlb.testing.frames import echo, eth, tcp, udp, vnet
from tunlb.testing.frames import ip as packet

Body = Callable[[Packet, int], object]


class Calling(Hook):
    """Calls a function of the test and counts."""

    def __init__(self, point: Point, body: Body, priority: int = 50) -> None:
        self.point = point
        self.priority = priority
        self.body = body
        self.calls = 0

    def run(self, pkt, now):
        self.calls += 1
        return self.body(pkt, now)


def framed(body: bytes) -> bytes:
    return vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))


def syn(net: Net) -> bytes:
    return framed(packet(net.remote, net.vip, tcp(40000, 80, flags="S")))


def ping(net: Net) -> bytes:
    return framed(packet(net.remote, net.vip, echo(1, 1, v6=net.af == 6)))


def routed(net: Net) -> bytes:
    return framed(packet(net.remote, net.dest, udp(1, 2)))


# Which packet passes which point, beside PRE_ROUTING.
PASSES = {
    Point.PRE_ROUTING: syn,
    Point.LOCAL_IN: ping,
    Point.FORWARD: routed,
    Point.LOCAL_OUT: ping,
    Point.POST_ROUTING: syn,
}
each_point = pytest.mark.parametrize("point", PASSES, ids=lambda point: point.name.lower())


@each_point
def test_accept(net: Net, point: Point) -> None:
    hook = Calling(point, lambda pkt, now: Verdict.ACCEPT)
    rig = Rig(balanced(net), hooks=[hook])
    hook.calls = 0
    one(rig.receive("wan", PASSES[point](net)))
    assert hook.calls == 1


@pytest.mark.parametrize(
    "reason", [DropReason.UNKNOWN, DropReason.NOT_FORWARDED], ids=lambda r: r.name
)
@each_point
def test_drop(net: Net, point: Point, reason: DropReason) -> None:
    def body(pkt: Packet, now: int) -> int:
        return pkt.drop(reason) if reason else Verdict.DROP

    rig = Rig(balanced(net), hooks=[Calling(point, body)])
    assert rig.receive("wan", PASSES[point](net)) == (Verdict.DROP, [])
    drops = {key: n for key, n in rig.counters().items() if key.startswith("drop.")}
    assert drops == {f"drop.{reason.name}": 1}


@each_point
def test_stolen(net: Net, point: Point) -> None:
    rig = Rig(balanced(net), hooks=[Calling(point, lambda pkt, now: Verdict.STOLEN)])
    assert rig.receive("wan", PASSES[point](net)) == (Verdict.STOLEN, [])
    assert not any(key.startswith("drop.") for key in rig.counters())


@each_point
def test_stop_skips_the_rest(net: Net, point: Point) -> None:
    """The okfn is still called: at PRE_ROUTING without IPVS, elsewhere the packet goes on."""
    after = Calling(point, lambda pkt, now: Verdict.DROP, priority=60)
    rig = Rig(balanced(net), hooks=[after, Calling(point, lambda pkt, now: Verdict.STOP)])
    verdict, sent = rig.receive("wan", PASSES[point](net))
    assert after.calls == 0
    assert len(sent) == 1
    if point == Point.PRE_ROUTING:
        assert rig.counters() == {"drop.PORT_UNREACHABLE": 1, "ICMP_ERRORS_SENT": 1}
    else:
        assert verdict == Verdict.ACCEPT


@each_point
@pytest.mark.parametrize("times", [1, REPEAT_MAX, REPEAT_MAX + 1, 10_000])
def test_repeat_is_bounded(net: Net, point: Point, times: int) -> None:
    def body(pkt: Packet, now: int) -> int:
        return Verdict.REPEAT if hook.calls <= times else Verdict.ACCEPT

    hook = Calling(point, body)
    rig = Rig(balanced(net), hooks=[hook])
    hook.calls = 0
    verdict, _ = rig.receive("wan", PASSES[point](net))
    if times <= REPEAT_MAX:
        assert (verdict, hook.calls) == (Verdict.ACCEPT, times + 1)
    else:
        assert (verdict, hook.calls) == (Verdict.DROP, REPEAT_MAX + 1)
        assert rig.counters()["drop.HOOK_REPEAT"] == 1


def test_repeats_are_counted_per_hook(net: Net) -> None:
    def repeating(pkt: Packet, now: int) -> int:
        return Verdict.REPEAT if sum(h.calls for h in hooks) % REPEAT_MAX else Verdict.ACCEPT

    hooks = [Calling(Point.PRE_ROUTING, repeating) for _ in range(3)]
    rig = Rig(balanced(net), hooks=hooks)
    one(rig.receive("wan", syn(net)))
    assert [hook.calls for hook in hooks] == [REPEAT_MAX] * 3


def raising(pkt: Packet, now: int) -> int:
    raise RuntimeError("a mistake of the user's")


MISTAKES: dict[str, tuple[Body, type[Exception]]] = {
    "raises": (raising, RuntimeError),
    "verdict-5": (lambda pkt, now: 5, ValueError),
    "verdict-negative": (lambda pkt, now: -7, ValueError),
    "verdict-minus-1": (lambda pkt, now: -1, ValueError),
}


@pytest.mark.parametrize(("body", "error"), MISTAKES.values(), ids=MISTAKES)
@each_point
def test_a_mistake_drops_the_packet(net: Net, point: Point, body: Body, error) -> None:
    hook = Calling(point, body)
    rig = Rig(balanced(net), hooks=[hook])
    told: list[tuple[object, type[Exception]]] = []
    rig.director.ip.chain(point).on_error = lambda who, what: told.append((who, type(what)))
    assert rig.receive("wan", PASSES[point](net)) == (Verdict.DROP, [])
    assert told == [(hook, error)]
    moved = rig.counters()
    assert (moved["drop.HOOK_ERROR"], moved["HOOK_ERRORS"]) == (1, 1)
    assert not [key for key in moved if key.startswith("drop.") and key != "drop.HOOK_ERROR"]


@pytest.mark.parametrize("verdict", [None, "ACCEPT", 2**40], ids=str)
def test_a_verdict_that_is_no_small_integer(net: Net, verdict: object) -> None:
    hook = Calling(Point.PRE_ROUTING, lambda pkt, now: verdict)
    rig = Rig(balanced(net), hooks=[hook])
    told: list[object] = []
    rig.director.ip.chain(Point.PRE_ROUTING).on_error = lambda who, what: told.append(who)
    assert rig.receive("wan", syn(net)) == (Verdict.DROP, [])
    assert told == [hook]
    assert rig.counters() == {"drop.HOOK_ERROR": 1, "HOOK_ERRORS": 1}


def test_in_tests_a_mistake_is_raised_on(net: Net) -> None:
    rig = Rig(balanced(net), hooks=[Calling(Point.PRE_ROUTING, raising)])
    with pytest.raises(RuntimeError, match="user's"):
        rig.receive("wan", syn(net))


def test_a_scheduler_that_raises(net: Net) -> None:
    """Nothing of the conn stays behind, and the next packet finds everything as it was."""
    from tunlb.ipvs.scheduler import Scheduler

    class Bad(Scheduler):
        def schedule(self, pkt, now):
            raise RuntimeError("a mistake of the user's")

    rig = Rig(balanced(net))
    told: list[object] = []
    rig.director.ip.chain(Point.PRE_ROUTING).on_error = lambda who, what: told.append(what)
    known = next(iter(rig.director.services()))
    good, known.scheduler = known.scheduler, Bad()
    assert rig.receive("wan", syn(net)) == (Verdict.DROP, [])
    assert rig.counters() == {"drop.HOOK_ERROR": 1, "HOOK_ERRORS": 1}
    assert (len(told), rig.director.ipvs.conns.count, the_dest(rig).inactconns) == (1, 0, 0)
    known.scheduler = good
    one(rig.receive("wan", syn(net)))


def test_order_of_priorities(net: Net) -> None:
    """Lower first, in order of registration among equals."""
    seen: list[int] = []

    def noting(number: int) -> Body:
        def body(pkt: Packet, now: int) -> int:
            seen.append(number)
            return Verdict.ACCEPT

        return body

    rows = ((1, 70), (2, 10), (3, 70), (4, 0), (5, 500), (6, 10))
    hooks = [Calling(Point.PRE_ROUTING, noting(n), priority) for n, priority in rows]
    rig = Rig(balanced(net), hooks=hooks)
    seen.clear()
    one(rig.receive("wan", syn(net)))
    assert seen == [4, 2, 6, 1, 3, 5]


def test_before_and_after_ipvs(net: Net) -> None:
    """Priority 99 and 100 are ours: before it the packet is the client's, after it the dest's."""
    seen: list[tuple[int, int, int]] = []

    def noting(pkt: Packet, now: int) -> int:
        seen.append((pkt.dport, pkt.ttl, pkt.neigh != 0))
        return Verdict.ACCEPT

    hooks = [Calling(Point.PRE_ROUTING, noting, priority) for priority in (50, 200)]
    rig = Rig(balanced(net), hooks=hooks)
    one(rig.receive("wan", syn(net)))
    assert seen == [(80, 64, False), (8080, 63, True)]


def test_a_hook_sees_the_time_and_the_mark(net: Net) -> None:
    seen: list[tuple[int, int]] = []

    def marking(pkt: Packet, now: int) -> int:
        pkt.mark = 7
        return Verdict.ACCEPT

    def noting(pkt: Packet, now: int) -> int:
        seen.append((now, pkt.mark))
        return Verdict.ACCEPT

    hooks = [Calling(Point.PRE_ROUTING, marking), Calling(Point.POST_ROUTING, noting)]
    rig = Rig(balanced(net), hooks=hooks)
    seen.clear()
    one(rig.receive("wan", syn(net)))
    assert seen == [(rig.now, 7)]
