"""One line at a time: what each key takes, and how what it does not take is told."""

from __future__ import annotations

import json
import pickle
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tunlb.conf import (
    ConfigError,
    PortRange,
    Timeouts,
    Tunlb,
    User,
    control_path,
    find,
    load,
    loads,
)
from tunlb.conf.timeouts import PROFILES, Overrides

PORT = '{"kind":"port","name":"lb0","addresses":["10.0.0.254/24","fd00::fe/64"]}'
LINES: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "tunlb": {},
        "port": {"name": "lb0"},
        "route": {"port": "lb0", "via": "10.0.0.1"},
        "neigh": {"port": "lb0", "addr": "10.0.0.1", "mac": "02:00:00:00:00:01"},
        "service": {
            "name": "web",
            "proto": "tcp",
            "vaddr": "10.0.0.100",
            "vport": 80,
            "laddrs": ["10.0.0.200"],
        },
        "dest": {"service": "web", "daddr": "10.0.0.11"},
        "timeouts": {},
        "hook": {"point": "pre_routing", "call": "my.hooks:Count"},
    }
)


def line(kind: str, **keys: Any) -> str:
    return json.dumps({"kind": kind, **LINES[kind], **keys})


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "f")
    assert str(caught.value).splitlines() == [str(p) for p in caught.value.problems]
    return [str(problem) for problem in caught.value.problems]


def test_a_whole_file() -> None:
    config = loads(
        "\n".join(
            [
                "# a comment, then a blank line, then a carriage return",
                "  ",
                PORT + "\r",
                line("dest", dport=8080, weight=0, fwdmode="nat"),
                line("route"),
                line("neigh"),
                line("service", laddrs=["10.0.0.200", "10.0.0.202-10.0.0.203"], vport="80-89"),
                line("dest", daddr="10.0.0.12", max_conn=5),
                line("hook"),
            ]
        )
    )
    (port,), (route,), (neigh,), (hook,) = config.ports, config.routes, config.neighs, config.hooks
    (service,) = config.services
    assert [str(a) for a in port.addresses] == ["10.0.0.254/24", "fd00::fe/64"]
    assert (route.dst, route.via, route.mtu) == (
        ip_network("0.0.0.0/0"),
        ip_address("10.0.0.1"),
        None,
    )
    assert (neigh.mac, str(neigh.mac)) == (bytes([2, 0, 0, 0, 0, 1]), "02:00:00:00:00:01")
    assert (service.vport.first, service.vport.last, service.vport.single) == (80, 89, None)
    assert [str(a) for a in service.laddrs_expanded] == ["10.0.0.200", "10.0.0.202", "10.0.0.203"]
    assert (hook.priority, hook.call) == (50, "my.hooks:Count")
    first, second = service.dests
    assert (first.dport, first.weight, first.fwdmode, first.max_conn) == (8080, 0, "nat", 0)
    assert (second.dport, second.weight, second.fwdmode, second.max_conn) == (None, 1, "fnat", 5)
    assert config.tunlb == Tunlb()
    assert config.timeouts == Timeouts()
    assert config.source == "<string>"


@pytest.mark.parametrize(
    ("vport", "first", "last", "text"),
    [(80, 80, 80, "80"), (0, 0, 65535, "0"), ("1-65535", 1, 65535, "1-65535"), ("9-9", 9, 9, "9")],
)
def test_vport(vport: object, first: int, last: int, text: str) -> None:
    (service,) = loads(PORT + "\n" + line("service", vport=vport)).services
    assert service.vport == PortRange(first, last)
    assert str(service.vport) == text
    assert service.vport.is_any == (text == "0")


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("tunlb", {"workers": "auto", "seed": "00ff00FF", "metrics": "[::1]:9090"}),
        ("tunlb", {"workers": 64, "user": "_lb-1$", "steering": False}),
        ("tunlb", {"conn_max": 16, "stop_grace_s": 1.5, "force": True, "log_level": "debug"}),
        ("port", {"name": "tap.5", "mac": "02:AB:00:00:00:01", "mtu": 65521, "offload": False}),
        ("port", {"vlans": [{"id": 1}, {"id": 4094, "addresses": ["10.9.0.1/31"]}]}),
        ("port", {"addresses": ["10.0.0.254/24"], "host_addresses": ["10.0.0.1/24"]}),
        ("timeouts", {"profile": "dpvs", "tcp_close_s": 0.25, "udp_last_s": 2678400}),
    ],
)
def test_taken(kind: str, keys: dict[str, Any]) -> None:
    other = "" if kind == "port" else PORT + "\n"
    assert loads(other + line(kind, **keys))


