"""Conns in a file: what is written is placed again, aged, under the dests' new numbers."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from tests.flow import kit
from tunlb.ipvs import conn as c
from tunlb.ipvs.sharding import Sharding, shard_keys
from tunlb.netif import LADDR
from tunlb.shared import LAYOUT, Shared
from tunlb.supervisor import snapshot
from tunlb.supervisor.snapshot import PIECE_ROWS, Head, Reader, SnapshotError, Source
from tunlb.testing.audit import audit
from tunlb.wiring import pair

KEY = ("web", "tcp", *pair(ip_address("10.0.0.11")), 8080)
OTHER = ("web", "tcp", *pair(ip_address("10.0.0.12")), 8080)
LADDRS = {pair(ip_address(kit.V4.laddr)): LADDR}
SECRET = b"s" * 32
WORKERS_0 = Head(at_ms=0, at=0.0, workers=0, secret=SECRET, dests=())


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
        source = Source(file)
        reader = Reader(source.head(), tables, numbers, LADDRS, now_ms, now)  # type: ignore[arg-type]
        return reader.place(source)


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
    assert restored == (2, 0, 0, 30.0)
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
            snapshot.MAGIC + b'{"format":2,"layout":1,"order":"little","version":"0.0.1"}\n',
            "tunlb 0.0.1 wrote it in format 2, layout 1, little-endian;"
            f" this is .* layout {LAYOUT}",
        ),
        (
            snapshot.MAGIC + b'{"layout":2,"order":"little","version":"0.0.1"}\n' + bytes(200),
            f"tunlb 0.0.1 wrote it in format 1, layout 2, .* format {snapshot.FORMAT}",
        ),
        (
            snapshot.MAGIC + msgspec.json.encode(WORKERS_0) + b"\n",
            "its head says 0 workers",
        ),
    ],
    ids=[
        "empty",
        "a picture",
        "no head",
        "a list",
        "no keys",
        "another layout",
        "the former format",
        "of nobody",
    ],
)
def test_a_strange_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "conns"
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=message), open(path, "rb") as file:
        Source(file).head()


def written(shared: list[Shared], path: Path) -> bytes:
    """A file of two workers, a conn each; what is in it."""
    for _ in range(2):
        conn(conns_of(table(shared)), 1)
    snapshot.write(path, head(workers=2), shared[:2])
    return path.read_bytes()


@pytest.mark.parametrize("cut", [1, 8, 9, 100, 8 + 192, 16 + 192, 8 + 2 * 200])
def test_a_file_cut_short_places_nothing(shared: list[Shared], tmp_path: Path, cut: int) -> None:
    """Wherever: also between two workers, or behind the head."""
    path = tmp_path / "conns"
    path.write_bytes(written(shared, path)[:-cut])
    after = [table(shared), table(shared)]
    with pytest.raises(SnapshotError, match="it is cut short"):
        reread(path, after, {KEY: 0}, 0, 1000.0)
    assert [conns_of(each).fresh for each in after] == [0, 0]


def test_a_damaged_file_places_nothing(shared: list[Shared], tmp_path: Path) -> None:
    """Any byte of it may be another one."""
    path = tmp_path / "conns"
    whole = written(shared, path)
    after = [table(shared), table(shared)]
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(SnapshotError):
            reread(path, after, {KEY: 0}, 0, 1000.0)
    path.write_bytes(whole + b"\0")
    with pytest.raises(SnapshotError, match="it goes on behind its end"):
        reread(path, after, {KEY: 0}, 0, 1000.0)
    assert [conns_of(each).fresh for each in after] == [0, 0]
    path.write_bytes(whole)
    assert reread(path, after, {KEY: 0}, 0, 1000.0).placed == 2


def test_what_a_killed_writer_left_is_in_nobodys_way(shared: list[Shared], tmp_path: Path) -> None:
    path = tmp_path / "conns"
    (tmp_path / ".conns.new").write_bytes(b"half of a")
    written(shared, path)
    assert [each.name for each in tmp_path.iterdir()] == ["conns"]


def test_a_full_disk_leaves_the_former(
    shared: list[Shared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "conns"
    whole = written(shared, path)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        snapshot.write(path, head(workers=2), shared[:2])
    assert [each.name for each in tmp_path.iterdir()] == ["conns"]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o644, 0o620, 0o602, 0o666], ids=oct)
def test_who_may_have_written_it(shared: list[Shared], tmp_path: Path, mode: int) -> None:
    path = tmp_path / "conns"
    written(shared, path)
    path.chmod(mode)
    after = [table(shared), table(shared)]
    if mode & 0o022:
        with pytest.raises(SnapshotError, match=r"others may write to it .* chmod 600"):
            snapshot.restore(path, after, {KEY: 0}, {}, 0)
        assert conns_of(after[0]).fresh == 0
    else:
        assert snapshot.restore(path, after, {KEY: 0}, {}, 0)[1] == SECRET


def test_another_users_file(
    shared: list[Shared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "conns"
    written(shared, path)
    os.chown(path, 4711, -1)
    with pytest.raises(SnapshotError, match="uid 4711"):
        snapshot.restore(path, [table(shared)], {KEY: 0}, {}, 0)


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises((SnapshotError, IsADirectoryError)):
            snapshot.restore(path, [], {}, {}, 0)


def test_more_rows_than_a_piece(shared: list[Shared], tmp_path: Path) -> None:
    """A template may be pieces away from the conns that it holds."""
    rows = 2 * PIECE_ROWS + 5
    one = conns_of(table(shared, rows))
    for cport in range(rows - 1):
        conn(one, cport, dest=cport % 2, flags=c.CONTROLLED)
    template = conn(one, rows, flags=c.TEMPLATE)
    extras = shared[0].conns[c.HEADER_SIZE + rows * c.ROW_SIZE :].cast("I")
    for row in range(rows - 1):
        extras[row * 16 + c.X_CONTROL] = template
        extras[row * 16 + c.X_END] = row
    path = tmp_path / "conns"
    assert snapshot.write(path, head(), shared[:1]) == rows
    after = table(shared, rows)
    assert reread(path, [after], {KEY: 0}, 0, 1000.0)[:2] == (rows // 2 + 1, rows // 2)
    extras = after.conns[c.HEADER_SIZE + rows * c.ROW_SIZE :].cast("I")
    for row, ports in enumerate(words(after, c.D_PORTS)[:-1]):
        assert ports >> 16 == 2 * row
        assert extras[row * 16 + c.X_END] == 2 * row
        assert extras[row * 16 + c.X_CONTROL] == rows // 2


@pytest.mark.parametrize(
    ("timeout", "later_s", "left"),
    [
        (900_000, 0.0, 899_000),
        (900_000, 898.0, 1_000),
        (900_000, 899.0, None),
        (900_000, -3600.0, 899_000),
        (900_000, 4_295_000.0, None),
        (2_000_000_000, 1_000_000.0, 999_999_000),
    ],
    ids=["at once", "in time", "too late", "a clock behind", "49 days and 17 hours", "a long one"],
)
def test_the_time_that_is_left(
    shared: list[Shared], tmp_path: Path, timeout: int, later_s: float, left: int | None
) -> None:
    """The rows' clock goes round every 49 days: that makes no old conn young."""
    one = conns_of(table(shared))
    row = conn(one, 1, seen=49_000)
    one.mem.cast("I")[row * 32 + c.D_TIMEOUT] = timeout
    path = tmp_path / "conns"
    snapshot.write(path, head(), shared[:1])
    after = table(shared)
    restored = reread(path, [after], {KEY: 0}, now_ms=7_000, now=1000.0 + later_s)
    if left is None:
        assert restored[:3] == (0, 0, 1)
        return
    assert restored[:3] == (1, 0, 0)
    (seen,) = words(after, c.D_LAST_SEEN)
    assert timeout - ((7_000 - seen) & 0xFFFFFFFF) == left


def test_a_conn_that_was_seen_while_the_file_was_written(
    shared: list[Shared], tmp_path: Path
) -> None:
    one = conns_of(table(shared))
    row = conn(one, 1, seen=50_700)
    one.mem.cast("I")[row * 32 + c.D_TIMEOUT] = 900_000
    path = tmp_path / "conns"
    snapshot.write(path, head(at_ms=50_000), shared[:1])
    after = table(shared)
    assert reread(path, [after], {KEY: 0}, 7_000, 1002.0)[:3] == (1, 0, 0)
    assert words(after, c.D_LAST_SEEN) == [7_000 - 1_300]


def test_a_row_that_becomes_another_conns_is_left_out(
    shared: list[Shared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker ends conns and makes new ones while its table is read."""
    one = conns_of(table(shared))
    rows = [conn(one, cport) for cport in range(4)]

    class Meddled(bytearray):
        """What reads the table: before the last look at it, one row ends and one is reused."""

        def __init__(self, *given: object) -> None:
            super().__init__(*given)
            if given and len(self) == 4 * c.ROW_SIZE:
                for row in rows[1:3]:
                    one.unlink(row)
                    one.free(row)
                assert conn(one, 9) == rows[2]

    monkeypatch.setattr(snapshot, "bytearray", Meddled, raising=False)
    assert snapshot.write(tmp_path / "conns", head(), shared[:1]) == 2
    monkeypatch.undo()
    after = table(shared)
    reread(tmp_path / "conns", [after], {KEY: 0}, 0, 1000.0)
    assert [ports >> 16 for ports in words(after, c.D_PORTS)] == [0, 3]


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
