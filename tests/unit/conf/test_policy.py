"""Persistence, one-packet scheduling, limits, ends and slow start: what goes together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunlb.boot import decoder, encode
from tunlb.conf import Config, ConfigError, loads

Line = dict[str, Any]

LB0: Line = {"kind": "port", "name": "lb0", "addresses": ["10.0.0.254/24", "fd00::fe/64"]}


def service(proto: str = "tcp", **keys: Any) -> Line:
    base = {"kind": "service", "name": "web", "proto": proto, "vaddr": "10.0.0.100", "vport": 80}
    return {**base, "laddrs": ["10.0.0.200"], **keys}


def dest(**keys: Any) -> Line:
    return {"kind": "dest", "service": "web", "daddr": "10.0.0.11", **keys}


def config(*lines: Line) -> Config:
    return loads("\n".join(map(json.dumps, (LB0, *lines))), "f")


V6: Line = {"vaddr": "fd00::100", "laddrs": ["fd00::200"]}
OPS: Line = {"ops": True, "fwdmode": "dr"}

GOOD = {
    "persistence": [service(persistence_s=300)],
    "a mask": [service(persistence_s=0.5, persistence_mask=32)],
    "a v6 mask": [service(persistence_s=1, persistence_mask=128, **V6)],
    "ops": [service("udp", **OPS), dest(), dest(fwdmode="dr", daddr="10.0.0.12")],
    "limits": [service(max_conn=5), dest(max_conn=4, min_conn=4)],
    "ends": [service(expire_nodest="reset", expire_quiescent="reschedule", fwdmode="dr")],
    "udp ends": [service("udp", expire_nodest="reset")],
    "resets": [service(reset_on_expire=True), dest(fwdmode="nat")],
    "slow start": [service(slow_start_s=30)],
    "a scheduler of one's own starts slowly": [service(slow_start_s=1, scheduler="my.mod:Own")],
}


@pytest.mark.parametrize("lines", GOOD.values(), ids=GOOD)
def test_taken_and_the_same_to_a_worker(lines: list[Line]) -> None:
    found = config(*lines)
    assert decoder(Config).decode(encode(found)) == found


BAD: dict[str, tuple[list[Line], list[str]]] = {
    "a mask of nothing": (
        [service(persistence_mask=24)],
        ["f:2: $.persistence_mask: without persistence_s it means nothing (hint: set"],
    ),
    "a mask that is too long": (
        [service(persistence_s=1, persistence_mask=33)],
        ["f:2: $.persistence_mask: 33 bits, and an IPv4 address has 32"],
    ),
    "ops of tcp": ([service(**OPS)], ["f:2: $.ops: tcp needs conns"]),
    "ops through fnat": (
        [service("udp", ops=True)],
        ["f:2: $.ops: with ops nobody could tell whose answer it is that comes back through fnat"],
    ),
    "ops through one fnat dest": (
        [service("udp", **OPS), dest(fwdmode="fnat")],
        ["f:3: $.fwdmode: with ops nobody could tell"],
    ),
    "ops and nat, of ports that become one": (
        [service("udp", ops=True, fwdmode="nat", vport="80-90"), dest(dport=80)],
        ["f:3: $.dport: with ops and nat nobody could tell which port of 80-90 was asked"],
    ),
    "ops and nat, of a match": (
        [
            {k: v for k, v in service("udp").items() if k not in ("vaddr", "vport", "laddrs")}
            | {
                "match": {"dport": 53, "dst": ["0.0.0.0/0"]},
                "ops": True,
                "fwdmode": "nat",
                "scheduler": "rr",
            },
            dest(),
        ],
        ["f:3: $.daddr: with ops and nat nobody could tell which address of a match was asked"],
    ),
    "ops and nat, of services that share a dest": (
        [
            service("udp", ops=True, fwdmode="nat", vport=80),
            dest(dport=8080),
            service("udp", name="b", ops=True, fwdmode="nat", vport=81),
            dest(service="b", dport=8080),
        ],
        ["f:5: $.daddr: with ops and nat nobody could tell its answers from those of line 3"],
    ),
    "ops and what needs conns": (
        [service("udp", persistence_s=1, max_conn=2, **OPS)],
        ["f:2: $.persistence_s: with ops each", "f:2: $.max_conn: with ops there are no conns"],
    ),
    "min_conn alone": ([service(), dest(min_conn=1)], ["f:3: $.min_conn: without max_conn it"]),
    "min_conn above max_conn": (
        [service(), dest(min_conn=3, max_conn=2)],
        ["f:3: $.min_conn: 3 is above max_conn (2)"],
    ),
    "a RST of udp": (
        [service("udp", reset_on_expire=True)],
        ["f:2: $.reset_on_expire: udp has no RST"],
    ),
    "a RST of what does not pass": (
        [service(reset_on_expire=True, fwdmode="dr")],
        ['f:2: $.reset_on_expire: with "dr" the dest\'s packets do not pass (hint: reset_on_'],
    ),
    "a RST of one dest that does not pass": (
        [service(reset_on_expire=True), dest(fwdmode="dr")],
        ['f:3: $.fwdmode: with "dr" the dest\'s packets do not pass'],
    ),
    "shares that cannot grow": (
        [service(slow_start_s=1, scheduler="rr")],
        ["f:2: $.slow_start_s: to rr, weights are no shares that could grow (hint: set"],
    ),
}


@pytest.mark.parametrize(("lines", "told"), BAD.values(), ids=BAD)
def test_refused(lines: list[Line], told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*lines)
    found = str(caught.value).splitlines()
    assert len(found) == len(told), found
    for text, start in zip(found, told, strict=True):
        assert text.startswith(start)


@pytest.mark.parametrize(
    ("written", "length"), [(24, 24), ("255.255.255.0", 24), ("128.0.0.0", 1), (1, 1)]
)
def test_a_mask_is_a_prefix_length(written: object, length: int) -> None:
    found = config(service(persistence_s=60, persistence_mask=written))
    assert found.services[0].persistence_mask == length
