"""The C programs of the bench, on loopback: what they count is what happened."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# nothing of tunlb's own build takes part
pytestmark = [pytest.mark.alone, pytest.mark.slow]

LOOPBACK = "127.0.0.1"
SOURCES = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the C programs, compiled so that every warning fails."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("bench-tools")
    for name in ("reflector", "crr", "udpflood", "hold"):
        flags = ["-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
        subprocess.run([compiler, *flags, "-o", made / name, SOURCES / f"{name}.c"], check=True)
    return made


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


@pytest.mark.parametrize("rate", [100, 2000])
def test_crr_keeps_the_pace(tools: Path, rate: int) -> None:
    with serving(tools / "crr", "server", "0") as (_, port):
        argv = ("client", LOOPBACK, port, "-r", str(rate), "-t", "0.5")
        status, figures = call(tools / "crr", *argv)
    assert status == 0
    # One more than the time holds begins at once; a busy machine takes some away.
    assert rate * 0.25 <= figures["exchanges"] <= rate * 0.5 + 2


def test_crr_makes_up_for_what_no_slot_was_free(tools: Path) -> None:
    with serving(tools / "crr", "server", "0") as (_, port):
        argv = ("client", LOOPBACK, port, "-r", "1e9", "-c", "1", "-n", "100", "-t", "15")
        status, figures = call(tools / "crr", *argv)
    assert (status, figures["exchanges"]) == (0, 100)


def test_crr_times_one_exchange_after_the_other(tools: Path) -> None:
    with serving(tools / "crr", "server", "0") as (_, port):
        status, figures = call(
            tools / "crr", "client", LOOPBACK, port, "-l", "-n", "50", "-t", "15"
        )
    assert status == 0
    assert (figures["exchanges"], figures["errors"]) == (50, 0)
    connects, responses = figures["connect_us"], figures["response_us"]
    assert len(connects) == len(responses) == 50
    assert all(
        0 < connect < response for connect, response in zip(connects, responses, strict=True)
    )
    assert sum(responses) < figures["seconds"] * 1e6
    assert statistics.median(connects) < 10_000


def test_crr_times_nothing_where_nobody_listens(tools: Path) -> None:
    with socket.socket() as bound:
        bound.bind((LOOPBACK, 0))
        argv = ("client", LOOPBACK, str(bound.getsockname()[1]), "-l", "-n", "2", "-t", "5")
        status, figures = call(tools / "crr", *argv)
    assert status == 1
    assert (figures["exchanges"], figures["errors"], figures["connect_us"]) == (0, 2, [])


def test_crr_s_client_says_what_it_did_until_it_was_stopped(tools: Path) -> None:
    with serving(tools / "crr", "server", "0") as (_, port):
        argv = [str(tools / "crr"), "client", LOOPBACK, port, "-r", "1000", "-t", "60"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as client:
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(0.3)
            client.terminate()
            figures = json.loads(client.communicate(timeout=10)[0])
    assert figures["exchanges"] > 0
    assert figures["seconds"] < 10


def ask(port: str, *parts: bytes) -> bytes:
    """What the server says to a request that comes in parts, up to its close."""
    with socket.create_connection((LOOPBACK, int(port)), timeout=5) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            peer.sendall(part)
        answer = b""
        while data := peer.recv(1000):
            answer += data
    return answer


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], id="whole"),
        pytest.param([b"GET / HTTP/1.1\r\nHo", b"st: x\r", b"\n\r\n"], id="in parts"),
    ],
)
def test_http_answers_a_whole_request_and_closes(tools: Path, parts: list[bytes]) -> None:
    with serving(tools / "crr", "http", "0") as (_, port):
        head, body = ask(port, *parts).split(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.1 200 OK"
    assert b"Connection: close" in head
    found = re.search(rb"Content-Length: (\d+)", head)
    assert found is not None
    assert int(found[1]) == len(body)


def test_http_survives_a_client_that_asks_nothing(tools: Path) -> None:
    with serving(tools / "crr", "http", "0") as (server, port):
        socket.create_connection((LOOPBACK, int(port)), timeout=5).close()
        assert ask(port, b"GET / HTTP/1.0\r\n\r\n")
        assert server.poll() is None


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
    # What a busy machine takes away, and the one that goes first.
    assert 500 <= sent["packets"] <= 1001


def test_sink_that_saw_nothing_says_so(tools: Path) -> None:
    with serving(tools / "udpflood", "sink", "0") as (sink, _):
        sink.terminate()
        assert json.loads(sink.communicate(timeout=10)[0]) == {
            "packets": 0,
            "distinct": 0,
            "seconds": 0,
            "dropped": 0,
        }


def test_sink_counts_what_is_still_on_its_way(tools: Path) -> None:
    with serving(tools / "udpflood", "sink", "0") as (sink, port):
        sink.terminate()
        call(tools / "udpflood", "send", LOOPBACK, port, "-n", "1")
        assert json.loads(sink.communicate(timeout=10)[0])["packets"] == 1


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


def few_files(count: int | None) -> list[str]:
    """What goes before a command that may not have more open files, nor raise its limit."""
    if count is None:
        return []
    powers = ["setpriv", "--bounding-set", "-sys_resource"] if os.geteuid() == 0 else []
    return ["prlimit", f"--nofile={count}", *powers]


@contextlib.contextmanager
def holding(tools: Path, *argv: str, files: int | None = None) -> Iterator[tuple[Any, list[str]]]:
    """A server of hold on free ports: the process and its ports."""
    command = [*few_files(files), str(tools / "hold"), "server", *argv]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            word, *ports = server.stdout.readline().split()
            assert word == "ready"
            yield server, ports
        finally:
            server.terminate()


def hold(tools: Path, *argv: str, files: int | None = None) -> tuple[int, list[str]]:
    command = [*few_files(files), str(tools / "hold"), "client", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.returncode, [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_hold_opens_holds_and_asks_every_connection(tools: Path) -> None:
    with holding(tools, "0", "0", "0") as (_, ports):
        status, (held, text) = hold(tools, "-n", "300", "-w", "0", LOOPBACK, *ports)
    figures = json.loads(text)
    assert (status, held) == (0, "held 300")
    assert (figures["opened"], figures["alive"], figures["broken"]) == (300, 300, 0)
    assert (figures["failed"], figures["error"]) == (0, "")


def test_hold_keeps_its_rate(tools: Path) -> None:
    with holding(tools, "0") as (_, ports):
        _, (_, text) = hold(tools, "-n", "100", "-r", "500", "-w", "0", LOOPBACK, *ports)
    # The first one opens at once, the last one after 99 intervals.
    assert 99 / 500 <= json.loads(text)["open_seconds"] < 5


def test_hold_shares_the_connections_out_where_files_are_few(tools: Path) -> None:
    # 128 are kept for other things, so each process has room for 60.
    command = ("-n", "150", "-w", "0", LOOPBACK)
    with holding(tools, "-n", "150", "0", "0", files=188) as (_, ports):
        status, (held, text) = hold(tools, *command, *ports, files=188)
    figures = json.loads(text)
    assert (status, held, figures["processes"]) == (0, "held 150", 3)
    assert figures["alive"] == 150


def test_hold_says_what_to_do_where_files_are_too_few(tools: Path) -> None:
    status, (text,) = hold(tools, "-n", "100000", LOOPBACK, "80", files=188)
    assert status == 1
    assert "raise the hard limit" in text


def test_hold_counts_connections_that_broke_while_held(tools: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = str(listener.getsockname()[1])
        results: list[tuple[int, list[str]]] = []
        client = threading.Thread(
            target=lambda: results.append(hold(tools, "-n", "3", "-w", "0.3", LOOPBACK, port))
        )
        client.start()
        peers = [listener.accept()[0] for _ in range(3)]
        for peer in peers:
            peer.sendall(peer.recv(1))
        peers[0].close()
        for peer in peers[1:]:
            peer.sendall(peer.recv(1))
        client.join()
        for peer in peers[1:]:
            peer.close()
    status, (_, text) = results[0]
    figures = json.loads(text)
    assert status == 0
    assert (figures["opened"], figures["alive"], figures["broken"]) == (3, 2, 1)


def test_hold_gives_up_what_does_not_open_in_time(tools: Path) -> None:
    # A listener that never answers: the connection opens, but not end to end.
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = str(listener.getsockname()[1])
        status, (held, text) = hold(tools, "-n", "2", "-t", "0.2", "-w", "0", LOOPBACK, port)
    figures = json.loads(text)
    assert (status, held) == (1, "held 0")
    assert (figures["failed"], figures["error"]) == (2, "Connection timed out")


def test_hold_says_why_nothing_opened(tools: Path) -> None:
    with socket.socket() as bound:
        bound.bind((LOOPBACK, 0))
        port = str(bound.getsockname()[1])
        status, (_, text) = hold(tools, "-n", "5", "-w", "0", LOOPBACK, port)
    assert (status, json.loads(text)["error"]) == (1, "Connection refused")


def test_hold_leaves_nothing_when_its_server_is_stopped(tools: Path) -> None:
    with holding(tools, "0") as (server, ports):
        with socket.create_connection((LOOPBACK, int(ports[0])), timeout=5) as peer:
            peer.sendall(b"x")
            assert peer.recv(1) == b"x"
            server.terminate()
            assert server.wait(10) == 0
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, int(ports[0])), timeout=5)


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["reflector"], id="reflector without TAPs"),
        pytest.param(["reflector", "-x", "a", "b"], id="reflector with an unknown option"),
        pytest.param(["reflector", "-n", "-c", "a", "b"], id="reflector that has nothing to cut"),
        pytest.param(["crr"], id="crr without a role"),
        pytest.param(["crr", "client", "not-an-address", "80"], id="crr to no address"),
        pytest.param(["crr", "client", LOOPBACK, "80", "-c", "0"], id="crr with nothing open"),
        pytest.param(["crr", "client", LOOPBACK, "80", "-r", "-1"], id="crr at no rate"),
        pytest.param(["hold"], id="hold without a role"),
        pytest.param(["hold", "server"], id="hold without a port"),
        pytest.param(
            ["hold", "server", "-w", "1", "80"], id="hold's server with a client's option"
        ),
        pytest.param(["hold", "client", "not-an-address", "80"], id="hold to no address"),
        pytest.param(["hold", "client", "-n", "0", LOOPBACK, "80"], id="hold of nothing"),
        pytest.param(["udpflood", "send", LOOPBACK], id="udpflood without a port"),
        pytest.param(["udpflood", "send", LOOPBACK, "9", "-f", "0"], id="udpflood without flows"),
    ],
)
def test_wrong_usage_is_told_apart(tools: Path, argv: list[str]) -> None:
    done = subprocess.run([tools / argv[0], *argv[1:]], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr
