"""TunlbProcess against programs that behave as tunlb does, well or badly."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tunlb.lab.process import TunlbError, TunlbProcess, environment

PRELUDE = """
import json, signal, sys, threading
def log(**event): print(json.dumps(event), file=sys.stderr, flush=True)
"""
RELOADS = """
def reload(*_):
    text = open(sys.argv[1]).read()
    log(event="reloaded" if text == "good" else "reload_refused", text=text)
signal.signal(signal.SIGHUP, reload)
"""
READY = 'print("Traceback is no JSON", file=sys.stderr); log(event="ready", workers=1)\n'
WAIT = "while True: signal.pause()\n"


def start(folder: Path, script: str) -> TunlbProcess:
    config = folder / "tunlb.jsonl"
    return TunlbProcess([sys.executable, "-c", PRELUDE + script, str(config)], config)


def test_ready_is_awaited_and_every_line_kept(tmp_path: Path) -> None:
    with start(tmp_path, 'log(event="starting")\n' + READY + WAIT) as tunlb:
        assert tunlb.wait_event(("ready",)) == {"event": "ready", "workers": 1}
        assert [event["event"] for event in tunlb.events] == ["starting", "ready"]
        assert tunlb.log_lines[1] == "Traceback is no JSON"
    assert tunlb.process.returncode == -15


def test_one_that_ends_early_is_quoted(tmp_path: Path) -> None:
    script = 'sys.exit("lb0: no permission")'
    with start(tmp_path, script) as tunlb, pytest.raises(TunlbError) as caught:
        tunlb.wait_event(("ready",))
    assert str(caught.value) == (
        "tunlb ended before it logged the event 'ready' (exit status 1); it logged:\n"
        "  lb0: no permission"
    )


def test_one_that_is_never_ready_is_quoted(tmp_path: Path) -> None:
    with start(tmp_path, 'log(event="starting")\n' + WAIT) as tunlb:
        tunlb.wait_event(("starting",))
        with pytest.raises(TunlbError, match=r"'ready' in 0 s \(still running\)(.|\n)*starting"):
            tunlb.wait_event(("ready",), timeout=0)


@pytest.mark.parametrize(("text", "event"), [("good", "reloaded"), ("bad", "reload_refused")])
def test_reload_rewrites_the_file_and_returns_the_answer(
    tmp_path: Path, text: str, event: str
) -> None:
    with start(tmp_path, RELOADS + READY + WAIT) as tunlb:
        tunlb.wait_event(("ready",))
        for _ in range(2):  # the answer to the first is not taken for that to the second
            assert tunlb.reload(text) == {"event": event, "text": text}
        assert len(tunlb.events) == 3


def test_stop_ends_one_that_does_not_listen_and_may_be_repeated(tmp_path: Path) -> None:
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + WAIT
    tunlb = start(tmp_path, stubborn)
    tunlb.wait_event(("ready",))
    assert tunlb.stop(timeout=0.05) == -9
    assert tunlb.stop() == -9


def test_a_flood_of_lines_does_not_block_it(tmp_path: Path) -> None:
    flood = 'for n in range(3000): log(event="tick", n=n, padding="x" * 100)\n'
    with start(tmp_path, flood + READY) as tunlb:
        tunlb.wait_event(("ready",))
        assert tunlb.stop() in (0, -15)
    assert len(tunlb.events) == 3001


def test_the_environment_runs_this_tunlb_unless_told_otherwise() -> None:
    here = str(Path(__file__).resolve().parents[3])
    assert environment()["PYTHONPATH"].split(os.pathsep)[0] == here
    assert environment({"PYTHONPATH": "build/pure"})["PYTHONPATH"] == "build/pure"
