from __future__ import annotations

import json
import math
import platform
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.unit.bench.bench_run import HEAD, Maker, sample
from tunlb.bench import machine
from tunlb.bench.samples import BenchError, Outcome, Sample, Writer, read

HEAD_LINE = json.dumps({"kind": "head", **vars(HEAD)}) + "\n"
SAMPLE_LINE = json.dumps({"kind": "sample", **vars(sample())}) + "\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "raw.jsonl"


def test_what_is_written_is_read(raw: Path) -> None:
    samples = [*Maker().run(rounds=2), sample(notes=("the sender was the limit",))]
    with Writer(raw) as writer:
        writer.head(HEAD)
        for each in samples:
            writer.sample(each)
    assert read(raw) == (HEAD, samples)


def test_each_line_is_on_disk_at_once(raw: Path) -> None:
    with Writer(raw) as writer:
        writer.head(HEAD)
        assert read(raw) == (HEAD, [])
        writer.sample(sample())
        assert read(raw) == (HEAD, [sample()])


def test_any_mapping_can_be_written(raw: Path) -> None:
    one = replace(sample(), details=MappingProxyType({"cpu_s": 1.5}))
    with Writer(raw) as writer:
        writer.head(replace(HEAD, programs=MappingProxyType({"wrk": "4"})))
        writer.sample(one)
    head, (found,) = read(raw)
    assert (head.programs, found.details) == ({"wrk": "4"}, {"cpu_s": 1.5})


def test_what_failed_is_in_the_head(raw: Path) -> None:
    with Writer(raw) as writer:
        writer.head(replace(HEAD, skipped={"dr": "no bridge"}))
        writer.skipped("nginx", "udp-bulk", "no answer\nfrom it")
    head, _ = read(raw)
    assert head.skipped == {"dr": "no bridge", "nginx/udp-bulk": "no answer\nfrom it"}


def test_half_a_last_line_is_left_out(raw: Path) -> None:
    raw.parent.mkdir(parents=True)
    raw.write_text(HEAD_LINE + SAMPLE_LINE + SAMPLE_LINE[:-20])
    assert read(raw) == (HEAD, [sample()])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "holds no run", id="empty"),
        pytest.param("{]\n", "raw.jsonl:1: not a line", id="no JSON"),
        pytest.param("[1]\n", "raw.jsonl:1: not a line", id="no object"),
        pytest.param('{"round": 1}\n', "raw.jsonl:1: not a line", id="no kind"),
        pytest.param(SAMPLE_LINE, "raw.jsonl:1: a line 'sample' has no place", id="no head"),
        pytest.param(HEAD_LINE * 2, "raw.jsonl:2: a line 'head' has no place", id="two runs"),
        pytest.param(HEAD_LINE + '{"kind": "x"}\n', "raw.jsonl:2: a line 'x'", id="unknown"),
        pytest.param(
            HEAD_LINE + SAMPLE_LINE.replace("1.0,", '"fast",', 1),
            "raw.jsonl:2: Expected `float`, got `str` - at `$.value`",
            id="wrong type",
        ),
    ],
)
def test_what_is_no_raw_file_is_refused(raw: Path, text: str, says: str) -> None:
    raw.parent.mkdir(parents=True)
    raw.write_text(text)
    with pytest.raises(BenchError) as refused:
        read(raw)
    assert says in str(refused.value)


def test_a_missing_file_is_named(raw: Path) -> None:
    with pytest.raises(BenchError, match=r"raw\.jsonl: No such file"):
        read(raw)


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["value", "p99_s"])
def test_a_figure_is_finite(name: str, figure: float) -> None:
    value = figure if name == "value" else 1.0
    with pytest.raises(BenchError, match=name):
        Outcome(value=value, details={"p99_s": figure})


def test_details_are_not_shared() -> None:
    one, other = (Sample(round=1, load="a", subject="b", at=0.0, value=1.0) for _ in range(2))
    assert one.details == {}
    assert one.details is not other.details


# ---- the machine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t: fpu\n", "Some CPU @ 3 GHz"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", platform.machine()),
        ("", platform.machine()),
    ],
    ids=["named", "arm64", "no /proc"],
)
def test_cpu_model(cpuinfo: str, model: str) -> None:
    assert machine.cpu_model(cpuinfo) == model


def test_an_installation_has_no_commit(tmp_path: Path) -> None:
    assert machine.commit(tmp_path) == ""


def test_versions_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that ends with 1, one that says nothing useful, and one that is not there."""
    monkeypatch.setattr(machine, "_path", lambda: str(tmp_path))
    for name, script in (("wrk", "echo wrk 4.1.0-3 >&2; exit 1"), ("nginx", "echo hello")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    assert machine.versions() == {"wrk": "4.1.0-3", "nginx": "?"}


def test_head_quotes_the_command() -> None:
    head = machine.head(
        command=["tunlb", "bench", "--out", "a b"],
        seconds=2.0,
        rounds=5,
        pinned=False,
        subjects=["nat"],
        loads=["bulk"],
        skipped={},
    )
    assert head.command == "tunlb bench --out 'a b'"
    assert head.cores >= 1
