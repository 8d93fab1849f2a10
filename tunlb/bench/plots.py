"""The plots of a report, by matplotlib: bars for rates, lines for latencies, as SVG.

The only module that imports matplotlib; who has none gets a report without plots.
"""

from __future__ import annotations

import bisect
import io
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tunlb.bench.figures import (
    LIMIT,
    VALUE,
    BareScale,
    Scale,
    Spread,
    limit_of,
    number,
    spread,
)
from tunlb.bench.page import GRID, GROUND, INK
from tunlb.bench.samples import Head, Sample

# Okabe and Ito's colours, which stay apart for colour-blind readers. A family shares one; tunlb's
# have the strongest.
COLOURS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "nat": "#0072b2",
        "fnat": "#d55e00",
        "dr": "#009e73",
        "snat": "#8c564b",
        "tunnel": "#6a3d9a",
        "reflector": INK,
        "direct": "#8a8f98",
        "nftables": "#cc79a7",
        "haproxy": "#e69f00",
        "nginx": "#56b4e9",
    }
)
OTHER: Final = "#8a8f98"
OWN: Final = frozenset({"nat", "fnat", "dr", "snat", "tunnel"})

# Members of a family: by the end of their name. (line, hatch)
VARIANTS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "2w": ("--", "///"),
        "uncompiled": (":", "xxx"),
        "snat": ("--", "///"),
        "mtu": ("--", "///"),
        "gre": ("--", "///"),
        "gue": (":", "xxx"),
    }
)

STYLE: Final[Mapping[str, object]] = MappingProxyType(
    {
        "font.size": 9.0,
        "axes.titlesize": 9.5,
        "savefig.facecolor": GROUND,
        "axes.facecolor": "none",
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "hatch.linewidth": 0.6,
        "svg.fonttype": "none",
        # ids come from this and the content, so that the same data gives the same file
        "svg.hashsalt": "tunlb",
    }
)

PANEL_INCHES: Final = 2.45
TITLE_CHARS: Final = 32  # what fits over a panel of bars
NAMES_INCHES: Final = 1.35
BAR_INCHES: Final = 0.27
LINES_INCHES: Final = (5.2, 4.3)
LEGEND_INCHES: Final = 1.5
# The quantiles with a tick; between them the axis is logarithmic in what is left above.
QUANTILES: Final = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
STEPS: Final = 20  # points of a line for each factor of ten that is left above


@dataclass(frozen=True)
class Panel:
    """Bars of one load: its value, or one of its details with a scale of its own."""

    load: str
    metric: str = VALUE
    scale: Scale | None = None  # None: the load's
    limited: bool = True  # the reflector's figure is the limit of the others'


@dataclass(frozen=True)
class Chart:
    """One file: bars, or lines of a latency's distribution, side by side."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    lines: bool = False

    @property
    def caption(self) -> str:
        if self.lines:
            return (
                "The median of the rounds at each share; both axes are logarithmic."
                " The reflector is drawn over the others."
            )
        return (
            "The median of the rounds; whiskers: lowest and highest. Dashed: the reflector; over a"
            " tunnel's bar alone, the reflector that cuts frames as a tunnel has to."
        )


def _panels(*loads: str) -> tuple[Panel, ...]:
    return tuple(Panel(load) for load in loads)


CHARTS: Final = (
    Chart(
        "throughput",
        "Throughput",
        _panels("bulk", "bulk-down", "bulk-8", "bulk-8-down", "udp-bulk"),
    ),
    Chart("packets", "Packet rate", _panels("pps", "pps-lossless")),
    Chart("connections", "Connections per second", _panels("crr", "http")),
    Chart("latency", "Latency of a request", _panels("latency", "latency-70"), lines=True),
    Chart("first", "First-packet latency: a new connection", _panels("first"), lines=True),
    Chart(
        "held",
        "Connections held open",
        (
            Panel("held"),
            Panel("held", "open_rate", BareScale("held", "opened per second", "k/s", 1e3)),
            Panel("held", "bytes_per_conn", BareScale("held", "memory for each", "bytes"), False),
        ),
    ),
)


def draw(
    chart: Chart, head: Head, samples: Sequence[Sample], scales: Mapping[str, Scale]
) -> Figure | None:
    """None when the run has nothing of it."""
    panels = [panel for panel in chart.panels if _measured(panel, samples, lines=chart.lines)]
    if not panels:
        return None
    # matplotlib's types know every key by name, and a mapping's keys are any strings
    with mpl.rc_context(dict(STYLE)):  # type: ignore[arg-type]
        if chart.lines:
            return _lines(panels, head, samples, scales)
        return _bars(panels, head, samples, scales)


def svg(figure: Figure) -> str:
    """The file's text. The same figure gives the same text."""
    text = io.StringIO()
    with mpl.rc_context(dict(STYLE)):  # type: ignore[arg-type]
        figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return text.getvalue()


