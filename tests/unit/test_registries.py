"""What the configuration may name is what there is, each numbered as in the field."""

from __future__ import annotations

import pytest

from tunlb.conf import FWDMODES, PROTOS, SCHEDULERS
from tunlb.conf.schema import PROFILES
from tunlb.ipvs import dest, sched, xmit
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.proto import tcp, udp
from tunlb.ipvs.protocol import CLOSING, ESTABLISHED, HALF_OPEN, IDLE
from tunlb.ipvs.timeouts import SLOTS


def test_schedulers_of_the_configuration_are_those_there_are() -> None:
    assert sorted(SCHEDULERS) == sched.names()


def test_modes_of_the_configuration_are_those_there_are() -> None:
    assert sorted(FWDMODES) == xmit.names()


@pytest.mark.parametrize("name", sched.names())
def test_a_scheduler_has_its_name_in_its_module(name: str) -> None:
    assert sched.find(name).__module__ == f"tunlb.ipvs.sched.{name}"


@pytest.mark.parametrize(
    ("name", "number"), [("nat", dest.FWD_NAT), ("dr", dest.FWD_DR), ("fnat", dest.FWD_FNAT)]
)
def test_a_mode_has_the_number_of_the_field(name: str, number: int) -> None:
    mode = xmit.find(name)(LportPools())
    assert isinstance(mode, Mode)
    assert mode.number == number


def test_modes_have_numbers_of_their_own() -> None:
    numbers = [xmit.find(name).number for name in xmit.names()]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) >= 0


@pytest.mark.parametrize("find", [sched.find, xmit.find])
@pytest.mark.parametrize("name", ["nosuch", "", "__init__", "../rr"])
def test_an_unknown_name_is_a_key_error(find, name: str) -> None:
    with pytest.raises(KeyError):
        find(name)


@pytest.mark.parametrize("room", [tcp, udp], ids=["tcp", "udp"])
def test_every_state_has_a_kind_and_a_timeout_in_every_profile(room) -> None:
    protocol = room.PROTOCOL()
    assert protocol.name in PROTOS
    assert len(protocol.states) <= SLOTS
    for profile in PROFILES.values():
        timeouts = protocol.timeouts({name: round(s * 1000) for name, s in profile.items()})
        for state, name in enumerate(protocol.states):
            assert (
                timeouts.of(state) == round(profile[f"{protocol.name}_{name.lower()}"] * 1000) > 0
            )
            assert protocol.kind(state) in (HALF_OPEN, CLOSING, IDLE, ESTABLISHED)


def test_only_established_tcp_is_never_evicted() -> None:
    protocol = tcp.PROTOCOL()
    kept = [name for i, name in enumerate(protocol.states) if protocol.kind(i) == ESTABLISHED]
    assert kept == ["ESTABLISHED"]
    first = {name for i, name in enumerate(protocol.states) if protocol.kind(i) == HALF_OPEN}
    assert {"SYN_RECV", "SYN_SENT"} <= first
    assert {udp.PROTOCOL().kind(i) for i in range(len(udp.STATES))} == {IDLE}
