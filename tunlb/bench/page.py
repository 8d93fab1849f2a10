"""The report as one HTML file that needs nothing else: styles and plots are in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal, NamedTuple

from tunlb.bench.figures import AGAINST, Row, grouped, number
from tunlb.bench.goals import JUDGED_BY_LIMIT, Verdict
from tunlb.bench.samples import Head, first_line

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1f2328; --ground: #ffffff; --faint: #d3d7de;
  --soft: #59636e; --good: #116329; --bad: #a40e26; --doubt: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --ground: #14171c; --faint: #3a414b;
  --soft: #9aa4b0; --good: #57c77a; --bad: #ff8a80; --doubt: #3a3013; } }
body { margin: 0 auto; max-width: 76rem; padding: 1rem 1.2rem 4rem; color: var(--ink);
  background: var(--ground); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.soft, figcaption { color: var(--soft); }
figure { margin: 1.2rem 0 2rem; } figcaption { font-size: .9rem; }
figure svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .16rem .7rem .16rem 0; text-align: left; white-space: nowrap; }
.number { text-align: right; } .text { white-space: normal; }
thead th { border-bottom: 1px solid var(--faint); }
tr.load th { padding-top: 1.1rem; border-bottom: 1px solid var(--faint); }
tr.load span { font-weight: normal; color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
ul.doubts { background: var(--doubt); border-radius: 6px; padding: .7rem 1rem .7rem 2rem; }
code { background: color-mix(in srgb, var(--faint) 40%, transparent); padding: .1em .35em;
  border-radius: 4px; overflow-wrap: anywhere; }
"""


class Column(NamedTuple):
    """A column of a table. What it is of is the class of its head and cells, and aligns both."""

    head: str
    kind: Literal["name", "text", "number"]


GOALS: Final = (
    Column("subject", "name"),
    Column("goal", "text"),
    Column("measured", "number"),
    Column("verdict", "text"),
)
FIGURES: Final = (
    Column("subject", "name"),
    Column("", "name"),
    Column("median", "number"),
    Column("min-max", "number"),
    *(Column(f"x {name}", "number") for name in AGAINST),
    Column("CPU/packet", "number"),
    Column("cores", "number"),
)
MACHINE: Final = (Column("", "name"), Column("", "text"))

# A plot has these colours nowhere else, and on a page they become the page's own, so that it can
# be read on a dark one.
INK: Final = "#1f2328"
GRID: Final = "#d3d7de"
GROUND: Final = "#fffffe"


@dataclass(frozen=True)
class Plot:
    """One plot. `svg` is a whole file."""

    name: str
    title: str
    caption: str
    svg: str


