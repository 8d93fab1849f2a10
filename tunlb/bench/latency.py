"""Loads that measure time: of a request and its response, and of a new connection."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tunlb.bench import tcp
from tunlb.bench.generators import (
    GRACE_S,
    Run,
    check_failures,
    children_cpu_s,
    figures,
    run,
    said,
    serving,
    whole,
)
from tunlb.bench.network import CRR_PORT, LATENCY_PORT, Ends, Standing
from tunlb.bench.samples import BenchError, Outcome

# sockperf leaves out what it measures in its first 0.4 s and last 0.05 s. Before it begins it
# sleeps for 2 s, and no option spares that.
WARM_UP_S: Final = 0.45
LOADED: Final = 0.7  # of what the subject can do
HELD_UP: Final = 0.95  # of the background's rate: below it, the load was not what it is called
CAPACITY_S: Final = 1.0
FEW: Final = 1000  # observations; p99.9 of fewer is the worst one
_COLUMNS: Final = ("packet", "sent", "received", "round_trip_us")

NAMED: Final = (("p50_s", 0.5), ("p99_s", 0.99), ("p999_s", 0.999), ("p9999_s", 0.9999))
# Each per cent, then 20 points for each further nine: the tail is what is looked at.
GRID: Final = tuple(
    sorted(
        {
            *(percent / 100 for percent in range(100)),
            *(1 - 10 ** (-2 - step / 20) for step in range(1, 60)),
            *(quantile for _, quantile in NAMED),
            1.0,
        }
    )
)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest observation that `share` of them do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def spread(times: Iterable[float]) -> tuple[dict[str, float], tuple[tuple[float, float], ...]]:
    """Named percentiles, and at most 200 points of the distribution, of at least one time."""
    ordered = sorted(times)
    named = {name: quantile(ordered, share) for name, share in NAMED}
    details = {**named, "max_s": ordered[-1], "observations": float(len(ordered))}
    # Points closer to each other than two observations are would only repeat them.
    finest = 1 - 1 / len(ordered)
    always = {1.0, *(share for _, share in NAMED)}
    points = [share for share in GRID if share <= finest or share in always]
    return details, tuple((share, quantile(ordered, share)) for share in points)


def outcome(times: Sequence[float], extra: dict[str, float], notes: Iterable[str] = ()) -> Outcome:
    """An outcome whose value is the median of these times, in seconds."""
    details, distribution = spread(times)
    few = [f"only {len(times)} observations"] if len(times) < FEW else []
    return Outcome(
        value=details["p50_s"],
        details={**extra, **details},
        distribution=distribution,
        notes=(*notes, *few),
    )


def idle(ends: Ends, standing: Standing, seconds: float) -> Outcome:
    """sockperf's ping-pong over one TCP connection; round trips, with nothing else to do."""
    made, times = _ping_pong(ends, standing, whole(seconds + WARM_UP_S))
    return outcome(times, dict(made.details))


def loaded(ends: Ends, standing: Standing, seconds: float) -> Outcome:
    """The same while crr keeps the subject at LOADED of the exchanges that it can do."""
    if "crr" not in ends.capacity:
        tcp.crr(ends, standing, min(seconds, CAPACITY_S))
    wanted = LOADED * ends.capacity["crr"]
    time_s = whole(seconds + WARM_UP_S)
    tool = str(ends.tool("crr"))
    background = [tool, "client", standing.target, str(CRR_PORT), "-c", str(4 * tcp.OPEN)]
    # SIGTERM ends it: it lasts as long as sockperf does. More slots than it needs, for its pace.
    background += ["-r", f"{wanted:.1f}", "-t", f"{time_s + 2 * GRACE_S:g}"]
    with (
        serving(ends, [tool, "server", str(CRR_PORT)], "ready"),
        ends.child(ends.client, background) as crr,
    ):
        made, times = _ping_pong(ends, standing, time_s)
        begun = children_cpu_s()
        text = crr.stop()
        crr_s = children_cpu_s() - begun
    found = figures(text, "crr")
    rate, errors = float(found["rate"]), float(found["errors"])
    notes = list(check_failures(errors, float(found["exchanges"]), standing.target))
    if rate < HELD_UP * wanted:
        notes.append(f"the background reached {rate:.0f} of {wanted:.0f} exchanges a second")
    busy = max(made.details["peers_busy"], min(1.0, crr_s / float(found["seconds"])))
    extra = {**made.details, "peers_busy": busy, "background_rate": rate, "errors": errors}
    return outcome(times, extra, notes)


def _ping_pong(ends: Ends, standing: Standing, time_s: int) -> tuple[Run, list[float]]:
    port = str(LATENCY_PORT)
    with tempfile.TemporaryDirectory(prefix="tunlb-bench-") as folder:
        log = Path(folder) / "log.csv"
        client = ["sockperf", "ping-pong", "--tcp", "-i", standing.target, "-p", port]
        client += ["-t", str(time_s), "--mps=max", "--full-rtt", "--full-log", str(log)]
        made = run(
            ends,
            standing,
            server=["sockperf", "server", "--tcp", "-p", port],
            sign="to block on socket",
            client=client,
            seconds=time_s,
        )
        times = round_trips(log.read_text()) if log.exists() else []
    if not times:
        raise BenchError(f"sockperf measured nothing; it said: {said(made.text)}")
    return made, times


def round_trips(log: str) -> list[float]:
    """Seconds from sending to receiving, of each line of sockperf's full log."""
    times = []
    for line in log.partition("\npacket, ")[2].splitlines()[1:]:
        fields = line.split(",")
        if len(fields) == len(_COLUMNS):  # a line of dashes is the last
            row = dict(zip(_COLUMNS, map(float, fields), strict=True))
            times.append(row["received"] - row["sent"])
    return times


def first(ends: Ends, standing: Standing, seconds: float) -> Outcome:
    """New connections one at a time: how long connect() takes; details: until the response too.

    A proxy takes the connection before it has one to the dest, so the time of its response says
    more about it.
    """
    tool = str(ends.tool("crr"))
    made = run(
        ends,
        standing,
        server=[tool, "server", str(CRR_PORT)],
        sign="ready",
        client=[tool, "client", standing.target, str(CRR_PORT), "-l", "-t", f"{seconds:g}"],
        seconds=2 * seconds,  # the last one may take as long as all
    )
    found = figures(made.text, "crr")
    errors, done = float(found["errors"]), float(found["exchanges"])
    notes = check_failures(errors, done, standing.target)
    responses, _ = spread(1e-6 * float(us) for us in found["response_us"])
    extra = {**made.details, "errors": errors}
    extra |= {f"response_{name}": responses[name] for name, _ in NAMED}
    return outcome([1e-6 * float(us) for us in found["connect_us"]], extra, notes)
