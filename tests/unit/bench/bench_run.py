"""A made-up run for the tests of figures, report and plots. No machine ever measured this."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from tunlb.bench.figures import CUT, BareScale, limit_of
from tunlb.bench.samples import Head, Sample

# What each would do beside the reflector.
SPEEDS = {
    "direct": 1.4,
    "reflector": 1.0,
    "reflector-mtu": 1.0,
    "nat": 0.99,
    "fnat": 0.98,
    "dr": 0.99,
    "snat": 0.99,
    "tunnel": 0.99,
    "tunnel-gre": 0.98,
    "tunnel-gue": 0.98,
    "nat-2w": 1.2,
    "fnat-2w": 1.18,
    "nat-uncompiled": 0.3,
    "fnat-uncompiled": 0.28,
    "nftables": 1.1,
    "nftables-snat": 1.05,
    "haproxy": 0.62,
    "nginx": 0.55,
}

# Under bulk load, tunnels and what is their limit are as slow as cut frames are.
CUT_SPEED = 0.3

SCALES = (
    BareScale("bulk", "TCP, 1 stream up", "Gb/s", 1e9),
    BareScale("bulk-down", "TCP, 1 stream down", "Gb/s", 1e9),
    BareScale("bulk-8", "TCP, 8 streams up", "Gb/s", 1e9),
    BareScale("bulk-8-down", "TCP, 8 streams down", "Gb/s", 1e9),
    BareScale("udp-bulk", "UDP, large", "Gb/s", 1e9),
    BareScale("pps", "UDP, 18 B, at overload", "kpps", 1e3),
    BareScale("pps-lossless", "UDP, 18 B, no loss", "kpps", 1e3),
    BareScale("crr", "connect, request, close", "k/s", 1e3),
    BareScale("http", "HTTP, a connection each", "k/s", 1e3),
    BareScale("latency", "latency, idle", "us", 1e-6, "lower"),
    BareScale("latency-70", "latency, at 70 % load", "us", 1e-6, "lower"),
    BareScale("first", "first packet of a connection", "us", 1e-6, "lower"),
    BareScale("held", "connections held", "conns", 1.0),
)
BASE = dict(
    zip(
        (scale.name for scale in SCALES),
        (11e9, 12e9, 9e9, 9.5e9, 3e9, 400e3, 250e3, 9e3, 6e3, 40e-6, 90e-6, 60e-6, 1e5),
        strict=True,
    )
)

NOT_UNDER = {
    "haproxy": {"udp-bulk", "pps", "pps-lossless"},
    "reflector-mtu": {*BASE} - {*CUT},
    "tunnel": {"udp-bulk"},
    "tunnel-gre": {"udp-bulk"},
    "tunnel-gue": {"udp-bulk"},
}

HEAD = Head(
    date="2026-01-02T03:04:05+0000",
    command="tunlb bench --rounds 5 --seconds 2",
    cpu="Made Up CPU @ 3 GHz",
    cores=4,
    virtualised="",
    kernel="Linux 6.12.0 x86_64",
    load_average=0.1,
    python="CPython 3.12.0",
    tunlb="0.1.0",
    commit="abc1234",
    build="compiled",
    compiler="cc 12.2.0",
    programs={"iperf3": "3.12", "wrk": "4.1.0"},
    seconds=2.0,
    rounds=5,
    pinned=False,
    subjects=tuple(SPEEDS),
    loads=tuple(scale.name for scale in SCALES),
)


def sample(
    subject: str = "nat",
    value: float = 1.0,
    *,
    load: str = "bulk",
    turn: int = 1,
    notes: tuple[str, ...] = (),
) -> Sample:
    return Sample(
        round=turn,
        load=load,
        subject=subject,
        at=1e9 + turn,
        value=value,
        notes=notes,
    )


@dataclass
class Maker:
    """Samples that look like a real run's: noise, tails, a drift of the machine between rounds."""

    seed: int = 1

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def run(self, rounds: int = 5) -> list[Sample]:
        found = []
        for turn in range(1, rounds + 1):
            drift = self._random.uniform(0.92, 1.08)
            for load in BASE:
                for subject, speed in SPEEDS.items():
                    if load not in NOT_UNDER.get(subject, ()):
                        found.append(self._one(turn, load, subject, speed, drift))
        return found

    def _one(self, turn: int, load: str, subject: str, speed: float, drift: float) -> Sample:
        noise = self._random.uniform(0.98, 1.02)
        cut = subject == "reflector-mtu" or limit_of(subject, load) == "reflector-mtu"
        speed *= CUT_SPEED if cut else 1.0
        made = sample(subject, BASE[load] * speed * drift * noise, load=load, turn=turn)
        cpu_s = 1.9 / (1 + speed)
        if load == "held":
            return replace(made, value=1e5, details=self._held(subject, speed * noise))
        if BASE[load] < 1:
            return self._latency(made, BASE[load] / speed**0.5 * drift * noise)
        packets = made.value * 2.0 if load != "bulk" else made.value / 200e3
        details = {"elapsed_s": 2.0, "peers_busy": 0.7, "steal_share": 0.0}
        if subject not in ("direct", "nftables", "nftables-snat"):
            details |= {"cpu_s": cpu_s}
            if subject not in ("haproxy", "nginx"):
                details |= {"packets": packets}
        return replace(made, details=details)

    def _held(self, subject: str, speed: float) -> dict[str, float]:
        kernel = subject in ("direct", "nftables", "nftables-snat")
        memory = {} if kernel else {"bytes_per_conn": 150.0 / speed}
        return {"open_rate": 2e4 * speed, **memory}

    def _latency(self, made: Sample, median_s: float) -> Sample:
        """A body with a tail that is heavier than a log-normal one's."""
        tail = self._random.uniform(0.9, 1.1)

        def at(quantile: float) -> float:
            if quantile <= 0.5:
                return median_s * (0.8 + 0.4 * quantile)
            nines = -math.log10(max(1 - quantile, 1e-5))
            return median_s * math.exp(0.16 * tail * (nines - 0.3) ** 1.7)

        points = (0.0, *(1 - 10 ** (-step / 16) for step in range(1, 65)), 1.0)
        details = {"p50_s": at(0.5), "p99_s": at(0.99), "p999_s": at(0.999)}
        return replace(
            made,
            value=at(0.5),
            details=details,
            distribution=tuple((quantile, at(quantile)) for quantile in points),
        )
