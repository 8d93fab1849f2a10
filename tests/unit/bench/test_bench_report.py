from __future__ import annotations

import csv
import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.bench.bench_run import BASE, HEAD, NOT_UNDER, SPEEDS, Maker, sample
from tunlb.bench import page, report
from tunlb.bench.figures import AGAINST, VALUE
from tunlb.bench.goals import GOALS, Goal
from tunlb.bench.loads import LOADS
from tunlb.bench.samples import Head, Sample
from tunlb.bench.subjects import SUBJECT_NAMES

WIDTH = 110
VOID = frozenset({"meta", "br", "link", "img", "hr"})


def shown(head: Head, samples: list[Sample]) -> str:
    out = io.StringIO()
    report.show(Console(file=out, width=WIDTH, color_system=None), head, samples)
    return out.getvalue()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return Maker().run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> Path:
    """A report without plots, whether or not matplotlib is here."""
    made = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "find_spec", lambda name: None)
        report.write_report(made, HEAD, samples)
    return made


# ---- the terminal -------------------------------------------------------------------------------


def test_tables_fit_and_cut_nothing_off(samples: list[Sample]) -> None:
    text = shown(HEAD, samples)
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "…" not in text


def test_every_load_has_its_table_and_every_subject_its_row(samples: list[Sample]) -> None:
    lines = shown(HEAD, samples).splitlines()
    for load in BASE:
        assert [line for line in lines if line.startswith(f"{load}  ")]
    rows = {name: sum(line.startswith(f"{name} ") for line in lines) for name in SPEEDS}
    assert rows == {name: rows_shown(name) for name in SPEEDS}


def rows_shown(name: str) -> int:
    """One for a load, one more for the percentiles of a latency, and one for each goal."""
    loads = BASE.keys() - NOT_UNDER.get(name, set())
    latencies = {"latency", "latency-70", "first"} & loads
    return len(loads) + len(latencies) + sum(name in goal.subjects for goal in GOALS)


def test_a_tunnel_is_compared_with_what_cuts_frames_too() -> None:
    made = [
        sample("reflector", 10e9),
        sample("reflector-mtu", 4e9),
        sample("fnat", 9.6e9),
        sample("tunnel-gre", 3.92e9),
        sample("reflector", 100e3, load="pps"),
        sample("tunnel-gre", 99e3, load="pps"),
    ]
    found = [" ".join(line.split()) for line in shown(HEAD, made).splitlines()]
    assert "fnat 9.60 0.96 ok" in found
    assert "reflector-mtu 4.00 0.40" in found
    assert "tunnel-gre 3.92 0.98* ok" in found
    assert "tunnel-gre 99.0 0.99 ok" in found
    assert found.count("* x reflector-mtu, whose frames are cut as a tunnel's have to be") == 1
    assert "tunnel-gre bulk >= 0.95 x reflector-mtu 0.98 reached" in found


def test_without_its_limit_a_tunnel_is_compared_with_nothing() -> None:
    found = shown(HEAD, [sample("reflector", 10e9), sample("tunnel", 3.9e9)])
    assert "tunnel 3.90" in [" ".join(line.split()) for line in found.splitlines()]
    assert "* x" not in found


def test_a_row(samples: list[Sample]) -> None:
    made = [
        replace(sample("nat", 9e9, turn=1), details={"cpu_s": 1.0, "packets": 1e6}),
        sample("nat", 8e9, turn=2),
        sample("reflector", 10e9, turn=1),
        sample("reflector", 8e9, turn=2),
        sample("haproxy", 9e9, turn=1),
    ]
    (row,) = [line for line in shown(HEAD, made).splitlines() if line.startswith("nat  ")][:1]
    assert " ".join(row.split()) == "nat 8.50 8.00-9.00 0.95 (0.90-1.00) ok 1.00 no 1,000"


def test_goals_that_were_not_measured_are_counted_by_reason() -> None:
    text = shown(replace(HEAD, loads=("bulk",)), [sample("nat"), sample("reflector")])
    assert "11 goals not measured: crr was not asked for" in text
    assert "1 goal not measured: no round has both nat and haproxy" in text


def test_of_a_long_reason_the_first_line_is_shown() -> None:
    text = shown(replace(HEAD, skipped={"nginx/bulk": "it ended\nand said this"}), [sample()])
    assert "skipped: nginx/bulk: it ended\n" in text
    assert "and said this" not in text


def test_markup_in_a_reason_is_text() -> None:
    assert "skipped: dr: [/red] no" in shown(replace(HEAD, skipped={"dr": "[/red] no"}), [sample()])


def test_warnings_are_there() -> None:
    assert "warning: 1 round of 5 planned: a median needs at least 5" in shown(HEAD, [sample()])


@pytest.mark.parametrize("installed", [True, False])
def test_without_matplotlib_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: object() if installed else None)
    assert ("pip install 'tunlb[bench]'" in shown(HEAD, [sample()])) is not installed


