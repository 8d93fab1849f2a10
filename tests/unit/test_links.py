"""What needs no kernel to be checked; the rest is in tests/e2e/test_ports.py and test_setup.py."""

from __future__ import annotations

import json
import os
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tunlb.conf import loads
from tunlb.links import (
    Change,
    derive_mac,
    dump_changes,
    load_changes,
    merge_undo,
    prepare,
    record,
    service_addresses,
    tun_addresses,
)
from tunlb.links import link as link_room
from tunlb.links.record import MadeDevice, Record, RecordError, Store, locked, record_path
from tunlb.links.tun import TABLE_BASE, tun_table

KERNEL_MACS = [bytes.fromhex(mac) for mac in ("000000000000", "02aabbccddee", "feffffffffff")]


@pytest.mark.parametrize("kernel_mac", KERNEL_MACS, ids=bytes.hex)
def test_a_derived_mac_is_local_unicast_and_our_own(kernel_mac: bytes) -> None:
    mac = derive_mac(kernel_mac, "lb0").to_bytes(6, "big")
    assert mac[0] & 0x03 == 0x02
    assert (mac[0] ^ kernel_mac[0]) & 0x04, "this bit tells the two sides apart"
    assert derive_mac(kernel_mac, "lb0").to_bytes(6, "big") == mac


def test_derived_macs_differ_by_device_and_by_kernel_side() -> None:
    names = ("lb0", "lb1", "out", "in")
    assert len({derive_mac(mac, name) for mac in KERNEL_MACS for name in names}) == 12


def test_each_tun_has_a_table_that_nobody_else_uses() -> None:
    tables = {tun_table(name) for name in ("lb0", "lb1", "tun0")}
    assert len(tables) == 3
    assert all(TABLE_BASE <= table < TABLE_BASE + (1 << 24) for table in tables)


# ---- what a bridge costs


@pytest.mark.parametrize(
    ("switches", "bridge", "told"),
    [
        pytest.param({"iptables": "1", "ip6tables": "1"}, "br0", True, id="both"),
        pytest.param({"iptables": "0", "ip6tables": "1"}, "br0", True, id="one"),
        pytest.param({"iptables": "0", "ip6tables": "0"}, "br0", False, id="off"),
        pytest.param({}, "br0", False, id="not loaded"),
        pytest.param({"iptables": "1", "ip6tables": "1"}, None, False, id="no bridge"),
    ],
)
def test_iptables_on_a_bridge_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    switches: dict[str, str],
    bridge: str | None,
    told: bool,
) -> None:
    (tmp_path / "bridge").mkdir()
    for tables, value in switches.items():
        (tmp_path / "bridge" / f"bridge-nf-call-{tables}").write_text(f"{value}\n")
    monkeypatch.setattr(link_room, "SYSCTLS", tmp_path)
    member = "" if bridge is None else f',"bridge":"{bridge}"'
    (port,) = loads(f'{{"kind":"port","name":"lb0"{member}}}').ports
    text = "\n".join(link_room.filtered(port))
    wanted = "sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0"
    assert (wanted in text) == told
    assert bool(text) == told


# ---- what is routed into a TUN

TAP = '{"kind":"port","name":"lb0","addresses":["10.0.0.254/24"],"vlans":[%s]}'
VLAN = '{"id":5,"addresses":["10.5.0.254/24"]}'
TUN = '{"kind":"port","name":"tun0","type":"tun","addresses":["10.9.0.254/24"]}'
OTHER_TUN = '{"kind":"port","name":"tun1","type":"tun","addresses":["10.8.0.254/24"]}'


def web(vaddr: str, *laddrs: str) -> str:
    keys = {"name": f"web-{vaddr}", "proto": "tcp", "vaddr": vaddr, "vport": 80}
    return json.dumps({"kind": "service", **keys, "laddrs": laddrs})


@pytest.mark.parametrize(
    ("lines", "also", "name", "addresses"),
    [
        ([TAP % "", web("10.0.0.100", "10.0.0.200")], (), None, ""),
        ([TUN], (), "tun0", "10.9.0.254"),
        (
            [TUN, web("10.9.0.100", "10.7.0.1-10.7.0.2")],
            (),
            "tun0",
            "10.7.0.1 10.7.0.2 10.9.0.100 10.9.0.254",
        ),
        (
            [TUN, OTHER_TUN, web("10.8.0.100", "10.8.0.1")],
            (),
            "tun0",
            "10.8.0.1 10.8.0.100 10.9.0.254",
        ),
        (
            [TAP % VLAN, TUN, web("10.9.0.100", "10.0.0.200", "10.5.0.200")],
            (),
            "tun0",
            "10.9.0.100 10.9.0.254",
        ),
        ([TAP % "", TUN], ("10.9.0.7", "10.0.0.7"), "tun0", "10.9.0.254 10.9.0.7"),
    ],
    ids=["no tun", "its own", "VIP and laddrs", "the first tun", "not a tap's", "draining"],
)
def test_what_is_routed_into_the_tun(
    lines: list[str], also: tuple[str, ...], name: str | None, addresses: str
) -> None:
    found = tun_addresses(loads("\n".join(lines)), map(ip_address, also))
    if name is None:
        assert found is None
    else:
        assert found is not None
        assert (found.name, " ".join(sorted(map(str, found.addresses)))) == (name, addresses)


