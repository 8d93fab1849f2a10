"""The rooms of `tunlb bench micro`: each does what it is timed for, on either build."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from tunlb.bench.micro import bed, callgrind, drive, report, scenes, size, timing
from tunlb.bench.micro.bed import NOW, Bed
from tunlb.bench.micro.callgrind import difference, readable, self_costs
from tunlb.bench.micro.rooms import Case, Room, all_rooms
from tunlb.bench.micro.timing import Times
from tunlb.conf import Config
from tunlb.conf.load import loads


@pytest.fixture(scope="module")
def base() -> Bed:
    return Bed()


# Those that open a million conns are left to the real run, and Maglev's to its own tests.
SMALL = [r for r in all_rooms() if not r.name.endswith(("100k", "1m")) and r.name != "maglev-build"]


@pytest.mark.parametrize("room", SMALL, ids=lambda room: room.name)
def test_room_takes_what_it_is_given(room: Room, base: Bed) -> None:
    """What a loop returns is how many passes did not go as they should (or a sum, see below)."""
    case = room.make(base)
    count = min(room.count, 64)
    sums = ("lookup", "tcp-state", "checksum")  # these return what they found
    for live in (True, False, True):
        case.before(count)
        wrong = case.run(count, live)
        case.after(count)
        assert room.name.startswith(sums) or not wrong


def test_names_are_unique() -> None:
    names = [room.name for room in all_rooms()]
    assert len(set(names)) == len(names)
    assert report.ESTABLISHED in names


def test_births_and_ends_balance(base: Bed) -> None:
    rooms = {room.name: room for room in all_rooms()}
    conns = base.nursery.director.ipvs.conns
    case = rooms["new-fnat-v4"].make(base)
    assert case.run(50, True) == 0
    assert conns.count == 50
    case.after(50)
    assert conns.count == 0
    ending = rooms["end-fnat-v4"].make(base)
    ending.before(50)
    ending.run(50, False)
    assert conns.count == 50
    ending.run(50, True)
    assert conns.count == 0


@pytest.mark.parametrize("hi", [0, 0x2001_0DB8 << 32], ids=["v4", "v6"])
def test_lookups_find_what_is_there(hi: int) -> None:
    conns = bed.table(128, 100, hi)
    assert drive.lookups(conns, 100, hi, drive.VPORT, 7, 500, True) == 500
    assert drive.lookups(conns, 100, hi, drive.VPORT + 1, 7, 500, True) == 0
    assert drive.lookups(conns, 100, hi, drive.VPORT, 7, 500, False) == 0


def test_crowd_is_established() -> None:
    base = Bed()
    rig = base.crowd(200)
    assert rig.director.ipvs.conns.count == 200
    assert next(rig.director.services()).dests[0].actconns == 200
    frames = list(bed.spread(rig, 200))[1]
    assert drive.walks(rig.director, frames, 200, 3, NOW, 300, True) == 0


def test_conn_fits_its_budget() -> None:
    """By the tables' sizes; the process' growth is measured by the real run."""
    for conn_max in (1 << 20, 1_000_000):
        found = size.by_tables(bed.make_rig(conn_max), 0)
        assert found.row == 128
        assert found.tables <= report.CONN_BYTES


def test_configuration_is_one_that_tunlb_takes() -> None:
    import orjson

    def taken(lines: list[dict[str, Any]]) -> Config:
        return loads("\n".join(orjson.dumps(line).decode() for line in lines))

    config = taken(bed.configuration(64))
    assert len(config.services) == 12
    assert {service.fwdmode for service in config.services} == {"nat", "fnat", "dr"}
    config = taken(scenes.configuration(64))
    assert {service.name for service in config.services} == set(scenes.SCENES)


SEGMENTS = 46  # of 1400 bytes in the frame of 64 KB
SHOWN = {
    "packet-nat64": {"NAT64_PACKETS": 1, "IPVS_IN_PACKETS": 1},
    "reply-nat64": {"NAT64_PACKETS": 1, "IPVS_OUT_PACKETS": 1},
    "packet-toa": {"TOA_SENT": 1, "IPVS_IN_PACKETS": 1},
    "packet-snat": {"IPVS_IN_PACKETS": 1},
    "reply-snat": {"IPVS_OUT_PACKETS": 1},
    "packet-proxy-v2": {"PROXY_SENT": 0, "IPVS_IN_PACKETS": 1},
    "packet-echo": {"IPVS_IN_PACKETS": 1},
    "packet-sctp": {"IPVS_IN_PACKETS": 1},
    "packet-local": {"IPVS_IN_PACKETS": 1},
    "cut-gre-64k": {"SEGMENTS_CUT": SEGMENTS, "IPVS_IN_PACKETS": 1},
    "fragment-first": {"FRAGMENT_FIRST": 1, "FRAGMENT_LATER": 0, "IPVS_IN_PACKETS": 1},
    "fragment-later": {"FRAGMENT_FIRST": 0, "FRAGMENT_LATER": 1, "IPVS_IN_PACKETS": 1},
    "new-persistence": {"CONN_NEW": 1, "TEMPLATE_NEW": 0},
    "new-snat": {"CONN_NEW": 1},
    "new-conn-rate": {"CONN_NEW": 1},
    "syn-answered": {"SYNPROXY_SYNACKS": 1, "CONN_NEW": 0},
    "syn-proven": {"SYNPROXY_CONNS": 1, "CONN_NEW": 1},
}


@pytest.mark.parametrize("name", SHOWN)
def test_scene_is_about_what_its_room_says(name: str, base: Bed) -> None:
    """By the counters of its passes."""
    (room,) = (room for room in all_rooms() if room.name == name)
    case = room.make(base)
    rig = base.scene_nursery if name.startswith(("new-", "syn-")) else base.stage
    case.before(8)
    before = rig.counters()
    case.run(8, True)
    after = rig.counters()
    case.after(8)
    shown = {what: after.get(what, 0) - before.get(what, 0) for what in SHOWN[name]}
    assert shown == {what: 8 * count for what, count in SHOWN[name].items()}
    assert not [what for what in after if what.startswith("drop.")]


def test_templates_of_births_are_gone_afterwards(base: Bed) -> None:
    (room,) = (room for room in all_rooms() if room.name == "new-persistence")
    life = base.scene_nursery.director.ipvs.life
    case = room.make(base)
    case.before(4)
    case.run(4, True)
    assert (life.templates, life.conns.count) == (1, 1 + 5)
    case.after(4)
    assert (life.templates, life.conns.count) == (0, 0)


# ---- times --------------------------------------------------------------------------------------


def test_a_figure_is_the_difference_of_both_legs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr(time, "thread_time_ns", lambda: clock[0])

    def run(n: int, live: bool) -> None:
        clock[0] += n * (130 if live else 30)

    def beside(n: int) -> None:
        clock[0] += 10**9  # not measured

    room = Room("x", "x", lambda base: Case(run, beside, beside), turn_ms=1.0)
    taken = timing.measure([room], Bed(), lambda name: None, turns=5)["x"]
    assert taken.turns == (100,) * 5
    assert (taken.median, taken.spread) == (100, (100, 100))


def test_a_turn_is_long_enough_and_not_above_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr(time, "thread_time_ns", lambda: clock[0])

    def run(n: int, live: bool) -> None:
        clock[0] += n * 100

    case = Case(run)
    free = Room("x", "x", lambda base: case, count=1000, turn_ms=1.0)
    bounded = Room("x", "x", lambda base: case, count=1000, most=3000, turn_ms=1.0)
    assert timing.calibrate(free, case) == 16_000
    assert timing.calibrate(bounded, case) == 3000


def test_goals() -> None:
    times = {
        "packet-nat-v4-tcp": Times((190.0, 201.0, 210.0)),
        "lookup-1k": Times((10.0, 20.0, 10.0)),
        "lookup-1m": Times((12.0, 24.0, 90.0)),
        "maglev-build": Times((40e6,) * 3),
    }
    room = size.Size(row=128, heads=8, timers=8, resident=150)
    found = {goal.title: goal for goal in report.goals(times, room)}
    assert [goal.reached for goal in found.values()] == [False, True, True, True]
    assert found["lookup among 1 M conns over 1 k"].value == pytest.approx(1.2)
    assert list(report.goals({}, None)) == []


# ---- callgrind ----------------------------------------------------------------------------------

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


def test_self_costs_leave_out_what_callees_spent() -> None:
    costs = self_costs(PROFILE.splitlines(keepends=True))
    assert costs == {"caller": 5 + 3 + 7 + 1, "callee": 400}
    assert sum(costs.values()) == 416


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("__pyx_f_5tunlb_4ipvs_4conn_9ConnTable_find", "ipvs.conn.ConnTable.find"),
        ("__pyx_f_5tunlb_8pipeline_2ip_2Ip__parse_transport", "pipeline.ip.Ip._parse_transport"),
        ("__pyx_f_5tunlb_4wire_8checksum_sum16", "wire.checksum.sum16"),
        ("__pyx_f_5tunlb_4wire_4ipv4_parse.part.0", "wire.ipv4.parse.part.0"),
        ("__pyx_pw_5tunlb_8director_8Director_3receive", "director.Director.receive (from Python)"),
        ("_PyEval_EvalFrameDefault", "_PyEval_EvalFrameDefault"),
    ],
)
def test_names_can_be_read(symbol: str, name: str) -> None:
    assert readable(symbol) == name


def test_difference_leaves_our_loops_out() -> None:
    loop = "__pyx_f_5tunlb_5bench_5micro_5drive_packets"
    hook = "__pyx_f_5tunlb_5bench_5micro_5drive_4Pass_run"
    live = Counter({"room": 1000, "both": 500, loop: 90, hook: 30, "noise": 1})
    idle = Counter({"both": 500, loop: 40})
    count = difference(live, idle, 100)
    assert count.functions == {"room": 10.0, "bench.micro.drive.Pass.run": 0.3}
    assert count.instructions == pytest.approx(10.3)


def test_uncompiled_build_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunlb.build", lambda: "uncompiled")
    assert "compiled build only" in str(callgrind.missing())