REFUSED: tuple[tuple[str, str, Any, str], ...] = (
    # kind, key, value, what is told after "f:1: $.key"
    ("tunlb", "version", 2, ": 2 is not known (expected 1)"),
    ("tunlb", "workers", 0, ': 0 is out of range (expected an integer 1-64 or "auto")'),
    ("tunlb", "workers", 65, ": 65 is out of range (expected an integer 1-64 or"),
    ("tunlb", "workers", 1.5, ": 1.5 is not an integer (expected an integer 1-64 or"),
    ("tunlb", "workers", True, ": true is a boolean (expected an integer 1-64 or"),
    (
        "tunlb",
        "workers",
        "atuo",
        ': "atuo" is not known (expected an integer 1-64 or "auto"; hint: did you mean "auto"?)',
    ),
    ("tunlb", "user", "", ": \"\" is not a user's name (expected a user's name, or a number 0-"),
    ("tunlb", "user", "no body", ': "no body" is not a user\'s name'),
    ("tunlb", "user", "nobody\n", r': "nobody\n" is not a user'),
    ("tunlb", "user", -1, ': "-1" is out of range (expected a user\'s name, or a number 0-429496'),
    ("tunlb", "user", "4294967295", ': "4294967295" is out of range'),
    ("tunlb", "user", "9" * 5000, ': "99999'),
    ("tunlb", "user", True, ": true is not a string"),
    ("tunlb", "steering", 0, ": 0 is a number (expected true or false)"),
    (
        "tunlb",
        "conn_max",
        2**40,
        ": 1099511627776 is out of range (expected an integer 16-16777216)",
    ),
    ("tunlb", "conn_max", 1.5, ": 1.5 is not an integer"),
    ("tunlb", "conn_max", True, ": true is a boolean"),
    ("tunlb", "control", "", ': "" does not fit (expected a path)'),
    ("tunlb", "seed", "abcdefg1", ': "abcdefg1" does not fit (expected 8-64 hexadecimal digits)'),
    ("tunlb", "seed", "abcdef", ': "abcdef" does not fit'),
    ("tunlb", "metrics", "localhost:9090", ': "localhost" is not an IP address'),
    ("tunlb", "metrics", "127.0.0.1:0", ': "127.0.0.1:0" is not an address and a port'),
    ("tunlb", "log_level", "warn", ': "warn" is not known (expected "debug", "info", "warning"'),
    ("tunlb", "stop_grace_s", -0.1, ": -0.1 is out of range (expected a number 0-86400)"),
    ("tunlb", "name", "a\n", r': "a\n" does not fit'),
    ("tunlb", "name", "\ud800", r': "\ud800" does not fit'),
    (
        "port",
        "name",
        "sixteencharacter",
        ': "sixteencharacter" does not fit (expected an interface',
    ),
    ("port", "name", "a/b", ': "a/b" does not fit'),
    ("port", "type", "tup", ': "tup" is not known (expected "tap" or "tun"'),
    ("port", "mac", "03:00:00:00:00:01", ': "03:00:00:00:00:01" is not a unicast Ethernet address'),
    ("port", "mac", "02-00-00-00-00-01", ': "02-00-00-00-00-01" is not an Ethernet address'),
    ("port", "mtu", 67, ": 67 is out of range (expected an integer 68-65521)"),
    ("port", "mtu", None, ": null is null"),
    ("port", "addresses", "10.0.0.1/24", ': "10.0.0.1/24" is a string (expected a list, each an'),
    ("port", "addresses", ["10.0.0.1"], '[0]: "10.0.0.1" has no prefix length'),
    ("port", "addresses", ["fe80::1%eth0/64"], "[0]: "),
    ("port", "addresses", ["10.0.0.255/24"], '[0]: "10.0.0.255/24" is the broadcast address'),
    ("port", "addresses", ["10.0.0.1/255.255.255.0"], "[0]: "),
    ("port", "addresses", ["127.0.0.1/8"], '[0]: "127.0.0.1" is a loopback address'),
    ("port", "vlans", [5], "[0]: 5 is a number (expected an object)"),
    ("port", "vlans", [{"id": 0}], "[0].id: 0 is out of range (expected an integer 1-4094)"),
    ("port", "vlans", [{"addresses": []}], "[0].id: missing (expected an integer 1-4094)"),
    ("route", "dst", "10.0.0.1/8", ': "10.0.0.1/8" has host bits set (expected a prefix like'),
    ("route", "dst", "10.0.0.0/33", ': "10.0.0.0/33" has no valid prefix length'),
    ("route", "via", "0.0.0.0", ': "0.0.0.0" is the unspecified address'),
    ("neigh", "addr", "::ffff:10.0.0.1", ': "::ffff:10.0.0.1" is an IPv4 address in IPv6 form'),
    (
        "service",
        "proto",
        "tpc",
        ': "tpc" is not known (expected "tcp", "udp", "sctp" or "icmp"; hint: did you mean',
    ),
    ("service", "vaddr", "255.255.255.255", ': "255.255.255.255" is the broadcast address'),
    ("service", "vaddr", 7, ": 7 is not a string (expected an address like"),
    ("service", "vport", 65536, ": 65536 is out of range (expected a port 1-65535, a range"),
    ("service", "vport", "9-8", ': "9-8" ends before it begins'),
    ("service", "vport", "0-8", ': "0-8" is out of range'),
    ("service", "vport", "80", ': "80" is neither a port nor a range'),
    ("service", "tunnel", {"type": "ipp"}, '.type: "ipp" is not known (expected "ipip", "gre" or'),
    ("service", "tunnel", {"port": 0}, ".port: 0 is out of range (expected an integer 1-65535"),
    ("service", "tunnel", {"csum": 1}, ".csum: 1 is a number (expected true or false"),
    ("service", "tunnel", {"src": "::ffff:1.2.3.4"}, '.src: "::ffff:1.2.3.4" is'),
    ("service", "tunnel", {"key": 1}, ".key: unknown key"),
    ("service", "tunnel", "gre", ': "gre" is a string (expected an object'),
    (
        "service",
        "mss_clamp",
        535,
        ": 535 is out of range (expected an integer 536-65495 or true",
    ),
    ("service", "mss_clamp", "yes", ': "yes" is a string (expected an integer 536-65495 or true'),
    (
        "service",
        "fwdmode",
        "fant",
        ': "fant" is not known (expected "fnat", "nat", "dr", "tunnel", "local", "snat" or',
    ),
    ("service", "match", {"src": ["10.0.0.1/8"]}, '.src[0]: "10.0.0.1/8" has host bits set'),
    ("service", "match", {"proto": "tcp"}, ".proto: unknown key"),
    (
        "service",
        "scheduler",
        "wlcc",
        ': "wlcc" is not known (expected "conhash", "dh", "fo", "lblc"',
    ),
    ("service", "scheduler", "mine:", ': "mine:" is not known'),
    ("service", "scheduler", 3, ": 3 is not a string"),
    (
        "service",
        "mh_table_size",
        65536,
        ": 65536 is not a prime (expected a prime 251-131071; hint:",
    ),
    ("service", "mh_table_size", 131072, ": 131072 is out of range"),
    ("service", "laddrs", ["10.0.0.1-fd00::1"], '[0]: "10.0.0.1-fd00::1" mixes IPv4 and IPv6'),
    ("service", "laddrs", ["10.0.0.9-10.0.0.8"], "[0]: "),
    ("service", "laddrs", ["10.0.0.0-10.0.4.0"], "[0]: "),
    ("service", "persistence_s", -1, ": -1 is out of range (expected a number 0-2678400)"),
    ("service", "persistence_mask", 0, ": 0 is out of range (expected a prefix length 1-128, or a"),
    ("service", "persistence_mask", 129, ": 129 is out of range"),
    ("service", "persistence_mask", True, ": true is neither a number nor a netmask"),
    ("service", "persistence_mask", "24", ': "24" is a string'),
    ("service", "persistence_mask", "/24", ': "/24" is not a netmask'),
    ("service", "persistence_mask", "0.0.0.0", ': "0.0.0.0" is not a netmask'),
    ("service", "persistence_mask", "255.0.255.0", ': "255.0.255.0" is not a netmask'),
    ("service", "ops", 1, ": 1 is a number (expected true or false)"),
    ("service", "expire_nodest", "rest", ': "rest" is not known (expected "keep", "reset" or'),
    ("service", "expire_quiescent", True, ": true is not known"),
    ("service", "slow_start_s", 86401, ": 86401 is out of range (expected a number 0-86400)"),
    ("service", "max_conn", -1, ": -1 is out of range"),
    ("dest", "min_conn", -1, ": -1 is out of range"),
    ("service", "check", {"type": "tcp"}, ': {"type": "tcp"} is not supported in this release'),
    ("service", "synproxy_wscale", 15, ": 15 is out of range (expected an integer 0-14)"),
    ("service", "client_ip", "toA", ': "toA" is not known (expected "none", "toa", "proxy-v1"'),
    ("service", "client_ip_udp", "all", ': "all" is not known (expected "first" or "every"'),
    ("service", "client_ip_trust", "10.0.0.1", ': "10.0.0.1" is a string'),
    ("service", "client_ip_trust", ["10.0.0.1/8"], '[0]: "10.0.0.1/8"'),
    ("service", "drain_s", "1", ': "1" is a string (expected a number 0-2678400)'),
    ("service", "timeouts", {"tcp_x_s": 1}, ".tcp_x_s: unknown key"),
    ("service", "timeouts", {"profile": "dpvs"}, ".profile: unknown key"),
    ("dest", "dport", 0, ": 0 is out of range (expected an integer 1-65535)"),
    ("dest", "weight", 65536, ": 65536 is out of range (expected an integer 0-65535)"),
    ("dest", "max_conn", -1, ": -1 is out of range"),
    (
        "timeouts",
        "tcp_close_s",
        0,
        ": 0 is out of range (expected a number above 0 and up to 2678400)",
    ),
    ("timeouts", "profile", "dvps", ': "dvps" is not known (expected "ipvs" or "dpvs"; hint:'),
    ("hook", "point", "prerouting", ': "prerouting" is not known'),
    (
        "hook",
        "call",
        "my.hooks.Count",
        ': "my.hooks.Count" is not known (expected "package.module:',
    ),
    ("hook", "priority", 10001, ": 10001 is out of range (expected an integer 0-10000)"),
)


