"""Loads of UDP: small packets at overload and without loss, and large ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tunlb.bench.generators import figures, run, whole
from tunlb.bench.network import UDP_BULK_PORT, UDP_PORT, Ends, Standing
from tunlb.bench.rfc2544 import LOWEST, Trial, search
from tunlb.bench.samples import BenchError, Outcome
from tunlb.bench.tcp import iperf_end

FLOWS: Final = 8
TRIAL_S: Final = 0.5
# What fills an IPv4 packet of 1500 bytes: iperf3 cuts nothing, so more would be fragments.
LARGE: Final = 1472
# Less of an overload lost, and there was none: the sender was the limit.
OVERLOAD: Final = 0.01

_CONNECT_MS: Final = 5000


@dataclass(frozen=True, kw_only=True)
class Flood:
    """One run of udpflood."""

    sent: int
    arrived: int  # every one that came, copies too
    distinct: int
    dropped: int  # by the sink, whose own buffer was full
    offered: float  # packets a second
    delivered: float
    details: Mapping[str, float]

    @property
    def lost(self) -> int:
        return self.sent - self.distinct


def flood(ends: Ends, standing: Standing, seconds: float, rate: float) -> Flood:
    """18-byte packets in FLOWS flows, at a rate in packets a second; 0: as many as it can."""
    tool = str(ends.tool("udpflood"))
    client = [tool, "send", standing.target, str(UDP_PORT), "-f", str(FLOWS)]
    made = run(
        ends,
        standing,
        server=[tool, "sink", str(UDP_PORT)],
        sign="ready",
        client=[*client, "-t", f"{seconds:g}", "-r", f"{rate:.1f}"],
        seconds=seconds,
        overload=not rate,
    )
    sent, came = figures(made.text, "udpflood"), figures(made.served, "udpflood's sink")
    sending = float(sent["seconds"])
    return Flood(
        sent=int(sent["packets"]),
        arrived=int(came["packets"]),
        distinct=int(came["distinct"]),
        dropped=int(came["dropped"]),
        offered=float(sent["packets"]) / sending,
        # Queues on the way are emptied after the sender's end: that time counts as well.
        delivered=float(came["packets"]) / max(sending, float(came["seconds"])),
        details=made.details,
    )


def pps(ends: Ends, standing: Standing, seconds: float) -> Outcome:
    """As many small packets as the sender can; packets a second that arrived."""
    made = flood(ends, standing, seconds, 0.0)
    if not made.arrived:
        raise BenchError(f"none of {made.sent} packets to {standing.target} arrived")
    loss = max(0.0, made.lost / made.sent)
    details = {
        "packets": float(made.arrived),  # unless the subject counted its own
        **made.details,
        "sent": float(made.sent),
        "loss_share": loss,
        "copies": float(made.arrived - made.distinct),
        "sink_dropped": float(made.dropped),
    }
    notes = [*_sink(made.dropped), *_sender(loss)]
    return Outcome(value=made.delivered, details=details, notes=tuple(notes))


def lossless(ends: Ends, standing: Standing, seconds: float) -> Outcome:
    """The highest rate at which no packet is lost, by trials of TRIAL_S or, if less, `seconds`."""
    floods: list[tuple[Trial, Flood]] = []

    def send(rate: float) -> Trial:
        made = flood(ends, standing, min(TRIAL_S, seconds), rate)
        trial = Trial(offered=made.offered, sent=made.sent, lost=made.lost)
        floods.append((trial, made))
        return trial

    found = search(send)
    if found.best is None:
        raise BenchError(f"packets to {standing.target} are lost even at {LOWEST:.0f} a second")
    made = next(made for trial, made in floods if trial is found.best)
    details = {
        "packets": float(made.arrived),
        **made.details,
        "loss_share": 0.0,
        "trials": float(found.trials),
        "ceiling": found.ceiling,
    }
    notes = [*_sink(sum(made.dropped for _, made in floods[1:]))]
    if found.limited:
        notes.append("nothing was lost at the sender's highest rate: the sender was the limit")
    return Outcome(value=found.best.offered, details=details, notes=tuple(notes))


def bulk(ends: Ends, standing: Standing, seconds: float) -> Outcome:
    """Large datagrams of iperf3, as many as it can; bits a second that arrived."""
    time_s = whole(seconds)
    port = str(UDP_BULK_PORT)
    client = ["iperf3", "--client", standing.target, "--port", port, "--json", "--udp"]
    client += ["--bitrate", "0", "--length", str(LARGE), "--time", str(time_s)]
    made = run(
        ends,
        standing,
        server=["iperf3", "--server", "--one-off", "--forceflush", "--port", port],
        sign="listening",
        client=[*client, "--connect-timeout", str(_CONNECT_MS)],
        seconds=time_s,
        overload=True,
    )
    came = iperf_end(made.text, standing.target)["sum_received"]
    sent, lost = float(came["packets"]), float(came["lost_packets"])
    if not sent > lost:
        raise BenchError(f"none of iperf3's datagrams to {standing.target} arrived")
    details = {"packets": sent - lost, **made.details, "loss_share": lost / sent}
    notes = tuple(_sender(lost / sent))
    return Outcome(value=float(came["bits_per_second"]), details=details, notes=notes)


def _sink(dropped: int) -> list[str]:
    what = f"the sink lost {dropped} packets that had arrived: it was the limit"
    return [what] if dropped else []


def _sender(loss: float) -> list[str]:
    what = f"only {loss:.2%} were lost: the sender was the limit"
    return [what] if loss < OVERLOAD else []