def balanced(text: str, width: int) -> str:
    """Lines of about the same length."""
    lines = len(textwrap.wrap(text, width))
    while width > 1 and len(textwrap.wrap(text, width - 1)) == lines:
        width -= 1
    return textwrap.fill(text, width)


def colour(subject: str) -> str:
    return COLOURS.get(_family(subject), OTHER)


def _family(subject: str) -> str:
    return subject.rpartition("-")[0] or subject


def _variant(subject: str) -> tuple[str, str]:
    _, dash, end = subject.rpartition("-")
    return VARIANTS.get(end if dash else "", ("-", ""))


def _measured(panel: Panel, samples: Sequence[Sample], *, lines: bool) -> bool:
    return any(
        sample.load == panel.load
        and (sample.distribution if lines else _figure(sample, panel.metric) is not None)
        for sample in samples
    )


def _figure(sample: Sample, metric: str) -> float | None:
    return sample.value if metric == VALUE else sample.details.get(metric)


def _scale(panel: Panel, scales: Mapping[str, Scale]) -> Scale:
    return panel.scale or scales.get(panel.load) or BareScale(panel.load, panel.load)


# ---- bars ---------------------------------------------------------------------------------------


def _bars(
    panels: Sequence[Panel], head: Head, samples: Sequence[Sample], scales: Mapping[str, Scale]
) -> Figure:
    loads = {panel.load for panel in panels}
    present = {sample.subject for sample in samples if sample.load in loads}
    subjects = [name for name in head.subjects if name in present]
    figure = Figure(
        figsize=(
            NAMES_INCHES + PANEL_INCHES * len(panels),
            0.9 + BAR_INCHES * len(subjects),
        ),
        layout="constrained",
    )
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for panel, axes in zip(panels, grid[0], strict=True):
        by_subject = {
            name: [
                value
                for sample in samples
                if sample.load == panel.load
                and sample.subject == name
                and (value := _figure(sample, panel.metric)) is not None
            ]
            for name in subjects
        }
        scale = _scale(panel, scales)
        spreads = {name: spread(found) for name, found in by_subject.items() if found}
        limits = {name: limit_of(name, panel.load) for name in subjects} if panel.limited else {}
        _bar_panel(axes, subjects, spreads, scale, limits)
    first = grid[0][0]
    first.set_yticks(range(len(subjects)), subjects)
    first.invert_yaxis()
    for label in first.get_yticklabels():
        if _family(label.get_text()) in OWN:
            label.set_fontweight("bold")
    return figure


def _bar_panel(
    axes: Axes,
    subjects: Sequence[str],
    spreads: Mapping[str, Spread],
    scale: Scale,
    limits: Mapping[str, str],
) -> None:
    """`limits` names each subject's limit; the reflector's goes through all bars."""
    per = scale.per_unit
    lines = {
        name: spreads[limit].median / per for name, limit in limits.items() if limit in spreads
    }
    whole = lines.get(LIMIT)
    top = max(found.high for found in spreads.values()) / per or 1.0
    for y, name in enumerate(subjects):
        if name not in spreads:
            axes.text(top * 0.02, y, "not measured", va="center", color=OTHER, fontsize=8)
            continue
        found = spreads[name]
        median, low, high = found.median / per, found.low / per, found.high / per
        axes.barh(
            y,
            median,
            height=0.68,
            color=colour(name),
            hatch=_variant(name)[1],
            edgecolor="white",
            linewidth=0,
            alpha=1.0 if _family(name) in OWN else 0.75,
        )
        if found.n > 1:
            whisker = [[median - low], [high - median]]
            axes.errorbar(
                median, y, xerr=whisker, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2.2
            )
        end = high + top * 0.03
        line = lines.get(name)
        if line is not None and limits[name] != LIMIT:
            of_it = axes.vlines(line, y - 0.45, y + 0.45, color=INK, linewidth=0.9, label="limit")
            of_it.set_linestyle((0, (4, 3)))
        else:
            line = whole
        if line is not None and end - top * 0.02 < line < end + top * 0.15:
            end = line + top * 0.02
        axes.text(end, y, number(median), va="center", fontsize=8)
    if whole is not None:
        axes.axvline(whole, color=INK, linestyle=(0, (4, 3)), linewidth=0.9)
    axes.set_xlim(0, top * 1.28)
    axes.set_title(f"{balanced(scale.title, TITLE_CHARS)}\n{scale.unit}")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:,g}"))