def test_service_addresses_are_vips_and_laddrs() -> None:
    config = loads("\n".join([TUN, web("10.9.0.100", "10.7.0.1-10.7.0.2")]))
    assert service_addresses(config) == {
        ip_address(text) for text in ("10.9.0.100", "10.7.0.1", "10.7.0.2")
    }


# ---- changes that outlive a process


def sysctl(path: str, value: str) -> Change:
    command = f"sysctl -w net/{path}={value}"
    return Change(f"{path} differs", command, "sysctl", "set", {"path": path, "value": value})


def link(index: int, **keys: object) -> Change:
    return Change("it differs", "ip link set", "link", "set", {"index": index, **keys})


def route(dst: str, verb: str = "del") -> Change:
    arguments = {"family": socket.AF_INET, "dst": dst, "oif": 3, "table": 0x74000001}
    return Change(f"{dst} is routed", f"ip route {verb} {dst}", "route", verb, arguments)


CHANGES = (
    sysctl("ipv4/conf/a.b/rp_filter", "0"),
    link(3, state="up")._replace(needed=False, undo=(link(3, state="down"),)),
    route("10.0.0.1/32"),
    Change("", "ip rule add", "rule", "add", {"iifname": "lb0", "flags": 2, "action": "to_tbl"}),
    Change("", "ip addr del", "addr", "del", {"index": 3, "address": "fd00::1", "prefixlen": 64}),
)


def test_changes_survive_json() -> None:
    assert load_changes(json.loads(json.dumps(dump_changes(CHANGES)))) == CHANGES
    assert load_changes([]) == ()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"call": "close"}, "close"),
        ({"verb": "flush"}, "flush"),
        ({"arguments": {"path": "/etc/passwd", "value": "x"}}, "/etc/passwd"),
        ({"arguments": {"path": "ipv4/../../../etc/x", "value": "x"}}, "etc/x"),
        ({"arguments": {"path": "ipv4/ip_forward"}}, "ip_forward"),
        ({"arguments": {"path": "ipv4/ip_forward", "value": "1", "x": 1}}, "ip_forward"),
        ({"arguments": {"path": "ipv4/ip_forward", "value": ["1"]}}, "arguments"),
        ({"call": "link", "arguments": {"state": "down"}}, "state"),
        ({"undo": [{"what": "", "command": "", "call": "link", "verb": "set"}]}, "arguments"),
        ({"what": None}, "what"),
        ({"more": 1}, "more"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_changes_that_we_never_make_are_refused(keys: dict[str, Any], told: str) -> None:
    (stored,) = dump_changes([sysctl("ipv4/ip_forward", "0")])
    with pytest.raises(ValueError, match="not a list of changes: ") as caught:
        load_changes([{**stored, **keys}])
    assert told in str(caught.value)


@pytest.mark.parametrize("stored", [None, {}, "x", [[]], [None]])
def test_what_is_no_list_of_changes(stored: object) -> None:
    with pytest.raises(ValueError, match="not a list of changes"):
        load_changes(stored)


@pytest.mark.parametrize(
    ("old", "fresh", "merged"),
    [
        ([route("a")], [route("b")], [route("b"), route("a")]),
        ([route("a")], [route("b"), route("a")], [route("b"), route("a")]),
        ([sysctl("x", "0")], [sysctl("x", "5")], [sysctl("x", "0")]),
        ([sysctl("x", "0")], [sysctl("y", "0")], [sysctl("y", "0"), sysctl("x", "0")]),
        ([link(3, mtu=1500)], [link(3, mtu=9000)], [link(3, mtu=1500)]),
        ([link(3, mtu=1)], [link(4, mtu=1)], [link(4, mtu=1), link(3, mtu=1)]),
        ([link(3, mtu=1)], [link(3, master=1)], [link(3, master=1), link(3, mtu=1)]),
    ],
    ids=[
        "the latest first",
        "once",
        "to the first value of a sysctl",
        "two sysctls",
        "to the first value of a link's attribute",
        "two links",
        "two attributes",
    ],
)
def test_ways_back_are_merged(old: list[Change], fresh: list[Change], merged: list[Change]) -> None:
    assert merge_undo(old, fresh) == tuple(merged)


# ---- the record of a setup

MADE = Record(devices=(MadeDevice("lb0", 7), MadeDevice("lb1")), undo=CHANGES)


@pytest.fixture
def control(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "tunlb" / "control.sock")


def saved(control: str) -> Path:
    Store(control).save(MADE)
    return record_path(control)


def test_a_record_is_found_again_and_removed(control: str, tmp_path: Path) -> None:
    assert Store(control).record == Record()
    path = saved(control)
    assert (path.name, oct(path.stat().st_mode)) == ("control.sock.setup.json", "0o100644")
    assert oct(path.parent.stat().st_mode) == "0o40755"
    store = Store(control)
    directories = tuple(str(tmp_path / part) for part in ("run/tunlb", "run"))
    assert store.record == MADE._replace(directories=directories)
    store.save(Record(directories=directories))
    assert not [*tmp_path.iterdir()]


def test_a_directory_that_was_there_or_is_used_stays(control: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    saved(control)
    other = tmp_path / "run" / "tunlb" / "control.sock"
    other.touch()
    Store(control).save(Record())
    assert [*other.parent.iterdir()] == [other]
    other.unlink()
    other.parent.rmdir()
    saved(control)
    Store(control).save(Record())
    assert [*tmp_path.iterdir()] == [tmp_path / "run"]
    assert not [*(tmp_path / "run").iterdir()]


def test_a_file_that_was_half_written_is_replaced(control: str) -> None:
    path = saved(control)
    before = path.read_bytes()
    path.with_name(f"{path.name}.new").write_text("{")
    store = Store(control)
    store.save(store.record._replace(undo=()))
    assert path.read_bytes() != before
    assert [*path.parent.iterdir()] == [path]
    path.with_name(f"{path.name}.new").write_text("{")
    store.save(Record())
    assert not path.parent.exists()


def test_a_record_of_an_earlier_boot_is_over(
    control: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(control)
    (tmp_path / "boot").write_text("another\n")
    monkeypatch.setattr(record, "BOOT_ID", tmp_path / "boot")
    assert Store(control).record == Record()


def test_a_record_of_another_namespace(
    control: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(control)
    cookie, inode = record._network_namespace()
    monkeypatch.setattr(record, "_network_namespace", lambda: (cookie + 1, inode + 1))
    with pytest.raises(RecordError, match=f"{path} is of another network namespace: give each"):
        Store(control)
    monkeypatch.setattr(record, "NAMESPACES", ((str(tmp_path), "*"),))
    assert Store(control).record == Record(), "nobody is left in it"
    monkeypatch.undo()
    monkeypatch.setattr(record, "_network_namespace", lambda: (cookie + 1, inode))
    assert Store(control).record == Record(), "the inode was given again"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "truncated"),
        ("[]", "array"),
        ('{"format":2}', "Invalid enum value 2"),
        ('{"format":1}', "missing required field"),
    ],
    ids=["empty", "a list", "another format", "keys missing"],
)
def test_a_record_that_means_nothing(control: str, content: str, told: str) -> None:
    path = saved(control)
    path.write_text(content)
    with pytest.raises(RecordError, match="is no record of this version of tunlb") as caught:
        Store(control)
    assert told in str(caught.value)


def test_a_record_that_asks_for_too_much(control: str) -> None:
    path = saved(control)
    path.write_text(path.read_text().replace("ipv4/conf", "../../etc"))
    with pytest.raises(RecordError, match="not a list of changes: sysctl of"):
        Store(control)


def test_a_record_that_others_may_have_written(control: str, tmp_path: Path) -> None:
    path = saved(control)
    path.chmod(0o666)
    with pytest.raises(RecordError, match="could have been written by others"):
        Store(control)
    path.chmod(0o644)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match=r"cannot read .*: Too many levels of symbolic links"):
        Store(control)


