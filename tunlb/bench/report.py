"""What a run gave, for people: tables on the terminal, CSV for a spreadsheet, a page with plots."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from tunlb.bench import figures, page
from tunlb.bench.doubts import doubts
from tunlb.bench.figures import AGAINST, CUT_LIMIT, LIMIT, MAIN, VALUE, Row, grouped, number
from tunlb.bench.goals import JUDGED_BY_LIMIT, Verdict, judge
from tunlb.bench.loads import LOADS
from tunlb.bench.samples import Head, Sample, first_line

# Compared with, beside the reflector, in the terminal's table; all of AGAINST are in the files.
COLUMNS: Final = ("haproxy", "nginx", "nftables")
# What a ratio is marked with that is to CUT_LIMIT instead.
ANOTHER: Final = "*"
NOTE: Final = f"{ANOTHER} x {CUT_LIMIT}, whose frames are cut as a tunnel's have to be"
NO_PLOTS: Final = "without plots: matplotlib is not installed (pip install 'tunlb[bench]')"
SAMPLES_CSV: Final = "samples.csv"
SUMMARY_CSV: Final = "summary.csv"
PAGE: Final = "report.html"

Marks = Mapping[tuple[str, str, str, str], Verdict]


def rows_of(head: Head, samples: Sequence[Sample]) -> list[Row]:
    return figures.rows(head, samples, LOADS)


def show(console: Console, head: Head, samples: Sequence[Sample]) -> None:
    """Tables, goals and warnings; readable from 110 columns on."""
    rows = rows_of(head, samples)
    verdicts = judge(head, rows)
    console.print(table(rows, verdicts))
    if percentiles := latencies(rows):
        console.print(percentiles)
    if any(verdict.ratio is not None for verdict in verdicts):
        console.print(goals(verdicts))
    unmeasured = Counter(verdict.why for verdict in verdicts if verdict.ratio is None)
    for why, count in unmeasured.items():
        what = "1 goal" if count == 1 else f"{count} goals"
        console.print(Text(f"{what} not measured: {why}"), soft_wrap=True)
    for name, why in head.skipped.items():
        console.print(Text(f"skipped: {name}: {first_line(why)}"), soft_wrap=True)
    for doubt in doubts(head, samples, rows):
        console.print(Text(f"warning: {doubt}", "yellow"), soft_wrap=True)
    if not _plots_possible():
        console.print(Text(NO_PLOTS), soft_wrap=True)


def write_report(folder: Path, head: Head, samples: Sequence[Sample]) -> list[Path]:
    """Writes CSVs, page and plots into `folder`; the files, the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(head, samples)
    verdicts = judge(head, rows)
    plots = _plots(head, samples) if _plots_possible() else []
    html = page.render(head, rows, verdicts, doubts(head, samples, rows), plots)
    contents = {PAGE: html, **{f"{plot.name}.svg": plot.svg for plot in plots}}
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    _write_csv(folder / SUMMARY_CSV, summary(rows))
    _write_csv(folder / SAMPLES_CSV, flat(samples))
    return [folder / name for name in (*contents, SUMMARY_CSV, SAMPLES_CSV)]


def _plots_possible() -> bool:
    return find_spec("matplotlib") is not None


def _plots(head: Head, samples: Sequence[Sample]) -> list[page.Plot]:
    """Those that the run has something for."""
    from tunlb.bench import plots

    scales = {load.name: load for load in LOADS}
    drawn = ((chart, plots.draw(chart, head, samples, scales)) for chart in plots.CHARTS)
    return [
        page.Plot(chart.name, chart.title, chart.caption, plots.svg(figure))
        for chart, figure in drawn
        if figure is not None
    ]


# ---- the terminal -------------------------------------------------------------------------------


def table(rows: Sequence[Row], verdicts: Sequence[Verdict] = ()) -> Group:
    """One table a load, all with the same columns."""
    marks = {(v.goal.load, v.goal.metric, v.subject, v.goal.against): v for v in verdicts}
    main = [row for row in rows if row.metric in MAIN]
    return Group(*(_load_table(group, marks) for group in grouped(main)))


def _load_table(rows: Sequence[Row], marks: Marks) -> Table:
    scale, metric = rows[0].scale, rows[0].title
    unit = " ".join(filter(None, (metric, scale.unit)))
    lower = ", lower is better" if scale.better == "lower" else ""
    made = _table(
        Text.assemble((scale.name, "bold"), f"  {scale.title}{lower}"),
        Column("subject", min_width=15, no_wrap=True),
        Column(unit, justify="right", min_width=8, no_wrap=True),
        Column("min-max", justify="right", min_width=15, no_wrap=True),
        Column(f"x {LIMIT}", min_width=20, no_wrap=True),
        *(Column(f"x {name}", min_width=7, no_wrap=True) for name in COLUMNS),
        Column("CPU ns/pkt", justify="right", no_wrap=True),
    )
    for row in rows:
        cells = [_ratio(row, name, marks) for name in (row.limit, *COLUMNS)]
        cpu = "" if row.cpu_ns is None else number(row.cpu_ns)
        name = Text(row.subject, "bold" if row.subject in JUDGED_BY_LIMIT else "")
        made.add_row(name, row.shown(row.figure.median), row.extent, *cells, cpu)
    if any(row.limit != LIMIT and row.limit in row.ratios for row in rows):
        made.caption = f"{NOTE}\n "
    return made


