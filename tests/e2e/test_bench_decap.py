"""The benchmark's own end of a tunnel, under real connections to the kernel's TCP and UDP."""

from __future__ import annotations

import contextlib

import pytest

from tests.e2e.kit import FAMILIES, Family, LabFactory, client_address, counters, drops
from tests.e2e.test_tunnel import OTHER, PLANNED_DROPS, by_tunnel
from tunlb.bench import decap
from tunlb.lab import clients
from tunlb.lab.servers import pattern

GUE_PORT = 6080


@pytest.fixture(autouse=True)
def _possible(privileged: None) -> None:
    if problem := decap.missing():
        pytest.skip(problem)


@pytest.mark.parametrize("csum", [False, True], ids=["plain", "with checksums"])
@pytest.mark.parametrize("mixed", [False, True], ids=["one family", "mixed families"])
def test_what_comes_out_of_a_tunnel(lab: LabFactory, mixed: bool, csum: bool) -> None:
    """A server behind each wrapping, of either family in either."""
    made = lab("dr")
    outer: dict[Family, Family] = OTHER if mixed else {"v4": "v4", "v6": "v6"}
    wrappings: tuple[dict[str, object], ...] = (
        {"type": "ipip"},
        {"type": "gre", "csum": csum},
        {"type": "gue", "csum": csum, "port": GUE_PORT},
    )
    with contextlib.ExitStack() as stack:
        for name in made.topology.server_names:
            stack.enter_context(decap.decapsulating(made.host(name), "eth0", GUE_PORT))
        tunlb = made.start_tunlb(by_tunnel(made, outer, wrappings))
        for family in FAMILIES:
            vip = made.topology.vips.of(family)
            met = set()
            for size in (1, 1300, 60_000, 60_000, 60_000):
                answer = clients.tcp_echo(made.client, vip, 7, pattern(size))
                assert answer.data == pattern(size)
                assert answer.peer == client_address(made, family)
                met.add(clients.fetch(made.client, clients.url(vip, 80)).body.strip())
                datagram = clients.udp_echo(made.client, vip, 7, pattern(min(size, 1300)))
                assert datagram.data == pattern(min(size, 1300))
            assert met == set(made.topology.server_names)
        found = counters(tunlb)
    assert found["SEGMENTS_CUT"] > 50
    assert drops(found) <= PLANNED_DROPS | {"MTU_EXCEEDED"}, found


def test_the_device_is_as_it_was_after_the_block(lab: LabFactory) -> None:
    made = lab("dr")
    server = made.host(made.topology.server_names[0])
    vip = made.topology.vips.v4
    ipip: dict[str, object] = {"type": "ipip"}
    made.start_tunlb(by_tunnel(made, {"v4": "v4", "v6": "v6"}, [ipip] * 3))
    with decap.decapsulating(server, "eth0", GUE_PORT):
        pass
    with pytest.raises(OSError):  # refused, unreachable or silence
        clients.tcp_echo(made.client, vip, 7, b"?", timeout=1.0)