# ---- files --------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_without_plots_the_other_files_are_there(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "samples.csv",
        "summary.csv",
    ]


def test_samples_csv_has_every_sample_in_base_units(folder: Path, samples: list[Sample]) -> None:
    found = lines(folder / "samples.csv")
    assert [(line["load"], line["subject"], float(line["value"])) for line in found] == [
        (each.load, each.subject, each.value) for each in samples
    ]
    for line, each in zip(found, samples, strict=True):
        for name, figure in each.details.items():
            assert float(line[name]) == figure


def test_summary_csv(folder: Path) -> None:
    found = {
        (line["load"], line["metric"], line["subject"]): line
        for line in lines(folder / "summary.csv")
    }
    line = found["bulk", VALUE, "nat"]
    assert (line["unit"], line["rounds"]) == ("Gb/s", "5")
    assert float(line["min"]) <= float(line["median"]) <= float(line["max"]) < 100
    assert float(line["x_reflector"]) == pytest.approx(0.97, rel=0.1)
    assert float(line["cpu_ns_per_packet"]) > 0
    assert found["latency", "p99.9", "nat"]["unit"] == "us"
    assert found["bulk", VALUE, "direct"]["cpu_ns_per_packet"] == ""


def test_a_note_with_separators_survives(tmp_path: Path) -> None:
    report.write_report(tmp_path, HEAD, [sample(notes=('a, "b"\nc',))])
    assert lines(tmp_path / "samples.csv")[0]["notes"] == 'a, "b"\nc'


class Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(html: str) -> None:
    balance = Balance()
    balance.feed(html)
    balance.close()
    assert balance.open == []
    assert balance.fetched == []
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html)
    assert {one or other for one, other in used} <= set(ids)


