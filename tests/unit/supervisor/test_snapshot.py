"""Conns in a file: what is written is placed again, aged, under the dests' new numbers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.flow import kit
from tunlb.ipvs import conn as c
from tunlb.ipvs.sharding import Sharding, shard_keys
from tunlb.shared import LAYOUT, Shared
from tunlb.supervisor import snapshot
from tunlb.supervisor.snapshot import Head, Reader, SnapshotError
from tunlb.testing.audit import audit
from tunlb.wiring import pair

KEY = ("web", "tcp", *pair(ip_address("10.0.0.11")), 8080)
OTHER = ("web", "tcp", *pair(ip_address("10.0.0.12")), 8080)
SECRET = b"s" * 32


@pytest.fixture
def shared() -> Iterator[list[Shared]]:
    """Tables of eight rows, closed afterwards; append to it through `table`."""
    made: list[Shared] = []
    yield made
    for each in made:
        each.close_fds()


def table(made: list[Shared], conn_max: int = 8) -> Shared:
    made.append(Shared.create(len(made), conn_max))
    return made[-1]


def conns_of(one: Shared) -> c.ConnTable:
    return c.ConnTable(one.conn_max, c.hash_secret(b""), one.conns)


def conn(one: c.ConnTable, cport: int, *, dest: int = 0, flags: int = 0, seen: int = 0) -> int:
    """A linked row of a TCP client 10.0.1.1:cport, as the dest of that number has it."""
    row = int(one.alloc())
    q, d, b, h = one.mem.cast("Q"), one.mem.cast("I"), one.mem, one.mem.cast("H")
    q[row * 16 : row * 16 + 8] = memoryview(
        struct.pack(
            "=8Q",
            *pair(ip_address("10.0.1.1")),
            *pair(ip_address("10.0.0.100")),
            *pair(ip_address("10.0.0.11")),
            *pair(ip_address("10.0.1.1")),
        )
    ).cast("Q")
    d[row * 32 + c.D_PORTS] = cport << 16 | 80
    d[row * 32 + c.D_PORTS + 1] = 8080 << 16 | cport
    d[row * 32 + c.D_DEST] = dest
    d[row * 32 + c.D_LAST_SEEN] = seen
    b[row * c.ROW_SIZE + c.B_PROTO] = 6
    h[row * 64 + c.H_FLAGS] = flags
    assert one.link(row)
    return row


def head(**keys: object) -> Head:
    fields: dict[str, object] = {
        "at_ms": 50_000,
        "at": 1000.0,
        "workers": 1,
        "secret": SECRET,
        "dests": ((KEY, 0), (OTHER, 1)),
    }
    return Head(**{**fields, **keys})  # type: ignore[arg-type]


def reread(
    path: Path, tables: list[Shared], numbers: dict[object, int], now_ms: int, now: float
) -> snapshot.Restored:
    with open(path, "rb") as file:
        found = snapshot.read_head(file)
        return Reader(found, tables, numbers, now_ms, now).place(file)  # type: ignore[arg-type]


def words(one: Shared, word: int) -> list[int]:
    """That word of every row ever used."""
    memory = one.conns[c.HEADER_SIZE :].cast("I")
    fresh = one.conns[: c.HEADER_SIZE].cast("Q")[c.HEADER_FRESH]
    return [memory[row * 32 + word] for row in range(fresh)]


def test_rows_come_back_aged_and_renumbered(shared: list[Shared], tmp_path: Path) -> None:
    one = conns_of(table(shared))
    conn(one, 1, dest=0, seen=49_000)
    gone = conn(one, 2, dest=1)
    conn(one, 3, dest=1, seen=(1 << 32) - 1000)  # seen long ago: the clock's low half went round
    one.unlink(gone)
    one.free(gone)
    path = tmp_path / "conns"
    assert snapshot.write(path, head(), shared[:1]) == 2
    assert path.stat().st_mode & 0o777 == 0o600
    after = table(shared)
    restored = reread(path, [after], {KEY: 7, OTHER: 9}, now_ms=3_000, now=1030.0)
    assert restored == (2, 0, 30.0)
    assert words(after, c.D_DEST) == [7, 9]
    # One second old when written, and 30 s more since then.
    assert words(after, c.D_LAST_SEEN) == [(3_000 - 31_000) % 2**32, (3_000 - 81_000) % 2**32]
    assert words(after, c.D_PORTS) == [1 << 16 | 80, 3 << 16 | 80]
    assert (conns_of(after).fresh, list(conns_of(after).rows())) == (2, [0, 1])


def test_what_fits_nowhere_is_left_out(shared: list[Shared], tmp_path: Path) -> None:
    one = conns_of(table(shared))
    for cport in range(6):
        conn(one, cport, dest=cport % 2)
    path = tmp_path / "conns"
    snapshot.write(path, head(), shared[:1])
    small = table(shared, 2)
    assert reread(path, [small], {KEY: 0}, 0, 1000.0)[:2] == (2, 4)
    assert words(small, c.D_PORTS) == [0 << 16 | 80, 2 << 16 | 80]


def test_a_template_is_found_under_its_new_number(shared: list[Shared], tmp_path: Path) -> None:
    one = conns_of(table(shared))
    conn(one, 1, dest=1)  # will be left out, so that numbers move
    held = conn(one, 2, flags=c.CONTROLLED)
    orphan = conn(one, 3, flags=c.CONTROLLED)
    template = conn(one, 4, flags=c.TEMPLATE)
    extras = shared[0].conns[c.HEADER_SIZE + 8 * c.ROW_SIZE :].cast("I")
    extras[held * 16 + c.X_CONTROL] = template
    extras[orphan * 16 + c.X_CONTROL] = 0
    path = tmp_path / "conns"
    snapshot.write(path, head(), shared[:1])
    after = table(shared)
    reread(path, [after], {KEY: 0}, 0, 1000.0)
    found = after.conns[c.HEADER_SIZE :].cast("H")
    flags = [found[row * 64 + c.H_FLAGS] for row in range(3)]
    assert flags == [c.VALID | c.CONTROLLED, c.VALID, c.VALID | c.TEMPLATE]
    assert after.conns[c.HEADER_SIZE + 8 * c.ROW_SIZE :].cast("I")[c.X_CONTROL] == 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_row_goes_to_the_worker_that_owns_it(
    shared: list[Shared], tmp_path: Path, workers: int
) -> None:
    """With as many workers as before it stays; else it goes by the hash of its client."""
    for worker in range(2):
        one = conns_of(table(shared, 64))
        for cport in range(20):
            conn(one, 2 * cport + worker)
    path = tmp_path / "conns"
    snapshot.write(path, head(workers=2), shared[:2])
    fresh = [table(shared, 64) for _ in range(workers)]
    assert reread(path, fresh, {KEY: 0}, 0, 1000.0)[:2] == (40, 0)
    sharding = Sharding(workers, 0, shard_keys(SECRET))
    client = pair(ip_address("10.0.1.1"))
    for worker, each in enumerate(fresh):
        for ports in words(each, c.D_PORTS):
            cport = ports >> 16
            wanted = cport % 2 if workers == 2 else sharding.by_endpoint(*client, cport)
            assert worker == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "was not written by tunlb"),
        (b"GIF89a", "was not written by tunlb"),
        (snapshot.MAGIC, "its head cannot be read"),
        (snapshot.MAGIC + b"[]\n", "its head cannot be read"),
        (snapshot.MAGIC + b"{}\n", "its head cannot be read"),
        (
            snapshot.MAGIC + b'{"layout":1,"order":"little","version":"0.0.1"}\n',
            f"tunlb 0.0.1 wrote it in layout 1, little-endian; this is .* layout {LAYOUT}",
        ),
    ],
    ids=["empty", "a picture", "no head", "a list", "no keys", "another layout"],
)
def test_a_strange_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "conns"
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=message), open(path, "rb") as file:
        snapshot.read_head(file)


@pytest.mark.parametrize("cut", [1, 100, 193])
def test_a_file_cut_short_places_nothing(shared: list[Shared], tmp_path: Path, cut: int) -> None:
    one = conns_of(table(shared))
    conn(one, 1)
    conn(one, 2)
    path = tmp_path / "conns"
    snapshot.write(path, head(), shared[:1])
    path.write_bytes(path.read_bytes()[:-cut])
    after = table(shared)
    with pytest.raises(SnapshotError, match="it ends in the middle of"):
        reread(path, [after], {KEY: 0}, 0, 1000.0)
    assert conns_of(after).fresh == 0


def test_a_file_that_cannot_be_written_leaves_the_former(
    shared: list[Shared], tmp_path: Path
) -> None:
    path = tmp_path / "there" / "conns"
    with pytest.raises(FileNotFoundError):
        snapshot.write(path, head(), [table(shared)])
    path = tmp_path / "conns"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        snapshot.write(path, head(), shared)
    assert [each.name for each in tmp_path.iterdir()] == ["conns"]


@pytest.mark.parametrize("mode", ["dr", "nat", "fnat"])
def test_another_director_goes_on(mode: str, shared: list[Shared], tmp_path: Path) -> None:
    """The whole way: conns of one director, a file, and a director that never saw their SYN."""
    net = kit.V4
    text = kit.balanced(net, "tcp", mode)
    first = kit.Rig(text, memory=table(shared, 64))
    talk = kit.Conn(first, net, mode=mode)
    talk.establish()
    path = tmp_path / "conns"
    dest = kit.the_dest(first)
    key = ("web", "tcp", dest.daddr_hi, dest.daddr, dest.dport)
    assert snapshot.write(path, head(dests=((key, dest.id),)), shared[:1]) == 1
    fresh = table(shared, 64)
    assert reread(path, [fresh], {key: dest.id}, 50_000, 1000.0)[:2] == (1, 0)
    second = kit.Rig(text, memory=fresh)
    assert second.director.adopt(second.now) == (1, 0)
    talk.rig = second
    talk.up("A", b"still there")
    assert kit.states(second) == ["ESTABLISHED"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_template_goes_to_its_home(shared: list[Shared], tmp_path: Path, workers: int) -> None:
    """The worker that chooses for a client, whichever of several had it before."""
    one = conns_of(table(shared, 64))
    template = conn(one, 6, flags=c.TEMPLATE | c.ONEWAY)
    one.unlink(template)
    one.mem[template * c.ROW_SIZE + c.B_PROTO] = c.TEMPLATE_PROTO
    assert one.link(template)
    path = tmp_path / "conns"
    snapshot.write(path, head(workers=5), shared[:1])
    fresh = [table(shared, 64) for _ in range(workers)]
    assert reread(path, fresh, {KEY: 0}, 0, 1000.0)[:2] == (1, 0)
    home = Sharding(workers, 0, shard_keys(SECRET)).by_endpoint(*pair(ip_address("10.0.1.1")), 80)
    assert [len(words(each, c.D_PORTS)) for each in fresh] == [
        int(worker == home) for worker in range(workers)
    ]


@pytest.mark.parametrize("mode", ["fnat", "dr"])
def test_clients_keep_their_dest(mode: str, shared: list[Shared], tmp_path: Path) -> None:
    """The whole way: persistence, by what a former director knew."""
    net = kit.V4
    both = kit.dest(net, mode), kit.dest(net, mode, daddr=net.dest2)
    text = kit.text(*kit.network(net), kit.service(net, mode=mode, persistence_s=60), *both)
    first = kit.Rig(text, memory=table(shared, 64))
    kit.Conn(first, net, mode=mode, caddr="198.51.100.1").establish()
    talk = kit.Conn(first, net, mode=mode, daddr=net.dest2).establish()
    dests = [kit.the_dest(first, address) for address in (net.dest, net.dest2)]
    keys = tuple((("web", "tcp", d.daddr_hi, d.daddr, d.dport), d.id) for d in dests)
    path = tmp_path / "conns"
    assert snapshot.write(path, head(dests=keys), shared[:1]) == 4
    fresh = table(shared, 64)
    assert reread(path, [fresh], dict(keys), 50_000, 1000.0)[:2] == (4, 0)
    second = kit.Rig(text, memory=fresh, now=first.now)
    assert second.director.adopt(second.now) == (4, 0)
    talk.rig = second
    talk.up("A", b"still there")
    for cport in (1, 2, 3):
        kit.Conn(second, net, mode=mode, cport=cport, daddr=net.dest2).up("S")
    assert "TEMPLATE_NEW" not in second.counters()
    audit(second.director)
