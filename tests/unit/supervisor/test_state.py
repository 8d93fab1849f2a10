"""What a successor gets: it comes back as it was, or is refused with what was found."""

from __future__ import annotations

import socket

import msgspec
import pytest

import tunlb
from tunlb.boot import BOOT, Applied, Boot, encode
from tunlb.conf import Config, loads
from tunlb.destids import DestIds
from tunlb.lab import TOPOLOGIES
from tunlb.links import Change
from tunlb.supervisor.state import (
    FORMAT,
    HISTORY_MAX,
    State,
    StateError,
    pruned,
    read_state,
    write_state,
)

TEXT = TOPOLOGIES["one-arm"].config_text
EVERYTHING = """\
{"kind":"tunlb","workers":2,"metrics":"[::1]:9090","seed":"0123456789abcdef","user":"65534"}
{"kind":"port","name":"lb0","mac":"02:00:00:00:00:01","addresses":["10.0.0.254/24","fd00::fe/64"],\
"host_addresses":["10.0.0.1/24"],"vlans":[{"id":7,"addresses":["10.7.0.1/24"]}]}
{"kind":"route","dst":"0.0.0.0/0","via":"10.0.0.9","port":"lb0","mtu":1400}
{"kind":"neigh","port":"lb0","addr":"10.0.0.9","mac":"02:00:00:00:00:09"}
{"kind":"timeouts","profile":"dpvs","tcp_established_s":77.5}
{"kind":"service","name":"a","proto":"tcp","vaddr":"10.0.0.100","vport":"8000-8099",\
"laddrs":["10.0.0.200","10.0.0.201-10.0.0.209"],"scheduler":"mh","mh_table_size":251}
{"kind":"service","name":"b","proto":"udp","vaddr":"fd00::100","vport":0,"fwdmode":"nat"}
{"kind":"service","name":"c","proto":"icmp","fwdmode":"snat","laddrs":["10.0.0.220"],\
"match":{"src":["10.9.0.0/16","10.8.0.1"],"dst":["0.0.0.0/0"],"iport":"lb0","oport":"lb0.7"}}
{"kind":"service","name":"d","proto":"tcp","fwdmode":"dr","bypass":true,\
"match":{"src":["fd09::/16"],"sport":"1-5","dport":80}}
{"kind":"dest","service":"a","daddr":"10.0.0.11","dport":80,"weight":0}
{"kind":"dest","service":"b","daddr":"fd00::11"}
{"kind":"hook","point":"forward","call":"a.b:C"}
"""


def applied(config: Config, at_ms: int = 5) -> Applied:
    return Applied(at_ms=at_ms, config=config, ids=tuple(DestIds().assign(config).items()))


def state_of(*texts: str) -> State:
    route = Change("what", "ip route del x", "route", "del", {"family": socket.AF_INET6, "x": "y"})
    add = route._replace(verb="add", undo=(route,), needed=False)
    config = loads(texts[0])
    vaddr = config.services[0].vaddr
    assert vaddr is not None
    return State(
        workers=2,
        secret=bytes(range(32)),
        seed=2**64 - 1,
        history=tuple(applied(loads(text), n) for n, text in enumerate(texts)),
        macs={"lb0": 2**48 - 1},
        offloads={"lb0": ("csum", "tso4")},
        numbers=tuple(DestIds().assign(config).items()),
        undo=(add, route),
        draining=((7, (vaddr,)),),
        pids={0: 4711, 1: 4712},
    )


@pytest.mark.parametrize("text", [TEXT, TOPOLOGIES["tun"].config_text, EVERYTHING])
def test_a_state_comes_back_as_it_was(text: str) -> None:
    state = state_of(text, TEXT)
    again = read_state(write_state(state))
    assert again == state
    assert again.config == loads(TEXT)
    assert again.history[0].config.services == loads(text).services


def test_a_boot_comes_back_as_it_was() -> None:
    boot = Boot(
        worker=1,
        workers=2,
        secret=b"secret",
        seed=2**64 - 1,
        macs={"lb0": 1},
        history=(applied(loads(EVERYTHING)),),
        generations=(0,),
        quiescent=False,
        environ={"TUNLB_LOG_LEVEL": "debug"},
    )
    again = BOOT.decode(encode(boot))
    assert again == boot
    assert again.history[0].numbers() == DestIds().assign(loads(EVERYTHING))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1, "version": "9.9"}, f"written by tunlb 9.9 in format {FORMAT + 1}"),
        ({"format": 1, "version": "0.0.9"}, "written by tunlb 0.0.9 in format 1, and tunlb"),
        ({"workers": "two"}, "Expected `int`, got `str` - at `$.workers`"),
        ({"history": []}, "Expected"),
        ({"format": None}, "not a tunlb's state"),
    ],
    ids=["another format", "the former format", "a value", "no configuration", "no format"],
)
def test_another_state_is_refused(change: dict[str, object], message: str) -> None:
    raw = msgspec.json.decode(write_state(state_of(TEXT)))
    with pytest.raises(StateError) as caught:
        read_state(msgspec.json.encode({**raw, **change}))
    assert message in str(caught.value)


def test_a_state_of_a_later_version_with_more_keys_is_read() -> None:
    raw = msgspec.json.decode(write_state(state_of(TEXT)))
    assert read_state(msgspec.json.encode({**raw, "later": 1})).version == tunlb.__version__


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"null"])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(StateError, match="not a tunlb's state"):
        read_state(data)


def drains(seconds: float, at_ms: int) -> Applied:
    text = TEXT.replace('"proto"', f'"drain_s":{seconds},"proto"')
    return applied(loads(text), at_ms)


@pytest.mark.parametrize(
    ("drains_s", "now_ms", "left"),
    [
        ([10], 99_999, 1),
        ([10, 10], 10_999, 2),
        ([10, 10], 11_000, 1),
        ([99, 1, 1], 3_000, 3),
        ([1, 1, 99], 3_000, 2),
        ([0, 0, 0], 2_000, 1),
    ],
    ids=["the running one stays", "drains", "has drained", "the oldest", "the new", "at once"],
)
def test_history_is_kept_while_something_drains(
    drains_s: list[float], now_ms: int, left: int
) -> None:
    history = [drains(seconds, 1000 * n) for n, seconds in enumerate(drains_s)]
    assert pruned(history, now_ms) == tuple(history[-left:])


def test_history_is_bounded() -> None:
    state = state_of(TEXT)
    for n in range(2 * HISTORY_MAX):
        state.applied(drains(86400, n))
    assert len(state.history) == HISTORY_MAX
    assert state.serial == 2 * HISTORY_MAX
