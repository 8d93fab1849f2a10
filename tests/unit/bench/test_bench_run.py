"""Turns, what becomes of a failure, and what is shown meanwhile. Nothing is measured."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tunlb.bench import plan as planning
from tunlb.bench import progress, run, tools
from tunlb.bench.loads import Load
from tunlb.bench.network import Network, Pins, Standing
from tunlb.bench.plan import Plan, Turn
from tunlb.bench.samples import BenchError, Head, Outcome, Sample, Writer
from tunlb.bench.subjects import Subject
from tunlb.lab.host import Host, LabError
from tunlb.lab.topology import HostSpec

DIRECTOR = Host(HostSpec(name="director", role="director"), "tunlb-test-director")


class FakeNetwork(Network):
    """Nobody is there; who was proved and cleared is noted."""

    def __init__(self) -> None:
        super().__init__("test", tools.Helpers(Path("."), {}), Pins())
        self.proved: list[tuple[str, ...]] = []
        self.cleared = 0

    def prove(self, target: str, protos: Any) -> None:
        self.proved.append((target, *protos))

    def clear(self) -> None:
        self.cleared += 1


def subject(name: str, **more: Any) -> Subject:
    @contextlib.contextmanager
    def stand(_: Network) -> Iterator[Standing]:
        yield Standing(DIRECTOR, f"at {name}", remarks={"held": "few files"})

    return Subject(**{"name": name, "title": name, "stand": stand, **more})


def load(name: str, work: Callable[..., Outcome] | None = None, **more: Any) -> Load:
    def nothing(*_: object) -> Outcome:
        return Outcome(value=3e9)

    fields = {"title": name, "unit": "Gb/s", "per_unit": 1e9, "needs": ()}
    return Load(name=name, run=work or nothing, **{**fields, **more})


def planned(subjects: tuple[Subject, ...], loads: tuple[Load, ...]) -> Plan:
    return Plan(subjects=subjects, loads=loads, skipped={})


def watched(turns: list[Turn], seconds: float = 2.0) -> tuple[progress.View, io.StringIO]:
    written = io.StringIO()
    return progress.View(Console(file=written, width=110), turns, seconds), written


# ---- the plan ------------------------------------------------------------------------------------


def test_turns_go_round_by_round_load_by_load() -> None:
    a, b = subject("a"), subject("b", protos=frozenset({"tcp"}))
    made = planned((a, b), (load("x"), load("y", proto="udp")))
    turns = [(t.round, t.load.name, t.subject.name) for t in made.turns(2)]
    assert turns == [
        (number, *pair) for number in (1, 2) for pair in (("x", "a"), ("x", "b"), ("y", "a"))
    ]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two subjects and two loads, one of each with a need."""
    subjects = (subject("a"), subject("b", missing=lambda: "no b here", needs=("crr",)))
    loads = (load("x"), load("y", needs=("hold",)))
    monkeypatch.setattr(planning, "SUBJECTS", subjects)
    monkeypatch.setattr(planning, "LOADS", loads)


def helpers(**missing: str) -> tools.Helpers:
    return tools.Helpers(Path("."), missing)


@pytest.mark.usefixtures("known")
def test_what_is_missing_is_left_out_and_named() -> None:
    made = planning.plan((), (), helpers(hold="no cc"))
    assert [s.name for s in made.subjects] == ["a"]
    assert [each.name for each in made.loads] == ["x"]
    assert made.skipped == {"b": "no b here", "y": "no cc"}


@pytest.mark.usefixtures("known")
def test_a_helper_that_is_missing_goes_before_other_reasons() -> None:
    assert planning.plan((), (), helpers(crr="no crr")).skipped["b"] == "no crr"


@pytest.mark.usefixtures("known")
def test_only_what_was_asked_for_is_looked_at() -> None:
    made = planning.plan(("a",), ("x",), helpers(hold="no cc"))
    assert made.skipped == {}
    assert len(made.turns(3)) == 3


@pytest.mark.usefixtures("known")
def test_nothing_left_to_measure() -> None:
    with pytest.raises(BenchError, match="nothing is left to measure; b: no b here"):
        planning.plan(("b",), (), helpers())