@pytest.mark.parametrize(
    ("kind", "key", "value", "told"), REFUSED, ids=[f"{r[0]}.{r[1]}={r[2]!a}" for r in REFUSED]
)
def test_refused(kind: str, key: str, value: object, told: str) -> None:
    (found,) = problems(line(kind, **{key: value}))
    assert found.startswith(f"f:1: $.{key}{told}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"kind":"port" "name":"a"}', "f:1:16: not JSON: Expecting ',' delimiter"),
        ('{"kind":"port",', "f:1:16: not JSON: Expecting property name"),
        (
            '{"kind":"tunlb"} {"kind":"tunlb"}',
            "f:1:18: not JSON: Extra data (hint: one object a line)",
        ),
        ("[1]", "f:1: [1] is not an object (expected"),
        ("5", "f:1: 5 is not an object"),
        ('{"kind":"dest","kind":"dest"}', "f:1: $.kind: written twice"),
        ('{"kind":"port","vlans":[{"i d":1,"i d":2}]}', 'f:1: $["i d"]: written twice'),
        ('{"kind":"timeouts","tcp_close_s":NaN}', "f:1: not JSON: NaN is not JSON"),
        ("[" * 100_000, "f:1: not JSON that can be read: nested too deeply"),
        ('{"kind":"timeouts","tcp_close_s":1e999}', "f:1: $.tcp_close_s: Infinity is out of range"),
        (
            '{"kind":"timeouts","tcp_close_s":' + "9" * 5000 + "}",
            "f:1: not JSON: Exceeds the limit",
        ),
        ("{}", 'f:1: $.kind: missing (expected "tunlb", "port"'),
        ('{"kind":["port"]}', 'f:1: $.kind: ["port"] is not a kind'),
        ('{"kind":"servcie"}', 'f:1: $.kind: "servcie" is not a kind (expected'),
        (
            '{"kind":"tunlb","wokers":1}',
            'f:1: $.wokers: unknown key (hint: did you mean "workers"?)',
        ),
        (
            '{"kind":"tunlb","x y":1}',
            'f:1: $["x y"]: unknown key (hint: the keys are version, name,',
        ),
    ],
)
def test_not_a_line(text: str, told: str) -> None:
    found = problems(text)
    assert found[0].startswith(told)
    assert all("there is no port line" in other for other in found[1:])


