"""The demo's judgement and what it shows; that it works is shown end to end."""

from __future__ import annotations

import io
import signal
from collections import Counter

import pytest
from rich.console import Console

from tunlb.lab import Lab, LabError, clients, demo
from tunlb.lab.topology import ONE_ARM

TCP = clients.Iperf(7.5, 0.0, 3, {})
UDP = clients.Iperf(0.199, 0.5, 0, {})


def results(**changes: object) -> demo.Results:
    good: dict[str, object] = {
        "fetches": {
            "v4": Counter(s1=20, s2=10, s3=10),
            "v6": Counter(s1=6, s2=3, s3=3),
        },
        "tcp": TCP,
        "udp": UDP,
    }
    return demo.Results(**{**good, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (results(), []),
        (
            results(fetches={"v4": Counter(s1=30, s2=10), "v6": Counter(s1=6, s2=3, s3=3)}),
            ["s3 took no fetch over v4"],
        ),
        (
            results(fetches={"v4": Counter(s1=19, s2=10, s3=10), "v6": Counter(s1=6, s2=3, s3=3)}),
            ["39 of 40 fetches over v4 were answered"],
        ),
        (
            results(
                fetches={"v4": Counter(s1=10, s2=10, s3=10, x=10), "v6": Counter(s1=6, s2=3, s3=3)}
            ),
            ["answers came from x, which is no server"],
        ),
        (results(tcp=None), ["no TCP traffic of iperf3 arrived"]),
        (results(udp=None), ["no UDP traffic of iperf3 arrived"]),
        (
            results(udp=clients.Iperf(0.01, 90.0, 0, {})),
            ["90 % of the UDP datagrams were lost"],
        ),
    ],
    ids=["good", "idle-server", "lost-fetch", "stranger", "no-tcp", "no-udp", "lossy"],
)
def test_problems(found: demo.Results, said: list[str]) -> None:
    assert demo.problems(ONE_ARM, found) == said


def test_nothing_done_is_nothing_right() -> None:
    assert len(demo.problems(ONE_ARM, demo.Results())) == 2 + 2 * 3 + 2


def test_the_tables_hold_every_figure() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    for table in demo.tables(ONE_ARM, results()):
        console.print(table)
    rows = [line.strip("│ ").split("│") for line in out.getvalue().splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert ["s1", "2", "20", "6"] in cells
    assert ["s3", "1", "10", "3"] in cells
    assert ["TCP, 1 stream, 3 s", "7.50", "3 segments resent"] in cells
    assert [f"UDP, {demo.UDP_BITRATE}b/s offered, 2 s", "0.199", "0.50 %"] in cells


def counting(update: demo.Update) -> str:
    update(1)
    update(2)
    return "two"


STEPS: list[demo.Step] = [("first", None, lambda _: "one"), ("second", 2, counting)]


def test_plain_progress_is_two_lines_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    demo.perform(STEPS, Console(force_terminal=False))
    assert capsys.readouterr().out == "[1/2] first\n      one\n[2/2] second\n      two\n"


def test_live_progress_shows_the_same() -> None:
    out = io.StringIO()
    demo.perform(STEPS, Console(file=out, force_terminal=True, width=100))
    for word in ("first", "one", "second", "two"):
        assert word in out.getvalue()


class Downs(list[str]):
    """Records that a lab went down."""


@pytest.fixture
def downs(monkeypatch: pytest.MonkeyPatch) -> Downs:
    record = Downs()
    monkeypatch.setattr(Lab, "down", lambda lab: record.append(lab.suffix))
    return record


def test_a_failure_is_told_and_the_lab_removed(
    downs: Downs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def up(_: Lab) -> None:
        raise LabError("`ip` is not there")

    monkeypatch.setattr(Lab, "up", up)
    assert demo.run(Console(force_terminal=False)) == 1
    assert len(downs) == 1
    assert capsys.readouterr().err == "tunlb demo: FAILED: `ip` is not there\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_after_the_lab_is_removed(
    downs: Downs, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setattr(Lab, "up", lambda _: signal.raise_signal(number))
    with pytest.raises(SystemExit) as caught:
        demo.run(Console(force_terminal=False))
    assert caught.value.code == 128 + number
    assert len(downs) == 1
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before