# ---- lines --------------------------------------------------------------------------------------


def _lines(
    panels: Sequence[Panel], head: Head, samples: Sequence[Sample], scales: Mapping[str, Scale]
) -> Figure:
    width, height = LINES_INCHES
    figure = Figure(figsize=(width * len(panels) + LEGEND_INCHES, height), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for panel, axes in zip(panels, grid[0], strict=True):
        scale = _scale(panel, scales)
        for subject in head.subjects:
            rounds = [
                sample.distribution
                for sample in samples
                if sample.load == panel.load and sample.subject == subject and sample.distribution
            ]
            if rounds:
                _line(axes, subject, rounds, scale.per_unit)
        _line_axes(axes, scale)
    grid[0][0].set_ylabel(_scale(panels[0], scales).unit)
    found = {
        label: handle
        for axes in grid[0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = [name for name in head.subjects if name in found]
    figure.legend(
        [found[name] for name in labels], labels, loc="outside right center", frameon=False
    )
    return figure


def _line(
    axes: Axes,
    subject: str,
    rounds: Sequence[Sequence[tuple[float, float]]],
    per_unit: float,
) -> None:
    points = across(rounds)
    own = _family(subject) in OWN
    axes.plot(
        [left(quantile) for quantile, _ in points],
        [seconds / per_unit for _, seconds in points],
        label=subject,
        color=colour(subject),
        linestyle=_variant(subject)[0],
        linewidth=2.0 if own else 1.2,
        # the limit stays visible where tunlb's lines lie on it
        zorder=4 if subject == LIMIT else 3 if own else 2,
    )


def _line_axes(axes: Axes, scale: Scale) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda y, _: f"{y:,g}"))
    axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    ends = [float(line.get_xdata()[-1]) for line in axes.get_lines()]  # type: ignore[index, arg-type]
    ticks = [quantile for quantile in QUANTILES if left(quantile) <= max(ends) + 0.05]
    axes.set_xticks([left(q) for q in ticks], [_percent(q) for q in ticks])
    axes.set_xlim(0, max(ends) * 1.02)
    axes.set_title(balanced(scale.title, 2 * TITLE_CHARS))
    axes.set_xlabel("share of the requests that were at least this fast")
    axes.grid()
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _percent(quantile: float) -> str:
    """The least quantile stands close to the median, so it goes without the sign."""
    return f"{quantile * 100:.7g} %" if quantile else "0"


def left(quantile: float) -> float:
    """Where a quantile lies on the axis: one unit for each factor of ten that is left above it."""
    return -math.log10(1.0 - quantile)


def across(rounds: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The median of the rounds at each quantile, as far as half of the rounds go.

    The quantile 1, the slowest of all, has no place on the axis and is left out.
    """
    lines = [
        [(left(quantile), seconds) for quantile, seconds in points if quantile < 1.0]
        for points in rounds
    ]
    lines = [line for line in lines if line]
    if not lines:
        return []
    end = statistics.median_low(line[-1][0] for line in lines)
    found = []
    for step in range(math.floor(end * STEPS + 0.5) + 1):
        x = min(step / STEPS, end)
        seconds = [_at(line, x) for line in lines if line[-1][0] >= x]
        found.append((1.0 - 10.0**-x, statistics.median(seconds)))
    return found


def _at(line: Sequence[tuple[float, float]], x: float) -> float:
    """On the straight way between the two points around x; the first one's before it."""
    after = bisect.bisect_left(line, (x,))
    if after == 0:
        return line[0][1]
    if after == len(line):
        return line[-1][1]
    (x0, y0), (x1, y1) = line[after - 1], line[after]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
