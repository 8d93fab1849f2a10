"""The rows of the connection table: layout, size, sharing, and the keyed hash."""

from __future__ import annotations

from collections import Counter

import pytest

from tunlb.ipvs import conn as c
from tunlb.ipvs.conn import ConnTable, hash_secret
from tunlb.ipvs.life import ConnTimers

MAPPED = 0xFFFF_0000_0000
CLIENT, VIP, DEST, LADDR = (MAPPED | n for n in (0x0A000001, 0x0A000064, 0x0A00000B, 0x0A0000C8))

# (name, first byte, bytes), each as the packet path addresses it
FIELDS = [
    ("keys", 8 * c.Q_KEY, 64),
    ("ports", 4 * c.D_PORTS, 8),
    ("proto", c.B_PROTO, 1),
    ("af", c.B_AF, 1),
    ("state", c.B_STATE, 1),
    ("fwdmode", c.B_FWDMODE, 1),
    ("flags", 2 * c.H_FLAGS, 2),
    ("generation", 2 * c.H_GENERATION, 2),
    ("last_seen", 4 * c.D_LAST_SEEN, 4),
    ("timeout", 4 * c.D_TIMEOUT, 4),
    ("dest", 4 * c.D_DEST, 4),
    ("delta", 2 * c.H_DELTA, 8),
    ("neigh", 2 * c.H_NEIGH, 4),
    ("mtu", 2 * c.H_MTU, 4),
    ("packets", 4 * c.D_PACKETS, 8),
    ("next", 4 * c.D_NEXT, 8),
    ("epoch", 4 * c.D_EPOCH, 4),
]


def fill(table: ConnTable, row: int, inbound: tuple[int, ...], outbound: tuple[int, ...]) -> None:
    q, d, b = table.mem.cast("Q"), table.mem.cast("I"), table.mem.cast("B")
    for direction, (saddr, daddr, ports) in enumerate((inbound, outbound)):
        q[row * 16 + direction * 4 + 1] = saddr
        q[row * 16 + direction * 4 + 3] = daddr
        d[row * 32 + c.D_PORTS + direction] = ports
    b[row * 128 + c.B_PROTO] = 6


def test_fields_share_no_byte_and_fill_at_most_a_row() -> None:
    owner: dict[int, str] = {}
    for name, first, size in FIELDS:
        for byte in range(first, first + size):
            assert byte not in owner, f"{name} lies on {owner[byte]}"
            owner[byte] = name
    assert max(owner) < c.ROW_SIZE == 128


def test_every_word_constant_is_checked_here() -> None:
    named = {name for name in vars(c) if name[:2] in ("Q_", "D_", "B_", "H_")}
    assert {name.split("_", 1)[1].lower().replace("key", "keys") for name in named} == {
        name for name, _, _ in FIELDS
    }


@pytest.mark.parametrize("conn_max", [1 << 10, 1 << 16])
def test_a_conn_costs_at_most_160_bytes(conn_max: int) -> None:
    """Row, bucket heads of two keys, links of the timer wheel; the heads are a power of two."""
    table = ConnTable(conn_max, hash_secret(b""))
    heads = 4 * (table.mask + 1)
    wheel = ConnTimers(conn_max).mem.nbytes - ConnTimers(1).mem.nbytes
    assert (table.mem.nbytes + heads + wheel) / conn_max <= 160


def test_a_fresh_row_is_zero_but_for_its_generation() -> None:
    table = ConnTable(2, hash_secret(b""))
    row = table.alloc()
    fill(table, row, (CLIENT, VIP, 1), (DEST, LADDR, 2))
    assert table.link(row)
    table.unlink(row)
    table.free(row)
    again = table.alloc()
    assert again == row
    words = table.mem.cast("H")[row * 64 : (row + 1) * 64]
    assert [i for i, word in enumerate(words) if word] == [c.H_GENERATION]
    assert words[c.H_GENERATION] == 2


def test_the_generation_wraps() -> None:
    table = ConnTable(1, hash_secret(b""))
    table.mem.cast("H")[c.H_GENERATION] = 0xFFFF
    assert table.alloc() == 0
    assert table.mem.cast("H")[c.H_GENERATION] == 0


def test_a_full_table_says_so_and_recovers() -> None:
    table = ConnTable(3, hash_secret(b""))
    assert [table.alloc() for _ in range(4)] == [0, 1, 2, -1]
    assert table.count == 3
    table.free(1)
    assert table.alloc() == 1
    assert table.alloc() == -1


def test_link_refuses_a_key_that_is_taken_and_does_nothing() -> None:
    table = ConnTable(4, hash_secret(b""))
    first, second = table.alloc(), table.alloc()
    fill(table, first, (CLIENT, VIP, 1), (DEST, LADDR, 2))
    fill(table, second, (CLIENT, VIP, 3), (DEST, LADDR, 2))
    assert table.link(first)
    assert not table.link(second)
    assert not table.valid(second)
    assert table.find(0, CLIENT, 0, VIP, 3, 6) == -1
    assert table.find(0, DEST, 0, LADDR, 2, 6) == first * 2 + c.OUTBOUND


