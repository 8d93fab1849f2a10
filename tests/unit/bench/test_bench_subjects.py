"""Who can stand in the network, and the configurations that they are given."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tunlb.bench import rivals, subjects, tools
from tunlb.bench.network import LADDRS, SERVERS, TCP_PORTS, UDP_BULK_PORT, UDP_PORTS, VIP
from tunlb.bench.samples import BenchError
from tunlb.bench.subjects import (
    GUE_PORT,
    SUBJECT_NAMES,
    SUBJECTS,
    TUNNELS,
    configuration,
    uncompiled_tree,
)
from tunlb.conf.load import loads
from tunlb.lab.host import Host
from tunlb.lab.topology import HostSpec

BY_NAME = {subject.name: subject for subject in SUBJECTS}


def test_the_order_of_the_turns() -> None:
    assert SUBJECT_NAMES == (
        "direct",
        "reflector",
        "reflector-mtu",
        "nat",
        "fnat",
        "dr",
        "snat",
        "tunnel",
        "tunnel-gre",
        "tunnel-gue",
        "nat-2w",
        "fnat-2w",
        "nat-uncompiled",
        "fnat-uncompiled",
        "nftables",
        "nftables-snat",
        "haproxy",
        "nginx",
    )


@pytest.mark.parametrize(
    ("subject", "load", "proto", "takes"),
    [
        ("nat", "pps", "udp", True),
        ("haproxy", "pps", "udp", False),
        ("haproxy", "crr", "tcp", True),
        ("nginx", "pps", "udp", True),
        ("reflector-mtu", "bulk-8", "tcp", True),
        ("reflector-mtu", "bulk-8-down", "tcp", False),
        ("reflector-mtu", "pps", "udp", False),
        ("tunnel-gue", "pps", "udp", True),
        ("tunnel", "bulk", "tcp", True),
        ("tunnel", "udp-bulk", "udp", False),
    ],
)
def test_who_takes_what(subject: str, load: str, proto: str, takes: bool) -> None:
    assert BY_NAME[subject].takes(load, proto) is takes


def test_a_subject_may_be_for_some_loads_only() -> None:
    subject = subjects.Subject(name="x", title="", stand=BY_NAME["nat"].stand, loads=("crr",))
    assert subject.takes("crr", "tcp")
    assert not subject.takes("bulk", "tcp")


# ---- tunlb ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", ["nat", "fnat", "dr", *TUNNELS])
def test_configuration_is_one_that_tunlb_takes(mode: str, workers: int) -> None:
    config = loads(configuration(mode, workers))
    assert config.tunlb.workers == workers
    assert [port.name for port in config.ports] == ["lb-out", "lb-in"]
    ports = {(service.proto, int(str(service.vport))) for service in config.services}
    assert ports == {("tcp", p) for p in TCP_PORTS} | {("udp", p) for p in UDP_PORTS}
    for service in config.services:
        assert service.fwdmode == mode.partition("-")[0]
        assert bool(service.laddrs) == (mode == "fnat")
        for dest in service.dests if mode in TUNNELS else ():
            assert dest.tunnel is not None
            assert (dest.tunnel.type, dest.tunnel.port) == (TUNNELS[mode], GUE_PORT)
        alone = (service.proto, str(service.vport)) == ("udp", str(UDP_BULK_PORT))
        assert [str(dest.daddr) for dest in service.dests] == list(
            SERVERS[:1] if alone else SERVERS
        )


def test_laddrs_are_nobody_else_s() -> None:
    first, last = LADDRS.split("-")
    numbers = range(int(first.rsplit(".", 1)[1]), int(last.rsplit(".", 1)[1]) + 1)
    assert not {int(address.rsplit(".", 1)[1]) for address in (*SERVERS, "10.9.2.254")} & {*numbers}


def test_the_uncompiled_tree_has_every_module_and_nothing_compiled(tmp_path: Path) -> None:
    tree = uncompiled_tree(tmp_path)
    names = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    source = Path(subjects.__file__).parents[1]
    assert {f"tunlb/{p.relative_to(source)}" for p in source.rglob("*.py")} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert uncompiled_tree(tmp_path) == tree


@pytest.mark.parametrize("name", ["nat", "fnat-2w", "dr", "snat"])
def test_an_uncompiled_tunlb_is_not_measured_under_another_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunlb.build", lambda: "compiled")
    assert BY_NAME[name].missing() is None
    monkeypatch.setattr("tunlb.build", lambda: "uncompiled")
    why = BY_NAME[name].missing()
    assert why is not None
    assert "make build" in why
    assert BY_NAME["nat-uncompiled"].missing() is None


# ---- rivals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("snat", [False, True])
def test_nft_rules(snat: bool) -> None:
    rules = rivals.nft_rules(snat=snat)
    assert ("masquerade" in rules) is snat
    assert f"ip daddr {VIP} udp dport {{ {UDP_BULK_PORT} }} dnat to {SERVERS[0]}" in rules
    spread = "dnat to jhash ip saddr . tcp sport mod 4 map { 0 : 10.9.2.2, 1 : 10.9.2.3, "
    assert spread in rules
    assert rules.count("{") == rules.count("}")


def test_haproxy_listens_on_every_port_and_knows_every_dest() -> None:
    config = rivals.haproxy_config()
    for port in TCP_PORTS:
        assert f"    bind {VIP}:{port}\n" in config
        assert all(f" {address}:{port}\n" in config for address in SERVERS)


@pytest.mark.parametrize("module", [None, "/usr/lib/stream.so"])
def test_nginx_listens_on_every_port(module: str | None, tmp_path: Path) -> None:
    config = rivals.nginx_config(module, tmp_path)
    assert config.startswith("load_module /usr/lib/stream.so;\n") is (module is not None)
    assert config.count("server { listen ") == len(TCP_PORTS) + len(UDP_PORTS)
    assert config.count(" udp reuseport;") == len(UDP_PORTS)
    assert f"upstream udp_{UDP_BULK_PORT} {{ server {SERVERS[0]}:{UDP_BULK_PORT}; }}" in config


def fake_nginx(folder: Path, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nginx"
    program.write_text(f'#!/bin/sh\necho "configure arguments: {options}" >&2\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_nginx_with_the_module_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nginx(tmp_path, "--with-cc-opt='-O2 -g' --with-stream", monkeypatch)
    assert rivals.nginx_module() is None
    assert rivals.nginx_missing() is None


def test_nginx_with_the_module_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = f"--modules-path={tmp_path} --with-stream=dynamic"
    fake_nginx(tmp_path, options, monkeypatch)
    why = rivals.nginx_missing()
    assert why is not None
    assert why.endswith("install the package libnginx-mod-stream")
    (tmp_path / "ngx_stream_module.so").touch()
    assert rivals.nginx_module() == f"{tmp_path}/ngx_stream_module.so"


def test_nginx_without_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nginx(tmp_path, "--with-threads", monkeypatch)
    with pytest.raises(BenchError, match="built without"):
        rivals.nginx_module()
    assert rivals.nginx_missing() == "this nginx was built without its stream module"


def test_a_kernel_without_nat(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, 1, "", "Error: No such file\nmore\n")

    monkeypatch.setattr(tools, "which", lambda program: f"/usr/sbin/{program}")
    monkeypatch.setattr(subprocess, "run", refuse)
    why = rivals.nft_missing()
    assert why is not None
    assert "(Error: No such file)" in why


@pytest.mark.parametrize("name", ["nftables", "haproxy", "nginx"])
def test_a_rival_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "which", lambda _: None)
    why = BY_NAME[name].missing()
    assert why is not None
    assert why.endswith(f"install the package {name}")


def test_how_many_connections_the_kernel_may_track() -> None:
    assert subjects.tracking_limit(262_144) == {}
    assert subjects.tracking_limit(65_536)["held"].startswith("the kernel tracks 65536 ")


@pytest.mark.parametrize(
    ("limits", "remark"),
    [
        ({1: 1024, 2: 20000}, "20000 files here (ulimit -Hn): 10000 connections"),
        ({1: 1024, 2: 1 << 20}, None),
    ],
    ids=["too few", "enough"],
)
def test_how_many_files_a_proxy_may_open(
    limits: dict[int, int], remark: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "processes_in", lambda _: list(limits))
    monkeypatch.setattr("tunlb.bench.proc.open_files_max", limits.get)
    director = Host(HostSpec(name="director", role="director"), "ns")
    found = subjects.file_limit(director).get("held")
    assert found is None if remark is None else str(found).endswith(remark)