def test_every_problem_of_every_line_at_once() -> None:
    service = line(
        "service", vport=70000, vaddr="x", laddrs=["y", "10.0.0.1", 3], proto="ipx", vprot=1
    )
    found = problems("\n".join([line("tunlb", version=3), service, "{", line("hook", call="")]))
    assert [text.split(": ")[1] for text in found] == [
        "$.version",
        "$.proto",
        "$.vaddr",
        "$.vport",
        "$.laddrs[0]",
        "$.laddrs[2]",
        "$.vprot",
        "not JSON",
        "$.call",
    ]


def test_a_missing_key_says_what_is_expected() -> None:
    found = problems('{"kind":"dest"}')
    assert found == [
        "f:1: $.service: missing (expected a name: 1-64 letters, digits or _ . : -)",
        'f:1: $.daddr: missing (expected an address like "10.0.0.1" or "fd00::1")',
    ]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "lb.jsonl"
    file.write_bytes(PORT.encode() + b'\n{"kind":"\xff"}\n')
    with pytest.raises(ConfigError, match=r"lb.jsonl:2:10: byte 0xff is not UTF-8"):
        load(file)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "lb.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + PORT.encode())
    assert load(str(file)).source == str(file)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory \(hint: "):
        load(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_an_empty_file_is_no_configuration() -> None:
    assert problems("\n# nothing\n")[0].startswith("f: there is no port line (hint: add ")


@pytest.mark.parametrize(
    ("flag", "environ", "path"),
    [
        ("a", {"TUNLB_CONFIG": "b"}, "a"),
        (None, {"TUNLB_CONFIG": "b"}, "b"),
        (None, {"TUNLB_CONFIG": ""}, "/etc/tunlb/tunlb.jsonl"),
        (None, {}, "/etc/tunlb/tunlb.jsonl"),
    ],
)
def test_which_file(flag: str | None, environ: dict[str, str], path: str) -> None:
    assert str(find(flag, environ)) == path


@pytest.mark.parametrize(
    ("keys", "environ", "path"),
    [
        ({}, {}, "/run/tunlb/control.sock"),
        ({"control": "/run/b"}, {"TUNLB_CONTROL": ""}, "/run/b"),
        ({"control": "/run/b"}, {"TUNLB_CONTROL": "/run/c"}, "/run/c"),
    ],
)
def test_which_control_socket(keys: dict[str, Any], environ: dict[str, str], path: str) -> None:
    assert control_path(loads(PORT + "\n" + line("tunlb", **keys)), environ) == path


@pytest.mark.parametrize(
    ("workers", "cores", "count"),
    [(1, 8, 1), (4, 2, 4), ("auto", 8, 8), ("auto", 1, 1), ("auto", 200, 64)],
)
def test_how_many_workers(workers: object, cores: int, count: int) -> None:
    config = loads(PORT + "\n" + line("tunlb", workers=workers))
    assert config.tunlb.worker_count(cores) == count
    assert config.tunlb.workers == workers, "what was written stays what was written"


@pytest.mark.parametrize(
    ("written", "user"),
    [("tunlb", "tunlb"), ("1000", "1000"), (1000, "1000"), (0, "0"), (4294967294, "4294967294")],
)
def test_a_user_is_a_name_or_a_number(written: object, user: str) -> None:
    found = loads(PORT + "\n" + line("tunlb", user=written)).tunlb.user
    assert (found, type(found)) == (user, User)
    assert pickle.loads(pickle.dumps(found)) == found


def test_timeouts_profile_then_global_then_service() -> None:
    config = loads(
        "\n".join(
            [
                PORT,
                line("timeouts", profile="dpvs", tcp_close_s=4, udp_last_s=0.0001),
                line("service", timeouts={"tcp_close_s": 5.5}),
                line("service", name="other", vport=81),
            ]
        )
    )
    web, other = config.services
    base = {name: round(seconds * 1000) for name, seconds in PROFILES["dpvs"].items()}
    expected = base | {"tcp_close": 4000, "udp_last": 1}
    assert config.timeouts_ms() == expected
    assert config.timeouts_ms(other) == expected
    assert config.timeouts_ms(web) == expected | {"tcp_close": 5500}


def test_profiles_have_the_states_that_lines_override() -> None:
    states = [name.removesuffix("_s") for name in Overrides.__struct_fields__]
    assert [list(table) for table in PROFILES.values()] == [states, states]
    assert PROFILES["ipvs"]["tcp_established"] == 900
    assert PROFILES["dpvs"]["tcp_established"] == 90


def test_a_thousand_services_are_read_in_linear_time() -> None:
    """Counts calls rather than seconds: ten times the file, at most twelve times the calls."""

    def calls(services: int) -> int:
        rows = ['{"kind":"port","name":"lb0","addresses":["10.0.0.254/8"]}']
        for number in range(services):
            rows.append(line("service", name=f"s{number}", vport=number + 1))
            rows.append(line("dest", service=f"s{number}", daddr="10.0.0.11", dport=80))
        text = "\n".join(rows)
        count = 0

        def profile(*_: object) -> None:
            nonlocal count
            count += 1

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            loads(text)
        finally:
            sys.setprofile(before)
        return count

    calls(1)  # warms up caches
    assert calls(1000) < 12 * calls(100)
