"""What the loads make of what their programs say."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from tunlb.bench import generators, held, latency, tcp, udp
from tunlb.bench.generators import check_failures, figures, plain, whole
from tunlb.bench.loads import LOADS
from tunlb.bench.network import Ends, Standing
from tunlb.bench.rfc2544 import RESOLUTION
from tunlb.bench.samples import BenchError, Outcome
from tunlb.bench.tools import HELPERS, PACKAGES

TARGET = "192.0.2.1"


# ---- the table ----------------------------------------------------------------------------------


def test_loads_are_in_the_order_of_the_report() -> None:
    assert [load.name for load in LOADS] == [
        *("bulk", "bulk-down", "bulk-8", "bulk-8-down", "udp-bulk", "pps", "pps-lossless"),
        *("crr", "http", "latency", "latency-70", "first", "held"),
    ]


def test_what_loads_need_is_known() -> None:
    needed = {need for load in LOADS for need in load.needs}
    assert needed <= {*HELPERS, *PACKAGES}


# ---- distributions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.99, 4), (1.0, 4)],
)
def test_quantile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert latency.quantile([1, 2, 3, 4], share) == expected


def test_spread_names_percentiles_of_exact_ranks() -> None:
    details, points = latency.spread(x / 1e6 for x in range(100_000, 0, -1))
    assert details == {
        "p50_s": pytest.approx(0.05),
        "p99_s": pytest.approx(0.099),
        "p999_s": pytest.approx(0.0999),
        "p9999_s": pytest.approx(0.09999),
        "max_s": pytest.approx(0.1),
        "observations": 100_000,
    }
    assert dict(points)[1.0] == pytest.approx(0.1)
    assert {0.5, 0.9, 0.99, 0.999, 0.9999, 1.0} <= set(dict(points))


@pytest.mark.parametrize("count", [1, 2, 50, 9_999, 1_000_000])
def test_distribution_ascends_and_is_small(count: int) -> None:
    _, points = latency.spread(range(count))
    assert list(points) == sorted(points)
    assert len({share for share, _ in points}) == len(points) <= 200
    assert points[-1] == (1.0, count - 1)


def test_few_observations_are_noted() -> None:
    assert latency.outcome([1.0] * 999, {}).notes == ("only 999 observations",)
    assert latency.outcome([1.0] * 1000, {}).notes == ()


# ---- what the programs print --------------------------------------------------------------------

SOCKPERF_LOG = """------------------------------
sockperf: ---> percentile 50.000 =   64.656
------------------------------
packet, txTime(sec), rxTime(sec), rtt(usec)
0, 2.414474841, 2.414538666, 63.825
1, 2.414538696, 2.414613808, 75.112
------------------------------
"""

WRK = """Running 1s test @ http://192.0.2.1:8080/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   294.11us  283.02us   4.61ms   89.29%
    Req/Sec    16.50k     1.37k   19.53k    70.00%
  Latency Distribution
     50%  223.00us
     75%  379.00us
     90%  587.00us
     99%    1.05ms
  16387 requests in 1.00s, 0.94MB read
{more}Requests/sec:  16381.18
Transfer/sec:      0.94MB
"""


def test_round_trips_come_from_the_full_log() -> None:
    assert latency.round_trips(SOCKPERF_LOG) == pytest.approx([63.825e-6, 75.112e-6])


@pytest.mark.parametrize("log", ["", "sockperf: No valid observations found\n"])
def test_a_log_without_observations_has_no_round_trips(log: str) -> None:
    assert latency.round_trips(log) == []


def test_wrk_figures() -> None:
    rate, details, notes = tcp.wrk_figures(WRK.format(more=""), TARGET)
    assert rate == 16381.18
    assert details == {
        "exchanges": 16387,
        "errors": 0,
        "p50_s": pytest.approx(223e-6),
        "p99_s": pytest.approx(1.05e-3),
    }
    assert notes == ()


def test_wrk_s_errors_are_added_up_and_noted() -> None:
    more = "  Socket errors: connect 1, read 2, write 3, timeout 4\n"
    more += "  Non-2xx or 3xx responses: 5\n"
    _, details, notes = tcp.wrk_figures(WRK.format(more=more), TARGET)
    assert (details["exchanges"], details["errors"]) == (16382, 15)
    assert notes == (f"15 of 16397 exchanges through {TARGET} failed",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("unable to connect to 192.0.2.1:8080 Connection refused\n", "Connection refused"),
        (
            WRK.format(more="  Socket errors: connect 0, read 900, write 0, timeout 0\n"),
            "900 of 17287",
        ),
    ],
    ids=["not connected", "many errors"],
)
def test_wrk_s_failure_is_told(text: str, why: str) -> None:
    with pytest.raises(BenchError, match=why):
        tcp.wrk_figures(text, TARGET)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"error": "unable to connect to server: Connection refused"}', "Connection refused"),
        ('{"end": {}}', "no figures"),
        ("iperf3: parameter error", "parameter error"),
        ("", "said: nothing"),
        ("[1]", "no figures"),
    ],
)
def test_iperf3_s_failure_is_told(text: str, why: str) -> None:
    with pytest.raises(BenchError, match=why):
        tcp.iperf_end(text, TARGET)


def test_figures_are_the_last_object_after_other_lines() -> None:
    assert figures('ready 1\n{"a": 1}\n', "crr") == {"a": 1}
    assert figures('warning: x\n{\n\t"a": {"b": 2}\n}\n', "iperf3") == {"a": {"b": 2}}


def test_colours_are_left_out() -> None:
    assert plain("sockperf: \x1b[2;35mTotal\x1b[0m") == "sockperf: Total"


@pytest.mark.parametrize(("failed", "done", "notes"), [(0, 5, 0), (1, 999, 1), (1, 99, 1)], ids=str)
def test_few_failures_are_noted(failed: int, done: int, notes: int) -> None:
    assert len(check_failures(failed, done, TARGET)) == notes


@pytest.mark.parametrize(("failed", "done"), [(0, 0), (1, 0), (2, 98)], ids=str)
def test_many_failures_are_an_error(failed: int, done: int) -> None:
    with pytest.raises(BenchError, match=f"{failed} of {failed + done} exchanges"):
        check_failures(failed, done, TARGET)


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, 1), (1, 1), (1.01, 2), (3, 3)])
def test_whole_seconds_are_never_none(seconds: float, expected: int) -> None:
    assert whole(seconds) == expected


# ---- loads over programs that only talk ---------------------------------------------------------


class Talker:
    """A program that is over at once and has written `text`."""

    running = False

    def __init__(self, text: str) -> None:
        self._text = text

    def text(self) -> str:
        return self._text

    def wait_for(self, sign: str, timeout: float = 0) -> str:
        return sign

    def stop(self) -> str:
        return self._text


class FakeEnds:
    """Ends whose programs say what `script(argv)` gives."""

    client = "client"
    server = "server"

    def __init__(self, script: Callable[[Sequence[str]], str]) -> None:
        self.script = script
        self.capacity: dict[str, float] = {}
        self.started: list[Sequence[str]] = []

    def tool(self, name: str) -> Path:
        return Path("/tools") / name

    @contextlib.contextmanager
    def child(self, host: str, argv: Sequence[str]) -> Iterator[Talker]:
        self.started.append(argv)
        yield Talker(self.script(argv))


class FakeStanding:
    """From one look to the next it used a quarter of a second, 100 packets, a megabyte."""

    target = TARGET

    def __init__(self, *, kernel: bool = False) -> None:
        self.kernel = kernel
        self.looks = Counter[str]()

    def _look(self, what: str) -> int:
        self.looks[what] += 1
        return self.looks[what]

    def cpu_s(self) -> float | None:
        return None if self.kernel else 0.25 * self._look("cpu")

    def packets(self) -> int | None:
        return None if self.kernel else 100 * self._look("packets")

    def rss_bytes(self) -> int | None:
        return None if self.kernel else self._look("memory") << 20


def load(
    name: str,
    script: Callable[[Sequence[str]], str] | dict[str, Any],
    *,
    kernel: bool = False,
    capacity: float | None = None,
    seconds: float = 1.0,
) -> tuple[Outcome, FakeEnds]:
    """Runs a load whose clients all say the same JSON, or whatever the script says."""
    said = script if callable(script) else lambda _: json.dumps(script)
    ends = FakeEnds(said)
    if capacity is not None:
        ends.capacity["crr"] = capacity
    run = next(load.run for load in LOADS if load.name == name)
    standing = FakeStanding(kernel=kernel)
    return run(cast(Ends, ends), cast(Standing, standing), seconds), ends


def flooded(sent: int, arrived: int, *, dropped: int = 0, distinct: int | None = None) -> Any:
    def script(argv: Sequence[str]) -> str:
        if argv[1] == "send":
            return json.dumps({"packets": sent, "errors": 0, "seconds": 1.0})
        came = {"packets": arrived, "distinct": arrived if distinct is None else distinct}
        return json.dumps({**came, "seconds": 1.25, "dropped": dropped})

    return script


CRR = {"exchanges": 1000, "errors": 0, "unfinished": 0, "seconds": 1.0, "rate": 1000.0}
BULK = {"end": {"sum_sent": {"retransmits": 7}, "sum_received": {"bits_per_second": 5e9}}}


def test_what_the_subject_used_is_in_the_details() -> None:
    made, _ = load("crr", CRR)
    assert made.value == 1000
    assert made.details["cpu_s"] == 0.25
    assert made.details["packets"] == 100
    assert 0 <= made.details["peers_busy"] <= 1


def test_a_kernel_subject_has_no_figures_of_its_own() -> None:
    made, _ = load("crr", CRR, kernel=True)
    assert not {"cpu_s", "packets"} & set(made.details)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bulk", {"--parallel 1"}),
        ("bulk-down", {"--parallel 1", "--reverse"}),
        ("bulk-8", {"--parallel 8"}),
        ("bulk-8-down", {"--parallel 8", "--reverse"}),
    ],
)
def test_bulk_asks_iperf3_for_what_its_name_says(name: str, options: set[str]) -> None:
    made, ends = load(name, BULK, seconds=0.3)
    assert (made.value, made.details["retransmits"]) == (5e9, 7)
    line = " ".join(ends.started[-1])
    assert all(option in line for option in options)
    assert ("--reverse" in line) == ("--reverse" in options)
    assert "--time 1 " in line  # iperf3 reads 0.3 as 0, which is for ever


def test_udp_bulk_counts_what_was_lost() -> None:
    received = {"bits_per_second": 3e9, "packets": 1000, "lost_packets": 250}
    made, _ = load("udp-bulk", {"end": {"sum_received": received}})
    assert (made.value, made.details["loss_share"], made.notes) == (3e9, 0.25, ())


def test_udp_bulk_without_an_arrival_is_an_error() -> None:
    received = {"bits_per_second": 0, "packets": 0, "lost_packets": 0}
    with pytest.raises(BenchError, match="none of iperf3's datagrams"):
        load("udp-bulk", {"end": {"sum_received": received}})


def test_pps_counts_the_time_in_which_queues_were_emptied() -> None:
    made, _ = load("pps", flooded(1000, 500))
    assert (made.value, made.details["loss_share"], made.notes) == (400, 0.5, ())


def test_pps_tells_copies_from_losses() -> None:
    made, _ = load("pps", flooded(1000, 1000, distinct=600))
    assert (made.details["loss_share"], made.details["copies"]) == (0.4, 400)


@pytest.mark.parametrize(
    ("arrived", "dropped", "word"), [(999, 0, "sender"), (500, 3, "sink")], ids=["sender", "sink"]
)
def test_pps_notes_that_the_generator_was_the_limit(arrived: int, dropped: int, word: str) -> None:
    made, _ = load("pps", flooded(1000, arrived, dropped=dropped))
    assert len(made.notes) == 1
    assert f"the {word}" in made.notes[0]


def test_pps_without_an_arrival_is_an_error() -> None:
    with pytest.raises(BenchError, match=f"none of 1000 packets to {TARGET}"):
        load("pps", flooded(1000, 0))


def test_pps_uses_its_own_count_where_the_subject_has_none() -> None:
    made, _ = load("pps", flooded(1000, 500), kernel=True)
    assert made.details["packets"] == 500


def test_lossless_gives_the_best_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def flood(ends: Ends, standing: Standing, seconds: float, rate: float) -> udp.Flood:
        rates.append(rate)
        offered = rate or 800e3
        sent = int(offered * seconds)
        arrived = min(sent, int(300e3 * seconds))
        return udp.Flood(
            sent=sent,
            arrived=arrived,
            distinct=arrived,
            dropped=1 if rate else 100,
            offered=offered,
            delivered=arrived / seconds,
            details={"cpu_s": rate},
        )

    monkeypatch.setattr(udp, "flood", flood)
    made, _ = load("pps-lossless", {}, seconds=2)
    assert made.value == pytest.approx(300e3, rel=RESOLUTION)
    assert made.details["cpu_s"] == made.value
    assert made.details["trials"] == len(rates)
    assert made.details["ceiling"] == 800e3
    # The sink's losses in the first trial decide nothing.
    lost = len(rates) - 1
    assert made.notes == (f"the sink lost {lost} packets that had arrived: it was the limit",)


def test_lossless_of_a_subject_that_always_loses_is_an_error() -> None:
    with pytest.raises(BenchError, match="lost even at 1000 a second"):
        load("pps-lossless", flooded(1000, 0))


def test_crr_s_figure_is_kept_for_the_load_that_needs_it() -> None:
    _, ends = load("crr", CRR)
    assert ends.capacity == {"crr": 1000.0}


def sockperf_and_crr(rate: float) -> Callable[[Sequence[str]], str]:
    def script(argv: Sequence[str]) -> str:
        if "--full-log" in argv:
            Path(argv[argv.index("--full-log") + 1]).write_text(SOCKPERF_LOG)
        return json.dumps({**CRR, "rate": rate})

    return script


@pytest.mark.parametrize("capacity", [None, 1000.0], ids=["measured first", "known"])
def test_latency_under_load_paces_crr_at_its_share(capacity: float | None) -> None:
    made, ends = load("latency-70", sockperf_and_crr(1000.0), capacity=capacity)
    paced = [argv for argv in ends.started if "-r" in argv]
    assert [argv[argv.index("-r") + 1] for argv in paced] == ["700.0"]
    unpaced = [argv for argv in ends.started if argv[1] == "client" and "-r" not in argv]
    assert len(unpaced) == (capacity is None)
    assert made.value == pytest.approx(63.825e-6)
    assert made.details["p99_s"] == pytest.approx(75.112e-6)
    assert made.notes == ("only 2 observations",)


def test_latency_under_too_little_load_is_noted() -> None:
    made, _ = load("latency-70", sockperf_and_crr(600.0), capacity=1000.0)
    assert made.notes[0] == "the background reached 600 of 700 exchanges a second"


def test_latency_without_a_log_tells_what_sockperf_said() -> None:
    with pytest.raises(BenchError, match="Connection refused"):
        load("latency", lambda _: "sockperf: \x1b[1mERROR: Connection refused")


def test_first_times_connects_and_responses() -> None:
    times = {"connect_us": [10.0] * 1000, "response_us": [30.0] * 1000}
    made, _ = load("first", {"exchanges": 1000, "errors": 0, "seconds": 1.0, **times})
    assert made.value == pytest.approx(10e-6)
    assert made.details["response_p99_s"] == pytest.approx(30e-6)
    assert made.distribution[-1] == pytest.approx((1.0, 10e-6))
    assert made.notes == ()


HOLD: dict[str, Any] = {
    "wanted": held.WANTED,
    "opened": held.WANTED,
    "failed": 0,
    "alive": held.WANTED - 1,
}
HOLD |= {"broken": 1, "open_seconds": 10.0, "answer_seconds": 1.0, "processes": 1}


def test_held_counts_those_alive_and_their_memory() -> None:
    made, _ = load("held", {**HOLD, "error": ""})
    assert made.value == held.WANTED - 1
    assert made.details["open_rate"] == held.WANTED / 10
    assert made.details["broken"] == 1
    assert made.details["bytes_per_conn"] == pytest.approx((1 << 20) / held.WANTED)
    assert made.notes == ()


def test_held_notes_what_did_not_open() -> None:
    made, _ = load("held", {**HOLD, "opened": 10, "alive": 10, "error": "Connection reset"})
    assert made.notes == (f"10 of {held.WANTED} connections opened: Connection reset",)


def test_held_without_a_connection_is_an_error() -> None:
    with pytest.raises(BenchError, match="opened: Connection refused"):
        load("held", {**HOLD, "opened": 0, "alive": 0, "error": "Connection refused"})


def test_a_client_that_does_not_end_is_given_up() -> None:
    class Deaf(Talker):
        running = True

    with pytest.raises(BenchError, match="not done after 0 s"):
        generators.finish(cast(Any, Deaf("")), 0)
