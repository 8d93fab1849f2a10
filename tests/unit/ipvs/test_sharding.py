"""Who owns a flow: one worker, the same for both directions."""

from __future__ import annotations

import struct
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tunlb.ipvs.conn import hash_secret
from tunlb.ipvs.laddr import LportPool
from tunlb.ipvs.sharding import SHARD_KEYS, Sharding, shard_keys
from tunlb.netif import ADDRESS, LADDR, VIP, Addresses, Netif

MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1

TAP = Netif(0, "lb0", 0x02AABBCCDDEE)
VIP4 = (0, 0xFFFF_0A00_0064)
LADDR4 = (0, 0xFFFF_0A00_00C8)
OWN4 = (0, 0xFFFF_0A00_00FE)
DEST4 = (0, 0xFFFF_0A00_000B)
CLIENT4 = (0, 0xFFFF_C000_0207)
VIP6 = (0xFD00 << 48, 0x64)
LADDR6 = (0xFD00 << 48, 0xC8)
CLIENT6 = (0x2001_0DB8_0000_0001, 0x0123_4567_89AB_CDEF)
KEYS = shard_keys(b"test")

words = st.integers(0, MASK64)
ports = st.integers(0, 0xFFFF)
counts = st.integers(1, 64)


def addresses() -> Addresses:
    ours = Addresses()
    for af, address, kind in (
        (4, VIP4, VIP),
        (4, LADDR4, LADDR),
        (4, OWN4, ADDRESS),
        (6, VIP6, VIP),
        (6, LADDR6, LADDR),
    ):
        ours.add(TAP, af, *address, kind)
    return ours


@pytest.mark.parametrize("key", range(SHARD_KEYS))
def test_each_key_multiplies_its_own_word(key: int) -> None:
    """With one multiplier of 2**32 and no other, the hash is what that one multiplies."""
    keys = [0] * SHARD_KEYS
    keys[key] = 1 << 32
    sharding = Sharding(64, 0, struct.pack(f"={SHARD_KEYS}Q", *keys))
    hi, lo, port = 0x0000_0011_0000_0012, 0x0000_0013_0000_0014, 0x15
    assert sharding.by_endpoint(hi, lo, port) == (1, 0x11, 0x12, 0x13, 0x14, 0x15)[key]


@given(workers=counts, keys=st.binary(min_size=48, max_size=48), hi=words, lo=words, port=ports)
def test_the_hash_is_the_formula(workers: int, keys: bytes, hi: int, lo: int, port: int) -> None:
    k = struct.unpack("=6Q", keys)
    row = (1, hi >> 32, hi & MASK32, lo >> 32, lo & MASK32, port)
    expected = (sum(a * b for a, b in zip(k, row, strict=True)) & MASK64) >> 32
    assert Sharding(workers, 0, keys).by_endpoint(hi, lo, port) == expected % workers


@pytest.mark.parametrize(
    ("vip", "client"), [(VIP4, CLIENT4), (OWN4, CLIENT4), (VIP6, CLIENT6)], ids=["4", "own", "6"]
)
@given(workers=counts, sport=ports, vport=ports, dport=ports)
def test_both_directions_of_nat_have_one_owner(
    vip: tuple[int, int], client: tuple[int, int], workers: int, sport: int, vport: int, dport: int
) -> None:
    sharding, ours = Sharding(workers, 0, KEYS), addresses()
    owner = sharding.owner(ours, *client, sport, *vip, vport)
    assert 0 <= owner < workers
    assert owner == sharding.by_endpoint(*client, sport)
    # what a dest answers, before it is translated back
    assert owner == sharding.owner(ours, *DEST4, dport, *client, sport)


@pytest.mark.parametrize("laddr", [LADDR4, LADDR6], ids=["v4", "v6"])
@pytest.mark.parametrize("workers", [1, 2, 3, 64])
def test_the_reply_to_an_lport_comes_to_the_worker_that_took_it(
    workers: int, laddr: tuple[int, int]
) -> None:
    sharding, ours = Sharding(workers, 0, KEYS), addresses()
    for worker in range(workers):
        pool = LportPool(workers, worker)
        for _ in range(5):
            assert sharding.owner(ours, *DEST4, 80, *laddr, pool.take()) == worker


@pytest.mark.parametrize("workers", [2, 3, 16])
def test_flows_spread_evenly(workers: int) -> None:
    """Clients that differ in nothing but the port, or the last bits of the address."""
    sharding = Sharding(workers, 0, KEYS)
    share = 8000 / workers
    by_port = Counter(sharding.by_endpoint(*CLIENT4, port) for port in range(8000))
    by_address = Counter(sharding.by_endpoint(0, CLIENT4[1] + i, 443) for i in range(8000))
    for found in (by_port, by_address):
        assert sorted(found) == list(range(workers))
        assert all(share * 0.8 < n < share * 1.2 for n in found.values()), found


def test_every_worker_computes_the_same() -> None:
    ours = addresses()
    for port in range(100):
        flow = (ours, *CLIENT6, port, *VIP6, 80)
        assert len({Sharding(4, worker, KEYS).owner(*flow) for worker in range(4)}) == 1


def test_other_keys_are_another_hash() -> None:
    one, other = (Sharding(16, 0, shard_keys(material)) for material in (b"one", b"other"))
    differ = [one.by_endpoint(*CLIENT4, p) != other.by_endpoint(*CLIENT4, p) for p in range(200)]
    assert sum(differ) > 150


def test_the_keys_are_their_own() -> None:
    """Neither another material's nor those of the conn table, which would cluster its buckets."""
    keys = shard_keys(b"secret")
    assert keys == shard_keys(b"secret")
    assert len(keys) == 8 * SHARD_KEYS
    assert keys[:8] not in (shard_keys(b"Secret")[:8], hash_secret(b"secret")[:8])


@pytest.mark.parametrize(
    ("workers", "worker", "keys"),
    [(0, 0, KEYS), (2, 2, KEYS), (2, -1, KEYS), (2, 0, KEYS[1:]), (2, 0, KEYS + b"\0")],
    ids=["none", "one too far", "negative", "short", "long"],
)
def test_a_share_that_there_is_not(workers: int, worker: int, keys: bytes) -> None:
    with pytest.raises(ValueError):
        Sharding(workers, worker, keys)


def test_a_share_knows_its_place() -> None:
    sharding = Sharding(4, 3, KEYS)
    assert (sharding.workers, sharding.worker) == (4, 3)
