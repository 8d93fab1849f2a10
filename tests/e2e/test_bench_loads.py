"""Each load with its real programs, through a plain router: no subject but the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

import pytest

from tunlb.bench import generators, held, latency, tools
from tunlb.bench.loads import LOADS, Load
from tunlb.bench.network import CRR_PORT, SERVERS, Ends, Network, Pins, Standing
from tunlb.bench.samples import BenchError

# nothing of tunlb's own build takes part
pytestmark = [pytest.mark.alone, pytest.mark.slow]

SECONDS = 0.3
# Far from what any machine gives: these tell a misread unit, not a slow machine.
PLAUSIBLE: Final = MappingProxyType(
    {"Gb/s": (0.001, 1000), "kpps": (0.5, 100e3), "k/s": (0.02, 1000), "us": (1, 1e6)}
)


@pytest.fixture(scope="module")
def _network(_host_problems: list[str]) -> Iterator[Network | None]:
    if _host_problems:
        yield None
        return
    made = Network(f"loads-{os.getpid()}", tools.build(), Pins())
    with made.up(), made.kernel_on_bridges(vip=False, forward=True):
        yield made


@pytest.fixture
def network(privileged: None, _network: Network | None) -> Network:
    """Client and server with a router in between."""
    assert _network is not None
    return _network


@pytest.fixture
def standing(network: Network) -> Standing:
    return Standing(network.director, SERVERS[0], processes=False)


def demand(load: Load, network: Network) -> None:
    helpers = [network.helpers.missing.get(need) for need in load.needs]
    programs = [tools.missing(need) for need in load.needs if need not in tools.HELPERS]
    for problem in (*helpers, *programs):
        if problem and os.environ.get("CI") == "true":
            pytest.fail(problem)
        elif problem:
            pytest.skip(problem)


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_load_measures(
    load: Load, network: Network, standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "WANTED", 2000)
    demand(load, network)
    made = load.run(Ends(network=network), standing, SECONDS)
    if load.name == "held":
        assert made.value == 2000
        assert made.details["broken"] == 0
    else:
        low, high = PLAUSIBLE[load.unit]
        assert low < made.value / load.per_unit < high
    assert made.details["elapsed_s"] >= SECONDS
    assert made.details["packets"] > 0
    assert 0 <= made.details["peers_busy"] <= 1
    if load.better == "lower":
        assert made.details["p50_s"] <= made.details["p99_s"] <= made.details["max_s"]
        assert made.distribution[-1] == (1.0, made.details["max_s"])


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_load_says_that_nothing_answers(
    load: Load, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody has this address, so the router answers that the host cannot be reached, and that late.
    monkeypatch.setattr(generators, "GRACE_S", 0.2)
    monkeypatch.setattr(held, "OPEN_S", 0.3)
    monkeypatch.setattr(held, "WANTED", 10)
    monkeypatch.setattr(latency, "CAPACITY_S", 0.2)
    demand(load, network)
    nowhere = Standing(network.director, "10.9.2.99", processes=False)
    with pytest.raises(BenchError) as error:
        load.run(Ends(network=network), nowhere, SECONDS)
    assert "10.9.2.99" in f"{error.value} {getattr(error.value, '__notes__', '')}"


def test_nothing_is_left_at_the_ends(network: Network, standing: Standing) -> None:
    load = next(load for load in LOADS if load.name == "crr")
    demand(load, network)
    load.run(Ends(network=network), standing, SECONDS)
    for host in (network.client, network.server):
        listening = host.run(["ss", "-Hltnu"]).stdout
        assert f":{CRR_PORT} " not in listening