def test_a_oneway_row_is_found_by_its_inbound_key_only() -> None:
    table = ConnTable(4, hash_secret(b""))
    row = table.alloc()
    fill(table, row, (CLIENT, VIP, 1), (DEST, CLIENT, 2))
    table.mem.cast("H")[row * 64 + c.H_FLAGS] = c.ONEWAY
    assert table.link(row)
    assert table.find(0, CLIENT, 0, VIP, 1, 6) == row * 2 + c.INBOUND
    assert table.find(0, DEST, 0, CLIENT, 2, 6) == -1
    table.unlink(row)
    assert table.find(0, CLIENT, 0, VIP, 1, 6) == -1


def test_rows_live_in_the_buffer_that_was_given() -> None:
    """Shared memory: whoever maps the buffer reads the conns."""
    buffer = bytearray(c.table_size(4))
    table = ConnTable(4, hash_secret(b""), buffer)
    row = table.alloc()
    fill(table, row, (CLIENT, VIP, 1), (DEST, LADDR, 2))
    assert table.link(row)
    assert memoryview(buffer).cast("Q")[c.HEADER_FRESH] == 1
    reader = memoryview(buffer)[c.HEADER_SIZE :]
    assert reader.cast("H")[row * 64 + c.H_FLAGS] & c.VALID
    assert reader.cast("Q")[row * 16 + 1] == CLIENT


def test_a_successor_finds_the_rows() -> None:
    """Nothing but the buffer is needed: heads and the free list are made again."""
    buffer = bytearray(c.table_size(4))
    table = ConnTable(4, hash_secret(b"one"), buffer)
    rows = [table.alloc() for _ in range(3)]
    for row in rows:
        fill(table, row, (CLIENT, VIP, row), (DEST, LADDR, row))
        assert table.link(row)
    table.unlink(1)
    table.free(1)
    after = ConnTable(4, hash_secret(b"other"), buffer)
    assert (after.fresh, after.count, list(after.rows())) == (3, 0, [0, 2])
    assert after.find(0, CLIENT, 0, VIP, 0, 6) == -1
    after.discard(1)
    assert after.adopt(0)
    assert after.adopt(2)
    assert [after.find(0, CLIENT, 0, VIP, row, 6) for row in rows] == [0, -1, 4]
    assert (after.count, after.alloc(), after.alloc(), after.alloc()) == (2, 1, 3, -1)


def test_a_second_row_with_a_known_key_is_not_adopted() -> None:
    buffer = bytearray(c.table_size(4))
    table = ConnTable(4, hash_secret(b""), buffer)
    for row in (table.alloc(), table.alloc()):
        fill(table, row, (CLIENT, VIP, 1), (DEST, LADDR, 2))
        table.mem.cast("H")[row * 64 + c.H_FLAGS] = c.VALID
    after = ConnTable(4, hash_secret(b""), buffer)
    assert after.adopt(1)
    assert not after.adopt(0)
    assert after.count == 1


def test_a_buffer_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="4 rows need 4864 bytes, got 512"):
        ConnTable(4, hash_secret(b""), bytearray(512))


def test_the_hash_needs_its_whole_secret() -> None:
    with pytest.raises(ValueError, match="needs 88 secret bytes, got 87"):
        ConnTable(4, bytes(87))


def test_two_secrets_hash_differently() -> None:
    one, other = (ConnTable(4, hash_secret(secret)) for secret in (b"one", b"two"))
    keys = [(0, CLIENT + i, 0, VIP, 40000 << 16 | 80, 6) for i in range(64)]
    same = sum(one.hash_tuple(*key) == other.hash_tuple(*key) for key in keys)
    assert same <= 1


def test_one_secret_hashes_alike() -> None:
    one, other = (ConnTable(4, hash_secret(b"same")) for _ in range(2))
    assert one.hash_tuple(1, 2, 3, 4, 5, 6) == other.hash_tuple(1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("field", range(6))
def test_every_part_of_the_key_matters(field: int) -> None:
    table = ConnTable(4, hash_secret(b"parts"))
    key = [0xFD00 << 48, 1, 0xFD01 << 48, 2, 40000 << 16 | 80, 6]
    before = table.hash_tuple(*key)
    key[field] ^= 1
    assert table.hash_tuple(*key) != before


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("clients in a row", [(0, CLIENT + i, 0, VIP, 40000 << 16 | 80, 6) for i in range(4096)]),
        ("ports of one client", [(0, CLIENT, 0, VIP, i << 16 | 80, 6) for i in range(4096)]),
        ("lports of one laddr", [(0, DEST, 0, LADDR, 8080 << 16 | i, 6) for i in range(4096)]),
        ("a v6 prefix", [(0xFD << 56, i << 48, 0xFD << 56, 1, 80, 6) for i in range(4096)]),
    ],
)
def test_neighbouring_keys_spread_over_the_buckets(name: str, keys: list[tuple[int, ...]]) -> None:
    """4096 keys in 8192 buckets: at random the fullest would hold about 5."""
    table = ConnTable(4096, hash_secret(b"spread"))
    assert table.mask == 8191
    chains = Counter(table.hash_tuple(*key) & table.mask for key in keys)
    assert max(chains.values()) <= 12, name
    assert len(chains) >= 2048, name