def test_page_is_whole_and_fetches_nothing(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    check(html)
    for said in (HEAD.command, HEAD.cpu, "bulk &gt;= 0.95 x reflector", "iperf3 3.12", "p99.9"):
        assert said in html


class Tables(HTMLParser):
    """The classes of the cells of each table's rows; of those that span columns there are fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"th", "td"} and "colspan" not in dict(attrs):
            self.tables[-1][-1].append(dict(attrs).get("class"))


def test_a_columns_head_is_aligned_as_its_cells(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    read = Tables()
    read.feed(html)
    tables = [{tuple(row) for row in table if row} for table in read.tables]
    numbers = ("number",) * (2 + len(AGAINST) + 2)
    assert tables == [
        {("name", "text", "number", "text")},
        {("name", "name", *numbers)},
        {("name", "text")},
    ]
    assert '<th class="text">verdict</th>' in html
    assert '<th class="number">median</th>' in html
    aligned = re.findall(r"([^{}]*) \{[^{}]*text-align: (\w+)", page.STYLE)
    assert [(chosen.strip(), side) for chosen, side in aligned] == [
        ("th, td", "left"),
        (".number", "right"),
    ]


def test_page_escapes_what_others_wrote(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    head = replace(HEAD, command=bad, cpu=bad, skipped={"dr": bad}, programs={"wrk": bad})
    html = page.render(head, [], [], [bad], [page.Plot("x", bad, bad, "<svg></svg>")])
    check(html)
    assert bad not in html
    assert html.count("&lt;script&gt;") == 8


def test_an_inline_plot_takes_the_pages_colours() -> None:
    svg = (
        "<?xml version='1.0'?>\n<!DOCTYPE svg>\n<svg><metadata><x/></metadata>"
        f'<g id="a" style="fill: {page.INK}; stroke: {page.GRID}"/>'
        f'<path style="fill: {page.GROUND}"/><use xlink:href="#a" clip-path="url(#a)"/></svg>'
    )
    assert page.inline("pps", svg) == (
        '<svg><g id="pps-a" style="fill: currentColor; stroke: var(--faint)"/>'
        '<path style="fill: none"/><use xlink:href="#pps-a" clip-path="url(#pps-a)"/></svg>'
    )


# ---- plots --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> Path:
    pytest.importorskip("matplotlib")
    made = tmp_path_factory.mktemp("plots")
    report.write_report(made, HEAD, samples)
    return made


PLOTS = ("throughput", "packets", "connections", "latency", "first", "held")


@pytest.mark.parametrize("name", PLOTS)
def test_plot_names_every_subject(drawn: Path, name: str) -> None:
    texts = {(text or "").strip() for text in ET.parse(drawn / f"{name}.svg").getroot().itertext()}
    drawn_there = {
        "throughput": set(SPEEDS),
        "packets": set(SPEEDS) - {"haproxy", "reflector-mtu"},
    }.get(name, set(SPEEDS) - {"reflector-mtu"})
    assert texts & set(SPEEDS) == drawn_there


def test_page_with_plots(drawn: Path) -> None:
    html = (drawn / "report.html").read_text(encoding="utf-8")
    check(html)
    assert html.count("<figure>") == len(PLOTS)


def test_the_same_run_gives_the_same_files(tmp_path: Path, samples: list[Sample]) -> None:
    pytest.importorskip("matplotlib")
    some = [each for each in samples if each.load in ("pps", "first")]
    one, other = (report.write_report(tmp_path / name, HEAD, some) for name in "ab")
    assert len(one) == len(
        ("report.html", "packets.svg", "first.svg", "summary.csv", "samples.csv")
    )
    for left, right in zip(one, other, strict=True):
        assert left.read_bytes() == right.read_bytes()


def test_only_what_was_measured_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = report.write_report(tmp_path, HEAD, [sample("nat", 0.0, load="pps")])
    assert [path.name for path in found if path.suffix == ".svg"] == ["packets.svg"]


def test_unknown_subjects_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = replace(sample("ipvs", 1e-4, load="first"), distribution=((0.0, 1e-4), (0.9, 2e-4)))
    report.write_report(tmp_path, replace(HEAD, subjects=("ipvs",)), [one])
    assert ">ipvs<" in (tmp_path / "first.svg").read_text()


def test_only_a_member_of_a_family_is_hatched() -> None:
    """snat is a mode of its own, nftables-snat a variant of nftables."""
    plots = pytest.importorskip("tunlb.bench.plots", exc_type=ImportError)
    assert plots._variant("snat") == plots._variant("fnat") == ("-", "")
    assert plots._variant("nftables-snat") != ("-", "")
    assert plots.colour("tunnel-gue") == plots.colour("tunnel") != plots.colour("snat")


def test_a_tunnels_limit_is_drawn_over_its_own_bar() -> None:
    plots = pytest.importorskip("tunlb.bench.plots", exc_type=ImportError)
    chart = plots.Chart("t", "t", (plots.Panel("bulk"),))
    made = [sample(name, 1e9) for name in ("reflector", "reflector-mtu", "fnat", "tunnel")]
    figure = plots.draw(chart, HEAD, made, {})
    (lines,) = [c for c in figure.axes[0].collections if c.get_label() == "limit"]
    ((low, high),) = [segment[:, 1] for segment in lines.get_segments()]
    tunnel = [label.get_text() for label in figure.axes[0].get_yticklabels()].index("tunnel")
    assert low < tunnel < high
    assert high - low < 1


Across = Callable[[list[list[tuple[float, float]]]], list[tuple[float, float]]]


@pytest.fixture
def across() -> Across:
    return pytest.importorskip("tunlb.bench.plots", exc_type=ImportError).across  # type: ignore[no-any-return]


def test_a_line_is_the_median_of_the_rounds(across: Across) -> None:
    rounds = [[(0.0, s), (0.5, 2 * s), (0.9, 4 * s), (1.0, 99.0)] for s in (1.0, 7.0, 2.0)]
    points = across(rounds)
    assert points[0] == (0.0, 2.0)
    quantile, seconds = points[-1]
    assert quantile == pytest.approx(0.9)
    assert seconds == pytest.approx(8.0)
    assert [s for _, s in points] == sorted(s for _, s in points)


def test_a_line_goes_as_far_as_half_of_the_rounds(across: Across) -> None:
    rounds = [[(0.0, 1.0), (end, 2.0)] for end in (0.9, 0.99, 0.9999)]
    assert across(rounds)[-1][0] == pytest.approx(0.99)


@pytest.mark.parametrize("rounds", [[], [[]], [[(1.0, 3.0)]]], ids=["none", "empty", "only max"])
def test_no_line(across: Across, rounds: list[list[tuple[float, float]]]) -> None:
    assert across(rounds) == []


def test_the_axis_has_a_unit_for_each_nine() -> None:
    plots = pytest.importorskip("tunlb.bench.plots", exc_type=ImportError)
    assert [plots.left(q) for q in (0.0, 0.9, 0.99)] == pytest.approx([0.0, 1.0, 2.0])
    assert math.isfinite(plots.left(0.999_999))


# ---- docs/bench.md ------------------------------------------------------------------------------

DOCS = Path(__file__).resolve().parents[3] / "docs" / "bench.md"


def first_cells() -> set[str]:
    """What stands in code style in the first column of the tables."""
    cells = re.findall(r"^\| (`[^|]*) \|", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_docs_have_every_load_and_subject() -> None:
    assert not {load.name for load in LOADS} - first_cells()
    assert not set(SUBJECT_NAMES) - first_cells()


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_docs_have_every_goal(goal: Goal) -> None:
    goals = DOCS.read_text(encoding="utf-8").partition("## Goals")[2].partition("\n## ")[0]
    (row,) = [line for line in goals.splitlines() if f"`{goal.load}`" in line]
    sign = ">=" if goal.at_least else "<="
    rival = {"reflector": "the reflector", "haproxy": "HAProxy"}.get(goal.against, goal.against)
    assert [float(f) for f in re.findall(rf"{sign} ([\d.]+) of {rival}", row)] == [goal.factor]
