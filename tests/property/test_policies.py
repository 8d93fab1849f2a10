"""Any life under persistence, limits, ends and slow start: the books agree, and all of it ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.kit import V4, Conn, Rig, dest, network, service, text
from tunlb.testing.audit import audit, audit_templates
from tunlb.testing.flow import Memory
from tunlb.testing.frames import vnet

NET = V4
ROWS = 24  # few, so that tables fill
TIMEOUTS = {"tcp_established_s": 5, "tcp_syn_recv_s": 2, "tcp_close_s": 1, "udp_oneway_s": 3}

words = st.sampled_from(("keep", "reset", "reschedule"))
policies = st.fixed_dictionaries(
    {
        "persistence_s": st.sampled_from((0, 1, 60)),
        "max_conn": st.sampled_from((0, 0, 3, 9)),
        "expire_nodest": words,
        "expire_quiescent": words,
        "slow_start_s": st.sampled_from((0, 3)),
        "drain_s": st.sampled_from((0, 2, 300)),
        "scheduler": st.sampled_from(("wrr", "wlc")),
    }
)
weights = st.tuples(*[st.sampled_from((None, 0, 1, 5))] * 2)  # None: not there
limits = st.sampled_from(({}, {"max_conn": 2}, {"max_conn": 4, "min_conn": 1}))
packets = st.tuples(
    st.just("packet"), st.integers(0, 5), st.integers(0, 3), st.sampled_from(("S", "A", "R", "FA"))
)
lives = st.lists(
    packets
    | packets
    | st.tuples(st.just("reload"), policies, weights, limits)
    | st.tuples(st.just("wait"), st.sampled_from((100, 1500, 7000, 70_000)))
    | st.tuples(st.just("kill")),
    max_size=40,
)


def config(mode: str, proto: str, keys: dict[str, Any], there: Any, limit: dict[str, int]) -> str:
    if proto == "tcp" and mode != "dr":
        keys = {**keys, "reset_on_expire": True}
    lines = [
        dest(NET, mode, daddr=daddr, weight=weight, **limit)
        for daddr, weight in zip((NET.dest, NET.dest2), there, strict=True)
        if weight is not None
    ]
    return text(*network(NET), service(NET, proto, mode, timeouts=TIMEOUTS, **keys), *lines)


class Life:
    """A director, what it was told to be, and its memory."""

    def __init__(self, mode: str, proto: str) -> None:
        self.mode, self.proto = mode, proto
        self.history = [(1_000_000, config(mode, proto, {}, (1, 1), {}))]
        self.memory = Memory(ROWS)
        self.rig = Rig(self.history[0][1], memory=self.memory)

    def live(self, step: Any) -> None:
        name, *rest = step
        if name == "packet":
            client, cport, flags = rest
            probe = Conn(
                self.rig, NET, self.proto, self.mode, caddr=f"198.51.100.{client}", cport=9 + cport
            )
            self.rig.receive("wan", vnet(probe.frame(probe.outside, flags, b"", False)))
        elif name == "reload":
            lines = config(self.mode, self.proto, *rest)
            self.history.append((self.rig.now, lines))
            self.rig.reload(lines)
        elif name == "wait":
            self.rig.advance(rest[0], step=max(250, rest[0] // 20))
        else:
            self.kill()

    def kill(self) -> None:
        """A successor replays what its predecessor was told, and takes its memory over."""
        now = self.rig.now
        self.memory = self.memory.copy()
        (start, first), *later = self.history
        fresh = Rig(first, memory=self.memory, now=start - 3000)
        for at, lines in later:
            fresh.now = at
            fresh.reload(lines)
        fresh.now = now
        fresh.director.adopt(now)
        self.rig = fresh


@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@given(taken=lives)
@settings(deadline=None)
def test_the_books_agree_after_any_life(mode: str, proto: str, taken: list[Any]) -> None:
    life = Life(mode, proto)
    for step in taken:
        life.live(step)
        audit_templates(life.rig.director)
    audit(life.rig.director)


@given(mode=st.sampled_from(("fnat", "nat", "dr")), taken=lives)
@settings(deadline=None)
def test_everything_ends_when_nothing_comes(mode: str, taken: list[Any]) -> None:
    life = Life(mode, "tcp")
    for step in taken:
        life.live(step)
    life.rig.advance(900_000, step=10_000)
    director = life.rig.director
    assert director.ipvs.conns.count == director.ipvs.life.templates == 0
    assert len(director.ipvs.life.pools) == 0
    assert not director.busy