def test_a_program_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "which", lambda _: None)
    why = planning.why_not(load("x", needs=("wrk",)), helpers())
    assert why == "the command `wrk` is not there: install the package wrk"


@pytest.mark.usefixtures("known")
def test_the_list_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "build", lambda: helpers(hold="no cc"))
    written = io.StringIO()
    planning.listing(Console(file=written, width=110))
    assert [line.split() for line in written.getvalue().splitlines()] == [
        ["subjects:"],
        ["a", "a"],
        ["b", "b", "(not", "here:", "no", "b", "here)"],
        ["loads:"],
        ["x", "x"],
        ["y", "y", "(not", "here:", "no", "cc)"],
    ]


# ---- turns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proto", "proved"), [("tcp", ("tcp",)), ("udp", ("tcp", "udp"))], ids=["tcp", "udp"]
)
def test_a_turn(proto: str, proved: tuple[str, ...]) -> None:
    made = Outcome(value=1.0, details={"packets": 5}, notes=("odd",))
    net = FakeNetwork()
    turn = Turn(2, load("x", lambda *_: made, proto=proto), subject("a"))
    sample = run.take(net, turn, {}, 0.5)
    assert (sample.round, sample.load, sample.subject, sample.value) == (2, "x", "a", 1.0)
    assert sample.notes == ("odd",)
    assert sample.details["packets"] == 5
    assert 0 <= sample.details["steal_share"] <= 1
    assert net.proved == [("at a", *proved)]
    assert net.cleared == 1


def test_what_holds_a_subject_back_is_noted_where_it_matters() -> None:
    samples = [
        run.take(FakeNetwork(), Turn(1, load(name), subject("a")), {}, 0.5)
        for name in ("held", "bulk")
    ]
    assert [sample.notes for sample in samples] == [("few files",), ()]


@pytest.mark.parametrize(
    "error", [BenchError("it broke"), LabError("it broke"), OSError("it broke")], ids=repr
)
def test_what_can_fail_fails_as_a_bench_error(error: Exception) -> None:
    def work(*_: object) -> Outcome:
        raise error

    net = FakeNetwork()
    with pytest.raises(BenchError, match="it broke"):
        run.take(net, Turn(1, load("x", work), subject("a")), {}, 0.5)
    assert net.cleared == 1


def test_a_bug_is_not_taken_for_a_failure() -> None:
    def work(*_: object) -> Outcome:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run.take(FakeNetwork(), Turn(1, load("x", work), subject("a")), {}, 0.5)


def test_a_failure_is_told_and_the_run_goes_on() -> None:
    def work(ends: Any, standing: Standing, _: float) -> Outcome:
        if standing.target == "at b":
            error = BenchError("it broke")
            error.add_note("it wrote: no")
            raise error
        return Outcome(value=2e9)

    turns = planned((subject("a"), subject("b")), (load("x", work),)).turns(4)
    view, written = watched(turns)
    results = [
        (turn.round, turn.subject.name, isinstance(result, Sample))
        for turn, result in run.measure(FakeNetwork(), turns, 0.5, view)
    ]
    # After two failures the pair is left out.
    assert results == [
        (1, "a", True),
        (1, "b", False),
        (2, "a", True),
        (2, "b", False),
        (3, "a", True),
        (4, "a", True),
    ]
    text = written.getvalue()
    assert text.count("FAILED: it broke") == 2
    assert text.count("it wrote: no") == 1
    assert text.count("left out: it failed before") == 2
    assert "[8/8]" in text


def test_figures_of_one_load_are_there_for_another_in_the_same_round() -> None:
    seen: list[tuple[str, dict[str, float]]] = []

    def crr(ends: Any, standing: Standing, _: float) -> Outcome:
        ends.capacity["crr"] = 1.0 if standing.target == "at a" else 2.0
        return Outcome(value=1.0)

    def latency(ends: Any, standing: Standing, _: float) -> Outcome:
        seen.append((standing.target, dict(ends.capacity)))
        ends.capacity["crr"] = 100.0
        return Outcome(value=1.0)

    both = (subject("a"), subject("b"))
    turns = planned(both, (load("crr", crr), load("latency-70", latency))).turns(2)
    view, _ = watched(turns)
    assert len(list(run.measure(FakeNetwork(), turns, 0.5, view))) == 8
    assert seen == [("at a", {"crr": 1.0}), ("at b", {"crr": 2.0})] * 2