def test_a_record_that_cannot_be_read_or_written(control: str, tmp_path: Path) -> None:
    path = record_path(control)
    path.with_name(f"{path.name}.new").mkdir(parents=True)
    with pytest.raises(RecordError, match=r"cannot write .*: Is a directory: run it as root, or"):
        Store(control).save(MADE)
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"cannot read .*: Not a directory"):
        Store(str(tmp_path / "file" / "control.sock"))


def test_one_at_a_time(control: str) -> None:
    with (
        locked(control),
        locked(f"{control}2"),
        pytest.raises(RecordError, match="is at work for"),
        locked(control),
    ):
        pass
    with locked(control):
        pass


def test_what_a_setup_added() -> None:
    before = Record(devices=(MadeDevice("lb0", 7),), undo=(route("a"),))
    after = Record(
        ("/run",), (MadeDevice("lb0", 7), MadeDevice("lb1", 8)), (route("b"), route("a"))
    )
    assert after.since(before) == Record(devices=(MadeDevice("lb1", 8),), undo=(route("b"),))
    assert before.with_device("lb0", 9).devices == (MadeDevice("lb0", 9),)


STRANGER = 123456789


@pytest.mark.parametrize(
    ("mode", "uid", "may"),
    [
        (0o600, os.geteuid(), True),
        (0o600, STRANGER, False),
        (0o662, STRANGER, False),
        (0o666, STRANGER, True),
        (0o000, 0, True),
    ],
    ids=["its owner", "another", "another, to write", "anybody", "root"],
)
def test_who_may_open_the_node(tmp_path: Path, mode: int, uid: int, may: bool) -> None:
    (tmp_path / "tun").touch()
    (tmp_path / "tun").chmod(mode)
    assert prepare._opens(str(tmp_path / "tun"), uid) == may
    assert not prepare._opens(str(tmp_path / "none"), uid)
