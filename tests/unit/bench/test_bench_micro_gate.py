"""The gate: what a room costs beside its baseline."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from tunlb.bench.micro import callgrind, gate, run
from tunlb.bench.micro.callgrind import Count
from tunlb.bench.micro.rooms import all_rooms

TOOLS = {"arch": "x86_64", "compiler": "gcc 12.2.0"}


def one(before: Count | None, after: Count | None) -> gate.Finding:
    sides = [{} if count is None else {"room": count} for count in (before, after)]
    (finding,) = gate.compare(sides[0], sides[1], {"room"})
    return finding


def flat(instructions: float) -> Count:
    return Count(instructions, {"a": instructions})


@pytest.mark.parametrize(
    ("before", "after", "state", "failed"),
    [
        pytest.param(1000, 1000, "same", False, id="the same"),
        pytest.param(1000, 1030, "same", False, id="3 % more is allowed"),
        pytest.param(1000, 1031, "rose", True, id="above 3 % fails"),
        pytest.param(1000, 970, "same", False, id="3 % less is nothing"),
        pytest.param(1000, 969, "fell", False, id="below 3 % is told"),
        pytest.param(7, 7.4, "same", False, id="less than half an instruction is noise"),
        pytest.param(7, 8, "rose", True, id="one instruction of seven is not"),
    ],
)
def test_limits(before: float, after: float, state: str, failed: bool) -> None:
    finding = one(flat(before), flat(after))
    assert (finding.state, finding.failed) == (state, failed)
    assert (finding.before, finding.after) == (before, after)


def test_room_without_baseline_fails() -> None:
    finding = one(None, flat(5))
    assert (finding.state, finding.failed) == ("new", True)


def test_room_that_was_not_counted_fails() -> None:
    finding = one(flat(5), None)
    assert (finding.state, finding.failed) == ("missing", True)


def test_what_grew_is_named_first_most() -> None:
    before = Count(1000, {"same": 500, "grew": 400, "shrank": 100})
    after = Count(1120, {"same": 500, "grew": 450, "shrank": 60, "came": 110})
    assert one(before, after).functions == (("came", 0.0, 110), ("grew", 400, 450))


def test_what_shrank_is_named_for_a_fall() -> None:
    before = Count(1000, {"same": 900, "gone": 100})
    after = Count(900, {"same": 900})
    assert one(before, after).functions == (("gone", 100, 0.0),)


def test_toolchains_differ_by_what_is_not_the_same() -> None:
    now = {"arch": "x86_64", "compiler": "gcc 14.2.0", "libc": "2.41"}
    assert gate.differing(TOOLS, now) == [
        "compiler: gcc 12.2.0 then, gcc 14.2.0 now",
        "libc: unknown then, 2.41 now",
    ]
    assert gate.differing(TOOLS, TOOLS) == []


def test_toolchain_is_known_on_either_build() -> None:
    assert set(gate.toolchain()) == {"arch", "compiler", "cython", "libc", "python", "valgrind"}


# ---- the file -----------------------------------------------------------------------------------


def test_baseline_keeps_what_counts(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    gate.write(path, TOOLS, {"room": Count(1000, {"big": 998.0, "small": 1.1, "tiny": 0.9})})
    old = gate.read(path)
    assert old.toolchain == TOOLS
    assert old.rooms == {"room": Count(1000, {"big": 998.0, "small": 1.1})}
    # What was not kept is not taken for what grew.
    slower = Count(1100, {"big": 1098.0, "small": 1.1, "tiny": 0.9})
    assert gate.compare(old.rooms, {"room": slower}, {"room"})[0].functions == (
        ("big", 998.0, 1098.0),
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "there is no baseline", id="no file"),
        pytest.param("{", "is no baseline", id="no JSON"),
        pytest.param("[]", "is no baseline", id="not an object"),
        pytest.param('{"toolchain": {}}', "is no baseline", id="no rooms"),
        pytest.param('{"toolchain": {}, "rooms": {"a": {}}}', "is no baseline", id="no figure"),
    ],
)
def test_unusable_baseline(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(gate.BaselineError, match=says) as caught:
        gate.read(path)
    assert "--update" in str(caught.value)


def test_committed_baseline_has_the_rooms() -> None:
    baseline = gate.read(Path(__file__).resolve().parents[3] / "bench" / "baseline.json")
    assert sorted(baseline.rooms) == sorted(room.name for room in all_rooms() if room.counted)
    for name, count in baseline.rooms.items():
        assert sum(count.functions.values()) == pytest.approx(count.instructions, rel=0.05), name


# ---- the verb -----------------------------------------------------------------------------------

Gate = Callable[..., tuple[int, str]]


@pytest.fixture
def verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Gate:
    """Runs the verb with counts that nobody counted; status and what it printed."""

    def call(counts: dict[str, Count], *argv: str) -> tuple[int, str]:
        monkeypatch.setattr(callgrind, "missing", lambda: None)
        monkeypatch.setattr(
            callgrind, "count", lambda names, done: {n: counts[n] for n in names if n in counts}
        )
        return run.main(options(*argv)), capsys.readouterr().out

    return call


def options(*argv: str) -> Namespace:
    parser = ArgumentParser()
    run.add_arguments(parser)
    return parser.parse_args(argv)


def full(instructions: float) -> dict[str, Count]:
    return {room.name: flat(instructions) for room in all_rooms() if room.counted}


def test_rise_fails_by_name_with_both_figures(verb: Gate, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    assert verb(full(1000), "--update", str(path))[0] == 0
    slower = full(1000) | {"tcp-state": Count(1100, {"a": 1000, "b": 100})}
    status, said = verb(slower, "--check", str(path))
    assert status == 1
    assert "tcp-state: rose by 10.0%, from 1,000 to 1,100 instructions" in said
    assert "b: 0.0 -> 100" in said
    assert f"1 of {len(full(1))} rooms failed: tcp-state" in said


def test_check_with_update_records_falls_and_never_a_rise(verb: Gate, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    both = ("--check", str(path), "--update", str(path))
    verb(full(1000), "--update", str(path))
    faster = full(1000) | {"track": flat(500)}
    status, said = verb(faster, *both)
    assert (status, gate.read(path).rooms["track"].instructions) == (0, 500)
    assert "track: fell by 50.0%, from 1,000 to 500 instructions" in said
    assert verb(full(1000), *both)[0] == 1
    assert gate.read(path).rooms["track"].instructions == 500


def test_part_of_the_rooms(verb: Gate, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    verb(full(1000), "--update", str(path))
    assert verb(full(2000), "--only", "track", "--update", str(path))[0] == 0
    rooms = gate.read(path).rooms
    assert (rooms["track"].instructions, rooms["hooks-1"].instructions) == (2000, 1000)
    status, said = verb(full(1000), "--only", "hooks", "--check", str(path))
    assert (status, "3 rooms within 3%" in said) == (0, True)


def test_new_and_missing_rooms_fail(verb: Gate, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    rooms = full(1000)
    del rooms["track"]
    gate.write(path, gate.toolchain(), rooms | {"gone": flat(1)})
    status, said = verb(full(1000), "--check", str(path))
    assert status == 1
    assert f"2 of {len(full(1)) + 1} rooms failed: track, gone" in said


def test_other_toolchain_is_told(verb: Gate, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    gate.write(path, {**gate.toolchain(), "compiler": "gcc 1.0"}, full(1000))
    assert "compiler: gcc 1.0 then" in verb(full(1000), "--check", str(path))[1]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        pytest.param(["--only", "nothing"], "no such room", id="unknown room"),
        pytest.param(
            ["--check", "x", "--no-callgrind"], "--no-callgrind", id="a gate that cannot count"
        ),
    ],
)
def test_wrong_arguments(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(options(*argv)) == 2
    assert says in capsys.readouterr().err


def test_gate_fails_where_nothing_can_be_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(callgrind, "missing", lambda: "no valgrind; apt-get install valgrind")
    assert run.main(options("--check", "x")) == 1
    assert "apt-get install valgrind" in capsys.readouterr().out
