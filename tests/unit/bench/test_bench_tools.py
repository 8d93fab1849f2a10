"""The C programs of the bench, on loopback: what they count is what happened."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def serving(*argv: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of ours on a free port: the process and the port that it says."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            word, port = process.stdout.readline().split()
            assert word == "ready"
            yield process, port
        finally:
            process.terminate()


def call(*argv: str | Path) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("open_at_once", ["1", "8"])
def test_crr_makes_exactly_the_exchanges_asked_for(tools: Path, open_at_once: str) -> None:
    with serving(tools / "crr", "server", "0") as (_, port):
        argv = ("client", LOOPBACK, port, "-n", "200", "-c", open_at_once, "-t", "15")
        status, figures = call(tools / "crr", *argv)
    assert status == 0
    assert (figures["exchanges"], figures["errors"], figures["unfinished"]) == (200, 0, 0)
    assert figures["rate"] == pytest.approx(200 / figures["seconds"], rel=0.01)


def test_crr_server_closes_first(tools: Path) -> None:
    with (
        serving(tools / "crr", "server", "0") as (_, port),
        socket.create_connection((LOOPBACK, int(port)), timeout=5) as peer,
    ):
        peer.sendall(b"x")
        assert peer.recv(10) == b"x"
        assert peer.recv(10) == b""


def test_crr_counts_a_close_without_an_answer_as_an_error(tools: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:

        def take_and_close() -> None:
            for _ in range(3):
                peer, _ = listener.accept()
                with peer:
                    peer.recv(1)

        thread = threading.Thread(target=take_and_close)
        thread.start()
        port = str(listener.getsockname()[1])
        argv = ("client", LOOPBACK, port, "-n", "3", "-c", "1", "-t", "15")
        status, figures = call(tools / "crr", *argv)
        thread.join()
    assert status == 1
    assert (figures["exchanges"], figures["errors"]) == (0, 3)


def test_crr_fails_where_nobody_listens(tools: Path) -> None:
    with socket.socket() as bound:
        bound.bind((LOOPBACK, 0))
        argv = ("client", LOOPBACK, str(bound.getsockname()[1]), "-n", "1", "-t", "5")
        done = subprocess.run([tools / "crr", *argv], capture_output=True, check=False, timeout=20)
    assert done.returncode == 1


def test_sink_counts_what_the_sender_sent(tools: Path) -> None:
    with serving(tools / "udpflood", "sink", "0") as (sink, port):
        # So few that they fit the default socket buffer: none may be lost.
        status, sent = call(tools / "udpflood", "send", LOOPBACK, port, "-n", "100", "-f", "4")
        sink.terminate()
        arrived = json.loads(sink.communicate(timeout=10)[0])
    assert status == 0
    assert (sent["packets"], sent["errors"]) == (100, 0)
    assert (arrived["packets"], arrived["distinct"]) == (100, 100)


def test_sink_tells_copies_apart(tools: Path) -> None:
    with serving(tools / "udpflood", "sink", "0") as (sink, port):
        for _ in range(2):
            call(tools / "udpflood", "send", LOOPBACK, port, "-n", "50")
        sink.terminate()
        arrived = json.loads(sink.communicate(timeout=10)[0])
    assert (arrived["packets"], arrived["distinct"]) == (100, 50)


def test_sender_keeps_the_rate(tools: Path) -> None:
    with serving(tools / "udpflood", "sink", "0") as (_, port):
        argv = ("send", LOOPBACK, port, "-r", "2000", "-t", "0.5")
        _, sent = call(tools / "udpflood", *argv)
    # A burst more than the time holds, and what a busy machine takes away.
    assert 500 <= sent["packets"] <= 1064


def test_sink_that_saw_nothing_says_so(tools: Path) -> None:
    with serving(tools / "udpflood", "sink", "0") as (sink, _):
        sink.terminate()
        assert json.loads(sink.communicate(timeout=10)[0]) == {
            "packets": 0,
            "distinct": 0,
            "seconds": 0,
        }


def test_sender_spreads_its_packets_over_the_flows(tools: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as here:
        here.bind((LOOPBACK, 0))
        here.settimeout(5)
        argv = ("send", LOOPBACK, str(here.getsockname()[1]), "-n", "96", "-f", "3")
        call(tools / "udpflood", *argv)
        got = [here.recvfrom(100) for _ in range(96)]
    assert {len(payload) for payload, _ in got} == {18}
    ports = [peer[1] for _, peer in got]
    assert sorted(ports.count(port) for port in set(ports)) == [32, 32, 32]


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["reflector"], id="reflector without TAPs"),
        pytest.param(["reflector", "-x", "a", "b"], id="reflector with an unknown option"),
        pytest.param(["crr"], id="crr without a role"),
        pytest.param(["crr", "client", "not-an-address", "80"], id="crr to no address"),
        pytest.param(["crr", "client", LOOPBACK, "80", "-c", "0"], id="crr with nothing open"),
        pytest.param(["udpflood", "send", LOOPBACK], id="udpflood without a port"),
        pytest.param(["udpflood", "send", LOOPBACK, "9", "-f", "0"], id="udpflood without flows"),
    ],
)
def test_wrong_usage_is_told_apart(tools: Path, argv: list[str]) -> None:
    done = subprocess.run([tools / argv[0], *argv[1:]], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr
