"""Loads of TCP: bulk streams, and connections that are opened, used once and closed."""

from __future__ import annotations

import re
from typing import Final

from tunlb.bench.generators import check_failures, figures, run, said, whole
from tunlb.bench.network import BULK_PORT, CRR_PORT, HTTP_PORT, Ends, Standing
from tunlb.bench.samples import BenchError, Outcome

# Connections open at a time: enough that nobody waits for a round trip, few enough for every queue.
OPEN: Final = 16

_CONNECT_MS: Final = 5000

_RATE: Final = re.compile(r"^Requests/sec:\s+([\d.]+)", re.MULTILINE)
_DONE: Final = re.compile(r"^\s*(\d+) requests in ", re.MULTILINE)
_FAILED: Final = re.compile(
    r"^\s*Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", re.MULTILINE
)
_REFUSED: Final = re.compile(r"^\s*Non-2xx or 3xx responses: (\d+)", re.MULTILINE)
_PERCENTILE: Final = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$", re.MULTILINE)


def bulk(
    ends: Ends, standing: Standing, seconds: float, *, streams: int = 1, down: bool = False
) -> Outcome:
    """Streams of iperf3 to the server, or from it; bits a second that arrived."""
    time_s = whole(seconds)
    port = str(BULK_PORT)
    client = ["iperf3", "--client", standing.target, "--port", port, "--json"]
    client += ["--time", str(time_s), "--parallel", str(streams)]
    client += ["--connect-timeout", str(_CONNECT_MS), *(["--reverse"] if down else [])]
    made = run(
        ends,
        standing,
        server=["iperf3", "--server", "--one-off", "--forceflush", "--port", port],
        sign="listening",
        client=client,
        seconds=time_s,
    )
    end = iperf_end(made.text, standing.target)
    details = {**made.details, "retransmits": float(end["sum_sent"].get("retransmits", 0))}
    return Outcome(value=float(end["sum_received"]["bits_per_second"]), details=details)


def iperf_end(text: str, target: str) -> dict[str, dict[str, float]]:
    """The sums of an iperf3 client. Raises BenchError with iperf3's own complaint."""
    found = figures(text, "iperf3")
    if "error" in found:
        raise BenchError(f"iperf3 to {target}: {found['error']}")
    end: dict[str, dict[str, float]] = found["end"]
    if "sum_received" not in end:
        raise BenchError(f"iperf3 to {target} gave no figures; it said: {said(text)}")
    return end


def crr(ends: Ends, standing: Standing, seconds: float) -> Outcome:
    """Connect, one byte there and back, close; whole exchanges a second."""
    tool = str(ends.tool("crr"))
    client = [tool, "client", standing.target, str(CRR_PORT)]
    made = run(
        ends,
        standing,
        server=[tool, "server", str(CRR_PORT)],
        sign="ready",
        client=[*client, "-c", str(OPEN), "-t", f"{seconds:g}"],
        seconds=seconds,
    )
    found = figures(made.text, "crr")
    errors, done = float(found["errors"]), float(found["exchanges"])
    notes = check_failures(errors, done, standing.target)
    details = {**made.details, "exchanges": done, "errors": errors}
    ends.capacity["crr"] = float(found["rate"])
    return Outcome(value=float(found["rate"]), details=details, notes=notes)


def http(ends: Ends, standing: Standing, seconds: float) -> Outcome:
    """wrk, a connection for each request; requests a second.

    The server is crr's, not a web server: one that does next to nothing leaves the cores to the
    subject, and any real one would be most of what is measured.
    """
    time_s = whole(seconds)
    client = ["wrk", "--threads", "1", "--connections", str(OPEN), "--duration", f"{time_s}s"]
    client += ["--latency", "--header", "Connection: close"]
    made = run(
        ends,
        standing,
        server=[str(ends.tool("crr")), "http", str(HTTP_PORT)],
        sign="ready",
        client=[*client, f"http://{standing.target}:{HTTP_PORT}/"],
        seconds=time_s,
    )
    rate, details, notes = wrk_figures(made.text, standing.target)
    return Outcome(value=rate, details={**made.details, **details}, notes=notes)


def wrk_figures(text: str, target: str) -> tuple[float, dict[str, float], tuple[str, ...]]:
    """Requests a second, requests, errors and latencies from what wrk wrote, and notes on them.

    Raises:
        BenchError: wrk could not connect, or more failed than is tolerated.
    """
    rate, done = _RATE.search(text), _DONE.search(text)
    if rate is None or done is None:
        raise BenchError(f"wrk gave no figures; it said: {said(text)}")
    failed = _FAILED.search(text)
    refused = _REFUSED.search(text)
    errors = sum(map(float, failed.groups())) if failed else 0.0
    errors += float(refused[1]) if refused else 0.0
    good = float(done[1]) - (float(refused[1]) if refused else 0.0)
    notes = check_failures(errors, good, target)
    details = {"exchanges": good, "errors": errors}
    scales = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
    for percent, figure, unit in _PERCENTILE.findall(text):
        details[f"p{percent}_s"] = float(figure) * scales[unit]
    return float(rate[1]), details, notes
