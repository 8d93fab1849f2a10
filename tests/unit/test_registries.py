"""What the configuration may name is what there is, each numbered as in the field."""

from __future__ import annotations

import pytest

from tunlb.conf import FWDMODES, PROTOS, loads
from tunlb.conf.timeouts import PROFILES
from tunlb.ipvs import dest, sched, xmit
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.proto import icmp, sctp, tcp, udp
from tunlb.ipvs.protocol import CLOSING, ESTABLISHED, HALF_OPEN, IDLE
from tunlb.ipvs.timeouts import SLOTS


@pytest.mark.parametrize("name", sched.names())
def test_a_configuration_may_name_every_scheduler(name: str) -> None:
    config = loads(
        '{"kind":"port","name":"lb0","addresses":["10.0.0.254/24"]}\n'
        '{"kind":"service","name":"web","proto":"tcp","vaddr":"10.0.0.100","vport":80,'
        f'"fwdmode":"nat","scheduler":"{name}"}}'
    )
    assert config.services[0].scheduler == name


def test_modes_of_the_configuration_are_those_there_are() -> None:
    assert sorted(FWDMODES) == xmit.names()


@pytest.mark.parametrize("name", sched.names())
def test_a_scheduler_has_its_name_in_its_module(name: str) -> None:
    assert sched.find(name).__module__ == f"tunlb.ipvs.sched.{name}"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("nat", dest.FWD_NAT),
        ("dr", dest.FWD_DR),
        ("bypass", dest.FWD_BYPASS),
        ("fnat", dest.FWD_FNAT),
        ("local", dest.FWD_LOCAL),
        ("snat", dest.FWD_SNAT),
        ("tunnel", dest.FWD_TUNNEL),
    ],
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


@pytest.mark.parametrize("room", [tcp, udp, sctp, icmp], ids=["tcp", "udp", "sctp", "icmp"])
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


@pytest.mark.parametrize(("room", "first"), [(tcp, "SYN_RECV"), (sctp, "COOKIE_SENT")])
def test_only_established_is_never_evicted(room, first: str) -> None:
    protocol = room.PROTOCOL()
    kinds = {name: protocol.kind(i) for i, name in enumerate(protocol.states)}
    assert [name for name, kind in kinds.items() if kind == ESTABLISHED] == ["ESTABLISHED"]
    assert kinds[first] == HALF_OPEN


def test_a_datagrams_flow_may_always_be_evicted() -> None:
    assert {udp.PROTOCOL().kind(i) for i in range(len(udp.STATES))} == {IDLE}
    assert {icmp.PROTOCOL().kind(i) for i in range(len(icmp.STATES))} == {IDLE}


def test_pings_of_both_families_differ_in_their_number_alone() -> None:
    profile = {name: round(s * 1000) for name, s in PROFILES["ipvs"].items()}
    v4, v6 = icmp.PROTOCOL(), icmp.PROTOCOL_V6()
    assert (v4.number, v6.number) == (1, 58)
    assert v4.flags == v6.flags != tcp.PROTOCOL().flags == udp.PROTOCOL().flags == 0
    for state in range(len(icmp.STATES)):
        assert v4.timeouts(profile).of(state) == v6.timeouts(profile).of(state)
