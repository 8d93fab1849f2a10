"""What a reload is told to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunlb.conf import RESTART_KEYS, Config, Diff, diff, loads
from tunlb.conf.schema import KINDS

Line = dict[str, Any]

TUNLB: Line = {"kind": "tunlb"}
LB0: Line = {"kind": "port", "name": "lb0", "addresses": ["10.0.0.254/24"]}
ROUTE: Line = {"kind": "route", "port": "lb0", "via": "10.0.0.1"}
NEIGH: Line = {"kind": "neigh", "port": "lb0", "addr": "10.0.0.1", "mac": "02:00:00:00:00:01"}
TIMEOUTS: Line = {"kind": "timeouts"}
WEB: Line = {
    "kind": "service",
    "name": "web",
    "proto": "tcp",
    "vaddr": "10.0.0.100",
    "vport": 80,
    "laddrs": ["10.0.0.200"],
}
D1: Line = {"kind": "dest", "service": "web", "daddr": "10.0.0.11"}
D2: Line = {"kind": "dest", "service": "web", "daddr": "10.0.0.12", "dport": 8080}
HOOK: Line = {"kind": "hook", "point": "forward", "call": "m:C"}
ACL: Line = {"kind": "acl", "action": "deny", "src": "192.0.2.0/24"}
TC: Line = {"kind": "tc", "port": "lb0", "rate": "10mbit"}
BASE = (TUNLB, LB0, ROUTE, NEIGH, TIMEOUTS, WEB, D1, D2, HOOK, ACL, TC)


def config(*lines: Line) -> Config:
    return loads("\n".join(map(json.dumps, lines)))


def changed(old: Line, **keys: Any) -> Diff:
    """The difference that changing keys of one line of BASE makes."""
    return diff(
        config(*BASE), config(*({**line, **keys} if line is old else line for line in BASE))
    )


def test_the_order_of_lines_is_no_difference() -> None:
    found = diff(config(*BASE), config(*reversed(BASE)))
    assert not found
    assert not found.restart_keys


def test_the_order_of_matches_is_one() -> None:
    """The first that matches has the packet."""

    def named(name: str) -> Line:
        match = {"src": ["10.9.0.0/16"]}
        return {
            "kind": "service",
            "name": name,
            "proto": "tcp",
            "fwdmode": "bypass",
            "match": match,
        }

    a, b, c = named("a"), named("b"), named("c")
    assert diff(config(LB0, a, b), config(LB0, b, a)).match_order
    assert diff(config(LB0, a, b), config(LB0, b, a))
    assert not diff(config(LB0, a, b), config(a, LB0, b))
    assert not diff(config(LB0, a, b), config(LB0, a, c, b)).match_order
    assert not diff(config(LB0, a, b, c), config(LB0, a, c)).match_order


@pytest.mark.parametrize(
    ("line", "keys", "restart", "live"),
    [
        (TUNLB, {"log_level": "debug", "stop_grace_s": 3}, (), ("log_level", "stop_grace_s")),
        (
            TUNLB,
            {"fragments": "drop", "defence_tcp": True, "defence_udp": False},
            (),
            ("fragments", "defence_tcp", "defence_udp"),
        ),
        (
            TUNLB,
            {"conn_max": 99, "seed": "00000000", "name": "a"},
            ("tunlb.conn_max", "tunlb.seed"),
            ("name",),
        ),
        (
            TUNLB,
            {"workers": 2, "user": "lb", "steering": False, "log_level": "debug"},
            ("tunlb.workers", "tunlb.user", "tunlb.steering"),
            ("log_level",),
        ),
        (LB0, {"mtu": 1400, "bridge": "b"}, ("port[lb0].mtu", "port[lb0].bridge"), ()),
        (HOOK, {"priority": 1}, ("hook",), ()),
    ],
)
def test_keys(line: Line, keys: Line, restart: tuple[str, ...], live: tuple[str, ...]) -> None:
    found = changed(line, **keys)
    assert found
    assert (found.restart_keys, found.tunlb_keys) == (restart, live)


def test_a_port_that_comes_or_goes_waits_for_a_restart() -> None:
    other = {"kind": "port", "name": "lb1"}
    found = diff(config(*BASE), config(*BASE, other))
    assert found.restart_keys == ("port[lb1]",)
    assert [port.name for port in found.ports.added] == ["lb1"]
    assert diff(config(*BASE, other), config(*BASE)).restart_keys == ("port[lb1]",)


def test_addresses_of_a_port_are_live() -> None:
    found = changed(LB0, addresses=["10.0.0.253/24"])
    ((old, new),) = found.ports.changed
    assert (str(old.addresses[0]), str(new.addresses[0])) == ("10.0.0.254/24", "10.0.0.253/24")
    assert found.restart_keys == ()


@pytest.mark.parametrize(
    ("line", "keys", "part"),
    [
        (ROUTE, {"via": "10.0.0.2"}, "routes"),
        (NEIGH, {"mac": "02:00:00:00:00:02"}, "neighs"),
        (WEB, {"scheduler": "rr"}, "services"),
        (WEB, {"timeouts": {"tcp_close_s": 1}}, "services"),
        (D1, {"weight": 0}, "dests"),
        (ACL, {"action": "allow"}, "acls"),
        (ACL, {"service": "web"}, "acls"),
        (TC, {"rate": 10_000_001}, "tcs"),
        (WEB, {"conn_rate": 5}, "services"),
        (TIMEOUTS, {"profile": "dpvs"}, "timeouts"),
    ],
)
def test_one_part_and_no_other(line: Line, keys: Line, part: str) -> None:
    found = changed(line, **keys)
    parts = ["ports", "routes", "neighs", "services", "dests", "acls", "tcs"]
    parts += ["timeouts", "tunlb_keys"]
    assert [name for name in parts if getattr(found, name)] == [part]
    assert not found.restart_keys


def test_dests_by_daddr_and_dport() -> None:
    found = changed(D2, dport=8081).dests
    assert [dest.dport for dest in found.added] == [8081]
    assert [dest.dport for dest in found.removed] == [8080]
    assert found.changed == ()
    ((old, new),) = changed(D1, dport=80).dests.changed  # the vport, written out
    assert (old.dport, new.dport) == (None, 80)


def test_a_services_fwdmode_is_its_dests() -> None:
    found = changed(WEB, fwdmode="nat")
    assert [new.name for _, new in found.services.changed] == ["web"]
    assert [new.fwdmode for _, new in found.dests.changed] == ["nat", "nat"]


def test_an_added_service_brings_its_dests() -> None:
    service = {**WEB, "name": "b", "vport": 81}
    found = diff(config(*BASE), config(*BASE, service, {**D1, "service": "b"}))
    (added,) = found.services.added
    assert [str(dest.daddr) for dest in added.dests] == ["10.0.0.11"]
    assert not found.dests
    assert not found.services.changed


def test_restart_keys_are_keys() -> None:
    known = {f"{kind}.{key}" for kind, line in KINDS.items() for key in line.__struct_fields__}
    assert known >= RESTART_KEYS