def render(
    head: Head,
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
    doubts: Sequence[str],
    plots: Sequence[Plot],
) -> str:
    """The whole page; the plots in the order given, inline."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>tunlb bench, {escape(head.date)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        "<h1>tunlb bench</h1>",
        f'<p class="soft">tunlb {escape(head.tunlb)} {escape(head.commit)} ({escape(head.build)}),'
        f" {escape(head.date)}, {escape(head.cpu)} with {head.cores} cores,"
        f" {escape(head.kernel)}</p>",
        f"<p><code>{escape(head.command)}</code></p>",
        _doubts(doubts),
        "<h2>Goals</h2>",
        _goals(verdicts),
        *map(_plot, plots),
        "<h2>Figures</h2>",
        "<p>Medians of the rounds with lowest and highest. A ratio is taken within each round; the"
        " median of the rounds' ratios is shown, again with lowest and highest.</p>",
        _figures(rows, verdicts),
        "<h2>Machine and programs</h2>",
        _machine(head),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _doubts(doubts: Sequence[str]) -> str:
    if not doubts:
        return ""
    items = "".join(f"<li>{escape(doubt)}</li>" for doubt in doubts)
    return f'<h2>Warnings</h2>\n<ul class="doubts">{items}</ul>'


def _goals(verdicts: Sequence[Verdict]) -> str:
    lines = []
    for verdict in verdicts:
        style = {True: "good", False: "bad", None: "soft"}[verdict.reached]
        cells = [
            escape(verdict.subject),
            escape(str(verdict.goal)),
            str(verdict.ratio or ""),
            f'<span class="{style}">{escape(verdict.sentence)}</span>',
        ]
        lines.append(_row(GOALS, cells))
    return _table(GOALS, lines)


def _figures(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> str:
    marks = {(v.goal.load, v.goal.metric, v.subject, v.goal.against): v for v in verdicts}
    lines = []
    for group in grouped(rows):
        scale = group[0].scale
        lower = ", lower is better" if scale.better == "lower" else ""
        about = f"{scale.title}, {scale.unit}{lower}"
        lines.append(
            f'<tr class="load"><th colspan="{len(FIGURES)}">{escape(scale.name)}'
            f" <span>{escape(about)}</span></th></tr>"
        )
        for row in group:
            name = escape(row.subject)
            cells = [
                f"<b>{name}</b>" if row.subject in JUDGED_BY_LIMIT else name,
                escape(row.title),
                row.shown(row.figure.median),
                row.extent,
                *(_ratio(row, against, marks) for against in AGAINST),
                "" if row.cpu_ns is None else f"{number(row.cpu_ns)} ns",
                "" if row.cpu_cores is None else number(row.cpu_cores),
            ]
            lines.append(_row(FIGURES, cells))
    return _table(FIGURES, lines)


def _ratio(row: Row, against: str, marks: Mapping[tuple[str, str, str, str], Verdict]) -> str:
    ratio = row.ratio(against)
    if ratio is None:
        return ""
    verdict = marks.get((row.load, row.metric, row.subject, against))
    if verdict is None:
        return str(ratio)
    style, mark = ("good", "&#10003;") if verdict.reached else ("bad", "&#10007;")
    return f'<span class="{style}">{ratio} {mark}</span>'


def _machine(head: Head) -> str:
    programs = ", ".join(f"{name} {version}" for name, version in head.programs.items())
    facts = {
        "CPU": f"{head.cpu}, {head.cores} cores for the run",
        "virtualised": head.virtualised or "no",
        "kernel": head.kernel,
        "load average at the start": f"{head.load_average:.2f}",
        "Python": head.python,
        "compiler": head.compiler or "none",
        "programs": programs,
        "rounds and seconds": f"{head.rounds} rounds, {head.seconds:g} s a load",
        "placing": "subject on the last CPU, client and server on the others"
        if head.pinned
        else "left to the kernel",
        **{f"skipped: {name}": first_line(why) for name, why in head.skipped.items()},
    }
    lines = [_row(MACHINE, (escape(name), escape(fact))) for name, fact in facts.items()]
    return _table(MACHINE, lines)


def _row(columns: Sequence[Column], cells: Iterable[str], tag: str = "td") -> str:
    """``cells`` are markup."""
    made = (
        f'<{tag} class="{column.kind}">{cell}</{tag}>'
        for column, cell in zip(columns, cells, strict=True)
    )
    return f"<tr>{''.join(made)}</tr>"


def _table(columns: Sequence[Column], lines: Iterable[str]) -> str:
    heads = [escape(column.head) for column in columns]
    above = f"<thead>{_row(columns, heads, 'th')}</thead>\n" if any(heads) else ""
    return f'<div class="wide"><table>\n{above}' + "\n".join(lines) + "\n</table></div>"


def _plot(plot: Plot) -> str:
    return (
        f"<h2>{escape(plot.title)}</h2>\n<figure>\n{inline(plot.name, plot.svg)}\n"
        f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
    )


def inline(name: str, svg: str) -> str:
    """An SVG file as an element of a page: its ids are of this plot only, its colours the page's.

    What stands before the element (XML declaration, document type) has no place in a page, and the
    metadata name a vocabulary by addresses that look like something to fetch.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r"url\(#", f"url(#{name}-", element)
    element = re.sub(r'href="#', f'href="#{name}-', element)
    for of_plot, of_page in ((INK, "currentColor"), (GRID, "var(--faint)"), (GROUND, "none")):
        element = element.replace(of_plot, of_page)
    return element
