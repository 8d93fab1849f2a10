"""The subjects: who may stand between client and server, and how each of them takes its place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import tunlb
from tunlb.bench import decap, proc, rivals
from tunlb.bench.figures import CUT, CUT_LIMIT, LIMIT
from tunlb.bench.network import (
    INSIDE,
    LADDRS,
    OUTSIDE,
    READY_S,
    SERVERS,
    TAPS,
    TCP_PORTS,
    UDP_PORTS,
    VIP,
    Child,
    Network,
    Standing,
    dests,
)
from tunlb.bench.samples import BenchError
from tunlb.lab.host import Host, ip
from tunlb.lab.net import TCP_LISTEN, bound_ports, processes_in
from tunlb.lab.process import READY, TunlbError, TunlbProcess, environment
from tunlb.wire.encap import KINDS, overhead

BOTH: Final = frozenset({"tcp", "udp"})
# tunlb's default, so that the reflector's rings are as long.
TXQUEUELEN: Final = 4096
GUE_PORT: Final = 6080
# The type of the tunnel, by what `--subjects` calls it.
TUNNELS: Final = MappingProxyType({"tunnel": "ipip", "tunnel-gre": "gre", "tunnel-gue": "gue"})

Stand = Callable[[Network], contextlib.AbstractContextManager[Standing]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """`loads` names those that it is for (None: all of its protocols), `unfit` those that it is not
    for. `needs` are helpers in C. `missing` says why it cannot stand on this machine, or None."""

    name: str
    title: str
    stand: Stand
    protos: frozenset[str] = BOTH
    loads: tuple[str, ...] | None = None
    unfit: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    missing: Callable[[], str | None] = lambda: None

    def takes(self, load: str, proto: str) -> bool:
        meant = self.loads is None or load in self.loads
        return proto in self.protos and meant and load not in self.unfit


# ---- the kernel ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _direct(network: Network) -> Iterator[Standing]:
    with network.kernel_on_bridges(vip=False, forward=True):
        yield Standing(network.director, SERVERS[0], processes=False)


@contextlib.contextmanager
def _nftables(network: Network, *, snat: bool) -> Iterator[Standing]:
    with network.kernel_on_bridges(vip=True, forward=True):
        try:
            rivals.nft_load(network.director, snat=snat)
            remarks = tracking_limit(rivals.tracked_max())
            yield Standing(network.director, VIP, processes=False, remarks=remarks)
        finally:
            rivals.nft_unload(network.director)


def tracking_limit(most: int) -> dict[str, str]:
    """The kernel's table of connections is the machine's, and no namespace can make it larger."""
    if most >= rivals.HELD_MAX:
        return {}
    return {"held": f"the kernel tracks {most} connections here (net.netfilter.nf_conntrack_max)"}


# ---- proxies -------------------------------------------------------------------------------------


def _await_listening(child: Child, director: Host) -> None:
    """Until the program listens on every port. Raises BenchError when it does not."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if not child.running:
            raise BenchError("it ended at once")
        with contextlib.suppress(FileNotFoundError):
            inside = os.path.samestat(os.stat(f"/proc/{child.pid}/ns/net"), director.path.stat())
            if inside and set(TCP_PORTS) <= set(bound_ports(child.pid, "tcp", TCP_LISTEN)):
                return
        time.sleep(0.01)
    raise BenchError(f"it does not listen after {READY_S:g} s")


def file_limit(director: Host) -> dict[str, str]:
    """A proxy needs two open files for a connection, and may not get as many as it asks for."""
    limit = max(map(proc.open_files_max, processes_in([director.ns])), default=0)
    if limit >= 2 * rivals.HELD_MAX:
        return {}
    return {"held": f"a process may open {limit} files here (ulimit -Hn): {limit // 2} connections"}


@contextlib.contextmanager
def _proxy(network: Network, argv: Sequence[str]) -> Iterator[Standing]:
    with (
        network.kernel_on_bridges(vip=True, forward=False),
        network.child(network.director, argv) as child,
    ):
        _await_listening(child, network.director)
        yield Standing(network.director, VIP, remarks=file_limit(network.director))


