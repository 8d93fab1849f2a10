"""A chain: its order, its verdicts, and hooks that misbehave."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tunlb.counters import Counters, DropReason, Event
from tunlb.hook import Hook, Point, Verdict
from tunlb.packet import Packet
from tunlb.pipeline.hooks import REPEAT_MAX, Chain


class Note(Hook):
    """Notes that it ran and gives its verdicts in turn, the last one for ever."""

    def __init__(self, name: str, trace: list[str], *verdicts: object, priority: int = 50) -> None:
        self.name = name
        self.trace = trace
        self.verdicts = list(verdicts) or [Verdict.ACCEPT]
        self.priority = priority

    def run(self, pkt: Packet, now: int) -> int:
        self.trace.append(self.name)
        verdict = self.verdicts[0] if len(self.verdicts) == 1 else self.verdicts.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict  # type: ignore[return-value]


Run = Callable[..., tuple[int, int, list[str]]]


@pytest.fixture
def errors() -> list[tuple[object, Exception]]:
    return []


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def chain(counters: Counters, errors: list[tuple[object, Exception]]) -> Chain:
    return Chain(counters, lambda hook, error: errors.append((hook, error)))


@pytest.mark.parametrize(
    ("priorities", "order"),
    [((50, 10, 99), "bac"), ((50, 50, 50), "abc"), ((99, 50, 99), "bac"), ((0, -5, 0), "bac")],
    ids=["lower first", "stable on ties", "ties behind", "negative"],
)
def test_order(chain: Chain, priorities: tuple[int, ...], order: str) -> None:
    trace: list[str] = []
    for name, priority in zip("abc", priorities, strict=True):
        chain.register(Note(name, trace, priority=priority))
    assert chain.run(Packet(), 0) == Verdict.ACCEPT
    assert "".join(trace) == order


def test_an_empty_chain_accepts(chain: Chain) -> None:
    assert chain.run(Packet(), 0) == Verdict.ACCEPT


V = Verdict


@pytest.mark.parametrize(
    ("verdicts", "expected", "ran"),
    [
        ((V.ACCEPT,), V.ACCEPT, "ab"),
        ((V.DROP,), V.DROP, "a"),
        ((V.STOLEN,), V.STOLEN, "a"),
        ((V.STOP,), V.ACCEPT, "a"),
        ((V.REPEAT, V.ACCEPT), V.ACCEPT, "aab"),
        ((V.REPEAT, V.REPEAT, V.DROP), V.DROP, "aaa"),
        ((V.REPEAT, V.STOP), V.ACCEPT, "aa"),
    ],
    ids=["accept", "drop", "stolen", "stop", "repeat", "repeat drop", "repeat stop"],
)
def test_verdicts(chain: Chain, verdicts: tuple[Verdict, ...], expected: Verdict, ran: str) -> None:
    trace: list[str] = []
    chain.register(Note("a", trace, *verdicts))
    chain.register(Note("b", trace))
    assert chain.run(Packet(), 0) == expected
    assert "".join(trace) == ran


def test_repeat_is_bounded_for_each_hook(chain: Chain) -> None:
    trace: list[str] = []
    chain.register(Note("a", trace, *[V.REPEAT] * REPEAT_MAX, V.ACCEPT))
    chain.register(Note("b", trace, V.REPEAT))
    pkt = Packet()
    assert chain.run(pkt, 0) == V.DROP
    assert pkt.reason == DropReason.HOOK_REPEAT
    assert (trace.count("a"), trace.count("b")) == (REPEAT_MAX + 1, REPEAT_MAX + 1)


@pytest.mark.parametrize("verdict", [RuntimeError("boom"), 7, -2, None, "DROP"], ids=repr)
def test_a_hook_that_misbehaves_drops_and_is_reported(
    chain: Chain, counters: Counters, errors: list[tuple[object, Exception]], verdict: object
) -> None:
    trace: list[str] = []
    bad = Note("a", trace, verdict)
    chain.register(bad)
    chain.register(Note("b", trace))
    pkt = Packet()
    assert chain.run(pkt, 0) == V.DROP
    assert pkt.reason == DropReason.HOOK_ERROR
    assert trace == ["a"]
    assert [hook for hook, _ in errors] == [bad]
    assert counters.snapshot() == {Event.HOOK_ERRORS.name: 1}


def test_the_hook_to_blame_is_the_one_that_raised(
    chain: Chain, errors: list[tuple[object, Exception]]
) -> None:
    trace: list[str] = []
    error = KeyError("b")
    hooks = [Note("a", trace), Note("b", trace, V.REPEAT, error), Note("c", trace)]
    for hook in hooks:
        chain.register(hook)
    assert chain.run(Packet(), 0) == V.DROP
    assert errors == [(hooks[1], error)]


def test_an_error_handler_may_raise_on(counters: Counters) -> None:
    def raise_on(hook: object, error: Exception) -> None:
        raise error

    chain = Chain(counters, raise_on)
    chain.register(Note("a", [], ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        chain.run(Packet(), 0)


def test_a_removed_hook_runs_no_more(chain: Chain) -> None:
    trace: list[str] = []
    one, two = Note("one", trace), Note("two", trace)
    chain.register(one)
    chain.register(two)
    chain.remove(one)
    assert chain.run(Packet(), 0) == Verdict.ACCEPT
    chain.remove(two)
    assert (chain.run(Packet(), 0), trace) == (Verdict.ACCEPT, ["two"])
    with pytest.raises(ValueError, match="not in list"):
        chain.remove(two)


def test_numbers_are_those_of_dpvs() -> None:
    assert [(v.name, v.value) for v in Verdict] == [
        *(("DROP", 0), ("ACCEPT", 1), ("STOLEN", 2), ("REPEAT", 3), ("STOP", 4)),
    ]
    assert [point.name for point in sorted(Point)] == [
        *("PRE_ROUTING", "LOCAL_IN", "FORWARD", "LOCAL_OUT", "POST_ROUTING"),
    ]
    assert [point.value for point in Point] == [0, 1, 2, 3, 4]


def test_what_is_behind_a_hook(chain: Chain) -> None:
    """Asked for with each segment: it follows every change of the chain."""
    trace: list[str] = []
    a, b, c = (Note(name, trace, priority=at) for at, name in enumerate("abc"))

    def behind(hook: Hook) -> str:
        trace.clear()
        rest = chain.behind(hook)
        assert chain.behind(hook) is rest
        assert rest is None or rest.run(Packet(), 0) == Verdict.ACCEPT
        return "".join(trace)

    for hook in (a, c):
        chain.register(hook)
    assert (behind(a), behind(c)) == ("c", "")
    chain.register(b)
    assert (behind(c), behind(a), behind(b)) == ("", "bc", "c")
    chain.remove(c)
    assert (behind(b), behind(a)) == ("", "b")
    assert chain.behind(c) is None
