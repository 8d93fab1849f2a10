"""The loads: what a subject is put under, one entry each.

A load runs its own programs at both ends for its time, and knows nothing of the subject but the
address that the client speaks to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from tunlb.bench import held, latency, tcp, udp
from tunlb.bench.network import Ends, Standing
from tunlb.bench.samples import Outcome


@dataclass(frozen=True, kw_only=True)
class Load:
    """One load. `per_unit` base units (bits/s, packets/s, seconds...) are one `unit` as shown."""

    name: str
    title: str
    unit: str
    per_unit: float
    better: Literal["higher", "lower"] = "higher"
    proto: Literal["tcp", "udp"] = "tcp"
    needs: tuple[str, ...]  # programs and helpers
    run: Callable[[Ends, Standing, float], Outcome]  # BenchError when nothing can be said


LOADS: Final = (
    Load(
        name="bulk",
        title="TCP bulk, 1 stream to the server",
        unit="Gb/s",
        per_unit=1e9,
        needs=("iperf3",),
        run=tcp.bulk,
    ),
    Load(
        name="bulk-down",
        title="TCP bulk, 1 stream from the server",
        unit="Gb/s",
        per_unit=1e9,
        needs=("iperf3",),
        run=partial(tcp.bulk, down=True),
    ),
    Load(
        name="bulk-8",
        title="TCP bulk, 8 streams to the server",
        unit="Gb/s",
        per_unit=1e9,
        needs=("iperf3",),
        run=partial(tcp.bulk, streams=8),
    ),
    Load(
        name="bulk-8-down",
        title="TCP bulk, 8 streams from the server",
        unit="Gb/s",
        per_unit=1e9,
        needs=("iperf3",),
        run=partial(tcp.bulk, streams=8, down=True),
    ),
    Load(
        name="udp-bulk",
        title=f"UDP, {udp.LARGE} bytes, at overload",
        unit="Gb/s",
        per_unit=1e9,
        proto="udp",
        needs=("iperf3",),
        run=udp.bulk,
    ),
    Load(
        name="pps",
        title=f"UDP, 18 bytes, {udp.FLOWS} flows, at overload",
        unit="kpps",
        per_unit=1e3,
        proto="udp",
        needs=("udpflood",),
        run=udp.pps,
    ),
    Load(
        name="pps-lossless",
        title="UDP, 18 bytes, highest rate without loss (RFC 2544)",
        unit="kpps",
        per_unit=1e3,
        proto="udp",
        needs=("udpflood",),
        run=udp.lossless,
    ),
    Load(
        name="crr",
        title=f"connect, request, response, close; {tcp.OPEN} at a time",
        unit="k/s",
        per_unit=1e3,
        needs=("crr",),
        run=tcp.crr,
    ),
    Load(
        name="http",
        title=f"HTTP by wrk, a connection each, {tcp.OPEN} at a time",
        unit="k/s",
        per_unit=1e3,
        needs=("wrk", "crr"),
        run=tcp.http,
    ),
    Load(
        name="latency",
        title="TCP request and response, idle",
        unit="us",
        per_unit=1e-6,
        better="lower",
        needs=("sockperf",),
        run=latency.idle,
    ),
    Load(
        name="latency-70",
        title=f"TCP request and response, under {latency.LOADED:.0%} of crr",
        unit="us",
        per_unit=1e-6,
        better="lower",
        needs=("sockperf", "crr"),
        run=latency.loaded,
    ),
    Load(
        name="first",
        title="connect() of a new connection, one at a time",
        unit="us",
        per_unit=1e-6,
        better="lower",
        needs=("crr",),
        run=latency.first,
    ),
    Load(
        name="held",
        title=f"connections held open, of {held.WANTED // 1000} k",
        unit="conns",
        per_unit=1.0,
        needs=("hold",),
        run=held.held,
    ),
)