# ---- what is shown -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (44.6, "45 s"),
        (91, "2 min"),
        (3540, "59 min"),
        (3590, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_the_estimate_learns_from_earlier_rounds() -> None:
    [first, second] = planned((subject("a"),), (load("x"),)).turns(2)
    estimate = progress.Estimate(2.0)
    assert estimate.of(first) == 2.0 + progress.STAND_S
    for took in (7.0, 9.0, 100.0):
        estimate.learn(first, took)
    assert estimate.of(second) == 9.0
    other = Turn(1, load("held"), subject("a"))
    assert estimate.of(other) > 10.0
    assert estimate.together([first, second, other]) == 18.0 + estimate.of(other)


def test_a_line_for_each_figure() -> None:
    [turn] = turns = planned((subject("nat"),), (load("bulk"),)).turns(1)
    view, written = watched(turns)
    view.begins(turn)
    sample = Sample(round=1, load="bulk", subject="nat", at=0.0, value=8.5e9, notes=("odd",))
    view.ended(turn, sample)
    assert written.getvalue().splitlines() == [
        "1 turns, about 4 s",
        "[1/1] round 1  bulk         nat                   8.50 Gb/s  0 s left  ! odd",
    ]


def test_a_terminal_gets_a_bar_as_well() -> None:
    [turn] = turns = planned((subject("nat"),), (load("bulk"),)).turns(1)
    written = io.StringIO()
    console = Console(file=written, width=110, force_terminal=True)
    with progress.show(console, turns, 2.0) as view:
        view.begins(turn)
        view.ended(turn, Sample(round=1, load="bulk", subject="nat", at=0.0, value=8.5e9))
    assert "8.50 Gb/s" in written.getvalue()
    assert "1/1, 0 s left" in written.getvalue()


# ---- the report ----------------------------------------------------------------------------------


TEXTS = ("date", "command", "cpu", "virtualised", "kernel", "python", "tunlb", "commit")


def head() -> Head:
    texts: dict[str, Any] = dict.fromkeys(TEXTS, "")
    return Head(
        **texts,
        build="compiled",
        compiler="",
        programs={},
        cores=2,
        load_average=0.0,
        seconds=2.0,
        rounds=1,
        pinned=False,
        subjects=("nat",),
        loads=("bulk",),
    )


def raw_file(path: Path, *values: float) -> Path:
    with Writer(path) as writer:
        writer.head(head())
        for value in values:
            writer.sample(Sample(round=1, load="bulk", subject="nat", at=0.0, value=value))
    return path


@pytest.mark.parametrize(("goals", "status"), [(False, 0), (True, 1)], ids=["not asked", "asked"])
def test_a_goal_that_was_not_measured_fails_only_when_goals_are_asked_for(
    goals: bool, status: int, tmp_path: Path
) -> None:
    raw = raw_file(tmp_path / "raw.jsonl", 1e9)
    console = Console(file=io.StringIO(), width=110)
    assert run.conclude(raw, tmp_path / "out", goals, console) == status
    assert list((tmp_path / "out").iterdir())


def test_a_raw_file_without_samples_has_no_report(tmp_path: Path) -> None:
    raw = raw_file(tmp_path / "raw.jsonl")
    with pytest.raises(BenchError, match="no sample"):
        run.conclude(raw, tmp_path, False, Console(file=io.StringIO()))


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path: Path) -> None:
    raw_file(tmp_path / "raw.jsonl", 1e9)
    before = (tmp_path / "raw.jsonl").read_bytes()
    with pytest.raises(BenchError, match="a folder of its own"):
        run.traffic(run.Options(out=tmp_path), Console(file=io.StringIO()))
    assert (tmp_path / "raw.jsonl").read_bytes() == before
