"""What the end-to-end tests of tunlb share: a lab that serves, changed configurations, polling."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import TypeVar

import tunlb
from tunlb.lab import Lab, Topology, TunlbProcess, clients
from tunlb.lab.net import workers_in
from tunlb.lab.topology import FAMILIES, Family

COMPILED = tunlb.build() == "compiled"

Line = Mapping[str, object]
LabFactory = Callable[[str | Topology], Lab]
T = TypeVar("T")


def eventually(what: Callable[[], T], seconds: float = 15.0) -> T:
    """The first true value that `what` returns."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"nothing came of it in {seconds:g} s"
        time.sleep(0.02)
    return value


def in_child(call: Callable[[], object]) -> str:
    """What `call` returns, as text, or why it failed, in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "nothing"
        try:
            text = repr(call())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


def lines_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def text_of(lines: Iterable[Line]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def with_lines(text: str, *more: Line) -> str:
    return text + text_of(more)


def with_keys(text: str, kind: str, name: str | None = None, **keys: object) -> str:
    """The configuration with `keys` set in the lines of a kind (of that name)."""
    lines = lines_of(text)
    chosen = [x for x in lines if x["kind"] == kind and name in (None, x.get("name"))]
    assert chosen, f"no {kind} line {name or ''}"
    for line in chosen:
        line.update(keys)
    return text_of(lines)


def without(text: str, **keys: object) -> str:
    """The configuration without the lines that have all of these keys and values."""
    lines = lines_of(text)
    kept = [x for x in lines if any(x.get(key) != value for key, value in keys.items())]
    assert len(kept) < len(lines), f"no line has {keys}"
    return text_of(kept)


def service(name: str, vaddr: str, vport: int, dests: Iterable[str], **keys: object) -> list[Line]:
    """A TCP service and its dests; `dport` among the keys is the dests'."""
    dport = keys.pop("dport", vport)
    head = {"kind": "service", "name": name, "proto": "tcp", "vaddr": vaddr, "vport": vport, **keys}
    return [
        head,
        *({"kind": "dest", "service": name, "daddr": d, "dport": dport} for d in dests),
    ]


def family_of(address: str) -> Family:
    return "v6" if ":" in address else "v4"


def client_address(lab: Lab, family: Family) -> str:
    addresses = (a.partition("/")[0] for _, a in lab.client.spec.addresses)
    return next(a for a in addresses if family_of(a) == family)


def is_laddr(lab: Lab, address: str) -> bool:
    assert lab.topology.laddrs is not None
    first, _, last = lab.topology.laddrs.of(family_of(address)).partition("-")
    return int(ip_address(first)) <= int(ip_address(address)) <= int(ip_address(last))


def own_addresses(lab: Lab) -> list[str]:
    """tunlb's addresses on its ports."""
    found: list[str] = []
    for port in lab.topology.ports:
        addresses = port["addresses"]
        assert isinstance(addresses, list)
        found += [address.partition("/")[0] for address in addresses]
    return found


def workers_of(lab: Lab) -> dict[int, int]:
    """The pid of each worker that forwards in a lab, by its number."""
    return workers_in(lab.director.ns)


def stopped(process: TunlbProcess) -> dict[str, object]:
    """Stops tunlb: what it logged at its end. It must have ended well."""
    assert process.stop() == 0, process.log_lines[-3:]
    return process.wait_event(("stopped",))


def counters_of(event: Mapping[str, object]) -> dict[str, int]:
    counters = event["counters"]
    assert isinstance(counters, dict)
    return counters


def counters(process: TunlbProcess) -> dict[str, int]:
    """Stops tunlb: its counters."""
    return counters_of(stopped(process))


def drops(found: Mapping[str, int]) -> set[str]:
    return {name.removeprefix("drop.") for name in found if name.startswith("drop.")}


def serves(lab: Lab) -> bool:
    """Whether a fetch and a datagram come back by the VIP of each family."""
    for vip in lab.topology.vips:
        answer = clients.fetch(lab.client, clients.url(vip, 80))
        if answer.body.strip() not in lab.topology.server_names:
            return False
        if clients.udp_echo(lab.client, vip, 7, b"serving").data != b"serving":
            return False
    return True


__all__ = [
    "COMPILED",
    "FAMILIES",
    "Family",
    "LabFactory",
    "Line",
    "client_address",
    "counters",
    "counters_of",
    "drops",
    "eventually",
    "family_of",
    "in_child",
    "is_laddr",
    "lines_of",
    "own_addresses",
    "serves",
    "service",
    "stopped",
    "text_of",
    "with_keys",
    "with_lines",
    "without",
    "workers_of",
]
