"""What the bench scripts conclude from figures, and the configuration that they measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tunlb.conf.load import loads


@pytest.fixture(scope="module")
def speed(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("speed")


@pytest.fixture(scope="module")
def memory(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("memory")


def test_ratios_are_taken_within_a_round(speed: ModuleType) -> None:
    # The machine halves its speed from round to round; the subject is always at 0.9 of the limit.
    limits = {1: 12e9, 2: 6e9, 3: 3e9}
    samples = [speed.Sample(turn, "bulk", "reflector", value) for turn, value in limits.items()]
    samples += [speed.Sample(turn, "bulk", "nat", 0.9 * value) for turn, value in limits.items()]
    limit, nat = speed.rows(samples)
    assert (limit.subject.name, nat.subject.name) == ("reflector", "nat")
    assert nat.ratios == pytest.approx((0.9, 0.9, 0.9))
    assert nat.value == pytest.approx(5.4e9)


def test_ratio_is_the_median_of_the_rounds(speed: ModuleType) -> None:
    pairs = enumerate((0.2, 0.95, 1.1))
    samples = [
        speed.Sample(turn, "udp", subject, value)
        for turn, ratio in pairs
        for subject, value in (("reflector", 100e3), ("fnat", ratio * 100e3))
    ]
    _, fnat = speed.rows(samples)
    assert fnat.ratio == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("load", "subject", "limit", "value", "reached"),
    [
        pytest.param("bulk", "nat", 10e9, 9.1e9, True, id="bulk above 0.9"),
        pytest.param("bulk", "nat", 10e9, 8.9e9, False, id="bulk below 0.9"),
        pytest.param("udp", "fnat", 100e3, 89e3, False, id="udp below 0.9"),
        pytest.param("crr", "fnat", 10e3, 8.1e3, True, id="crr above 0.8"),
        pytest.param("crr", "nat", 10e3, 7.9e3, False, id="crr below 0.8"),
        pytest.param("bulk", "uncompiled", 10e9, 3.1e9, True, id="uncompiled above 3 Gb/s"),
        pytest.param("bulk", "uncompiled", 3e9, 2.9e9, False, id="uncompiled below 3 Gb/s"),
        pytest.param("bulk", "nat", None, 9e9, None, id="nothing to compare with"),
        pytest.param("bulk", "uncompiled", None, 4e9, True, id="a floor needs no comparison"),
    ],
)
def test_goals(
    speed: ModuleType,
    load: str,
    subject: str,
    limit: float | None,
    value: float,
    reached: bool | None,
) -> None:
    samples = [speed.Sample(1, load, subject, value)]
    if limit is not None:
        samples.append(speed.Sample(1, load, "reflector", limit))
    assert speed.rows(samples)[-1].reached is reached


@pytest.mark.parametrize("mode", ["nat", "fnat"])
def test_configuration_is_one_that_tunlb_takes(speed: ModuleType, mode: str) -> None:
    config = loads(speed.configuration(mode, Path("control.sock")))
    assert [port.name for port in config.ports] == ["lb-out", "lb-in"]
    assert {service.fwdmode for service in config.services} == {mode}
    ports = {service.name: (service.proto, str(service.vport)) for service in config.services}
    assert ports == {"bulk": ("tcp", "5201"), "crr": ("tcp", "7000"), "udp": ("udp", "7001")}


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["--only", "nat,nothing"], id="unknown name"),
        pytest.param(["--rounds", "0"], id="no round"),
        pytest.param(["--seconds", "0.1"], id="too short to mean anything"),
    ],
)
def test_wrong_arguments(
    speed: ModuleType, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        speed.arguments(argv)
    assert left.value.code == 2
    assert argv[0] in capsys.readouterr().err


PROFILE = """\
# callgrind format
events: Ir
fl=(1) first.c
fn=(1) caller
10 5
+2 3
cfn=(2) callee
calls=4 20
+1 400
* 7
fn=(2)
fi=(2) inlined.h
20 380
-3 20
fn=(1)
30 1
totals: 416
"""


def test_self_costs_leave_out_what_callees_spent(memory: ModuleType) -> None:
    costs = memory.self_costs(PROFILE.splitlines(keepends=True))
    assert costs == {"caller": 5 + 3 + 7 + 1, "callee": 400}
    assert sum(costs.values()) == 416


def test_configuration_in_memory_is_one_that_tunlb_takes(memory: ModuleType) -> None:
    config = loads("\n".join(map(json.dumps, memory.CONFIG)))
    assert [neigh.port for neigh in config.neighs] == ["lb-out", "lb-in"]
    (service,) = config.services
    assert (service.fwdmode, len(service.dests)) == ("nat", 1)