@contextlib.contextmanager
def _haproxy(network: Network) -> Iterator[Standing]:
    config = network.scratch / "haproxy.cfg"
    config.write_text(rivals.haproxy_config())
    with _proxy(network, rivals.haproxy_argv(config)) as standing:
        yield standing


@contextlib.contextmanager
def _nginx(network: Network) -> Iterator[Standing]:
    config = network.scratch / "nginx.conf"
    config.write_text(rivals.nginx_config(rivals.nginx_module(), network.scratch))
    with _proxy(network, rivals.nginx_argv(config, network.log())) as standing:
        yield standing


# ---- on two TAPs ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _reflector(network: Network, *options: str) -> Iterator[Standing]:
    director = network.director
    argv = [str(network.helpers.path("reflector")), *options, TAPS["out"], TAPS["in"]]
    with network.child(director, argv) as child:
        child.wait_for("ready")
        ip(
            "-n",
            director.ns,
            batch=[
                f"link set {tap} txqueuelen {TXQUEUELEN} master br-{side} up"
                for side, tap in TAPS.items()
            ],
        )
        network.route(to_server="dev eth0", to_client="dev eth0")
        yield Standing(director, SERVERS[0])


def configuration(mode: str, workers: int) -> str:
    """tunlb's configuration for one forwarding mode or tunnel, as JSON lines.

    Round robin: `sh` and `mh` go by the client's address, and there is one client.
    """
    lines: list[dict[str, object]] = [
        {"kind": "tunlb", "version": 1, "name": "bench", "workers": workers},
        {"kind": "port", "name": TAPS["out"], "bridge": "br-out", "addresses": [f"{OUTSIDE}/24"]},
        {"kind": "port", "name": TAPS["in"], "bridge": "br-in", "addresses": [f"{INSIDE}/24"]},
    ]
    if mode == "snat":
        match = {"dst": [f"{address}/32" for address in SERVERS]}
        lines += [
            {"kind": "service", "name": proto, "proto": proto, "match": match}
            | {"fwdmode": "snat", "laddrs": [LADDRS]}
            for proto in ("tcp", "udp")
        ]
        return "".join(json.dumps(line) + "\n" for line in lines)
    for proto, ports in (("tcp", TCP_PORTS), ("udp", UDP_PORTS)):
        for port in ports:
            name = f"{proto}-{port}"
            service: dict[str, object] = {"kind": "service", "name": name, "proto": proto}
            service |= {"vaddr": VIP, "vport": port, "scheduler": "rr", **_way(mode)}
            lines.append(service)
            lines += [
                {"kind": "dest", "service": name, "daddr": address, "dport": port}
                for address in dests(proto, port)
            ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _way(mode: str) -> dict[str, object]:
    """What a service says of how it forwards."""
    if mode in TUNNELS:
        tunnel: dict[str, object] = {"type": TUNNELS[mode]}
        tunnel |= {"port": GUE_PORT} if tunnel["type"] == "gue" else {}
        return {"fwdmode": "tunnel", "tunnel": tunnel}
    return {"fwdmode": mode, **({"laddrs": [LADDRS]} if mode == "fnat" else {})}


@contextlib.contextmanager
def _answering(network: Network, mode: str) -> Iterator[None]:
    """What the server has for the turn of a mode in which it answers the client itself."""
    with contextlib.ExitStack() as stack:
        if mode == "dr":
            stack.enter_context(network.answers_of_its_own())
        elif mode in TUNNELS:
            room = overhead(KINDS.index(TUNNELS[mode]), 4, False)
            stack.enter_context(decap.decapsulating(network.server, "eth0", GUE_PORT))
            stack.enter_context(network.answers_of_its_own(overhead=room))
        yield


def uncompiled_tree(scratch: Path) -> Path:
    """A folder that holds this tunlb without its compiled rooms; made once in a scratch folder."""
    tree = scratch / "uncompiled"
    if not tree.exists():
        source = Path(tunlb.__path__[0])
        leave_out = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(source, tree / "tunlb", ignore=leave_out)
    return tree


@contextlib.contextmanager
def _tunlb(
    network: Network, *, mode: str, workers: int = 1, build: str = "compiled"
) -> Iterator[Standing]:
    config = network.scratch / "tunlb.jsonl"
    config.write_text(configuration(mode, workers))
    # The working directory may hold another tunlb, which `python -m` would take first.
    extra = {"TUNLB_CONTROL": str(network.scratch / "control.sock"), "PYTHONSAFEPATH": "1"}
    if build == "uncompiled":
        extra["PYTHONPATH"] = str(uncompiled_tree(network.scratch))
    argv = network.director.argv([sys.executable, "-m", "tunlb", "run", "-c", str(config)])
    with (
        _answering(network, mode),
        TunlbProcess(argv, config, env=environment(extra)) as process,
    ):
        try:
            ready = process.wait_event((READY,), timeout=READY_S)
        except TunlbError as error:
            raise BenchError(str(error)) from None
        if ready.get("build") != build:
            raise BenchError(f"it is the {ready.get('build')} build instead of the {build} one")
        one_way = mode == "dr" or mode in TUNNELS
        if not one_way:
            network.route_through()
        devices = ("to-server",) if one_way else ("to-client", "to-server")
        try:
            address = SERVERS[0] if mode == "snat" else VIP
            yield Standing(network.director, address, devices=devices)
        except BenchError as error:
            error.add_note("tunlb logged last:\n" + "\n".join(process.log_lines[-15:]))
            raise


def _not_compiled() -> str | None:
    if tunlb.build() == "compiled":
        return None
    return "this tunlb is not compiled: `make build`, or install it where there is a C compiler"


def _compiled(name: str, title: str, mode: str, workers: int = 1) -> Subject:
    stand = partial(_tunlb, mode=mode, workers=workers)
    return Subject(name=name, title=title, stand=stand, missing=_not_compiled)


def _tunnel(name: str, title: str) -> Subject:
    """A datagram that fills the MTU has no room for an outer header: not for `udp-bulk`."""
    return Subject(
        name=name,
        title=title,
        stand=partial(_tunlb, mode=name),
        unfit=("udp-bulk",),
        missing=lambda: _not_compiled() or decap.missing(),
    )


def _uncompiled(mode: str) -> Subject:
    stand = partial(_tunlb, mode=mode, build="uncompiled")
    return Subject(name=f"{mode}-uncompiled", title=f"tunlb {mode}, uncompiled", stand=stand)


SUBJECTS: Final = (
    Subject(name="direct", title="routed by the kernel, no balancer", stand=_direct),
    Subject(
        name=LIMIT,
        title="read() and write() in C: the device's limit",
        stand=_reflector,
        needs=("reflector",),
    ),
    Subject(
        name=CUT_LIMIT,
        title="the same with offloaded frames cut: the limit of a tunnel",
        stand=lambda network: _reflector(network, "-c"),
        loads=CUT,
        needs=("reflector",),
    ),
    _compiled("nat", "tunlb nat", "nat"),
    _compiled("fnat", "tunlb fnat", "fnat"),
    _compiled("dr", "tunlb dr (answers do not pass it)", "dr"),
    _compiled("snat", "tunlb snat (to the server's own address)", "snat"),
    _tunnel("tunnel", "tunlb tunnel, IP in IP (answers do not pass it)"),
    _tunnel("tunnel-gre", "tunlb tunnel, GRE"),
    _tunnel("tunnel-gue", "tunlb tunnel, GUE"),
    _compiled("nat-2w", "tunlb nat, 2 workers", "nat", 2),
    _compiled("fnat-2w", "tunlb fnat, 2 workers", "fnat", 2),
    _uncompiled("nat"),
    _uncompiled("fnat"),
    Subject(
        name="nftables",
        title="nftables DNAT by hash",
        stand=partial(_nftables, snat=False),
        missing=rivals.nft_missing,
    ),
    Subject(
        name="nftables-snat",
        title="nftables DNAT by hash, and source NAT",
        stand=partial(_nftables, snat=True),
        missing=rivals.nft_missing,
    ),
    Subject(
        name="haproxy",
        title="HAProxy, mode tcp, a thread a core",
        stand=_haproxy,
        protos=frozenset({"tcp"}),
        missing=rivals.haproxy_missing,
    ),
    Subject(
        name="nginx",
        title="nginx stream, a process a core",
        stand=_nginx,
        missing=rivals.nginx_missing,
    ),
)
SUBJECT_NAMES: Final = tuple(subject.name for subject in SUBJECTS)