def _table(title: Text, *columns: Column) -> Table:
    """Empty, in the style that all tables of the report have."""
    return Table(
        *columns,
        title=title,
        title_justify="left",
        title_style="",
        caption=" ",
        caption_justify="left",
        caption_style="",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )


def _ratio(row: Row, against: str, marks: Marks) -> Text:
    """A row's ratio, with the mark of a goal that is about it."""
    ratio = row.ratio(against)
    if ratio is None:
        return Text("")
    text = f"{ratio.median:.2f}" if against in COLUMNS else str(ratio)
    text += ANOTHER if against == CUT_LIMIT else ""
    verdict = marks.get((row.load, row.metric, row.subject, against))
    if verdict is None:
        return Text(text)
    return Text(f"{text} ok", "green") if verdict.reached else Text(f"{text} no", "red")


def latencies(rows: Sequence[Row]) -> Group | None:
    """The percentiles of each latency side by side, each beside the reflector's."""
    groups = grouped(row for row in rows if row.metric != VALUE)
    return Group(*map(_percentiles, groups)) if groups else None


def _percentiles(rows: Sequence[Row]) -> Table:
    scale = rows[0].scale
    titles = list(dict.fromkeys(row.title for row in rows))
    columns = []
    for title in titles:
        columns.append(Column(f"{title} {scale.unit}", justify="right", min_width=10))
        columns.append(Column(f"x {LIMIT}", min_width=18, no_wrap=True))
    made = _table(
        Text.assemble((scale.name, "bold"), "  percentiles"),
        Column("subject", min_width=15, no_wrap=True),
        *columns,
    )
    found = {(row.subject, row.title): row for row in rows}
    for subject in dict.fromkeys(row.subject for row in rows):
        cells = [subject]
        for title in titles:
            row = found.get((subject, title))
            cells.append(row.shown(row.figure.median) if row else "")
            ratio = row.ratio(LIMIT) if row else None
            cells.append(str(ratio) if ratio else "")
        made.add_row(*cells)
    return made


def goals(verdicts: Sequence[Verdict]) -> Table:
    """Those that were measured."""
    made = _table(
        Text("Goals", "bold"),
        Column("subject", min_width=8),
        Column("goal", min_width=28, no_wrap=True),
        Column("measured", min_width=18, no_wrap=True),
        Column("", overflow="fold"),
    )
    styles = {True: "green", False: "red", None: ""}
    for verdict in verdicts:
        if verdict.ratio is None:
            continue
        made.add_row(
            verdict.subject,
            str(verdict.goal),
            str(verdict.ratio),
            Text(verdict.sentence, styles[verdict.reached]),
        )
    return made


# ---- CSV ----------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> list[dict[str, object]]:
    """One line a row, in the units that are shown."""
    found = []
    for row in rows:
        per = row.scale.per_unit
        line: dict[str, object] = {
            "load": row.load,
            "metric": row.title or VALUE,
            "subject": row.subject,
            "unit": row.scale.unit,
            "median": row.figure.median / per,
            "min": row.figure.low / per,
            "max": row.figure.high / per,
            "rounds": row.figure.n,
        }
        for against in AGAINST:
            ratio = row.ratios.get(against)
            line[f"x_{against}"] = ratio.median if ratio else None
            line[f"x_{against}_min"] = ratio.low if ratio else None
            line[f"x_{against}_max"] = ratio.high if ratio else None
        line["cpu_ns_per_packet"] = row.cpu_ns
        line["cpu_cores"] = row.cpu_cores
        line["notes"] = "; ".join(row.notes)
        found.append(line)
    return found


def flat(samples: Sequence[Sample]) -> list[dict[str, object]]:
    """One line a sample, in base units, each detail a column; distributions are in the raw file."""
    details = sorted({name for sample in samples for name in sample.details})
    return [
        {
            "round": sample.round,
            "load": sample.load,
            "subject": sample.subject,
            "at": sample.at,
            "value": sample.value,
            **{name: sample.details.get(name) for name in details},
            "notes": "; ".join(sample.notes),
        }
        for sample in samples
    ]


def _write_csv(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]) if lines else [])
        writer.writeheader()
        writer.writerows(lines)
