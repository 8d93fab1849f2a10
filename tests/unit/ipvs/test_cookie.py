"""SipHash against its authors' values, and SYN cookies: what makes one good, and what does not."""

from __future__ import annotations

import pytest

from tunlb.ipvs.cookie import KEY_LEN, PERIOD_MS, Cookies, SipHash, cookie_key
from tunlb.packet import Packet

KEY = bytes(range(16))


# The messages are 00 01 02 ...; from the reference implementation (github.com/veorq/SipHash).
@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, "310e0edd47db6f72"),
        (8, "6224939a79f5f593"),
        (16, "db9bc2577fcc2a3f"),
        (40, "d0a704536ba93e0e"),
        (48, "51a9cb9ecba312e6"),
    ],
)
def test_siphash(length: int, expected: str) -> None:
    sip = SipHash(KEY)
    sip.start()
    for at in range(0, length, 8):
        sip.absorb(int.from_bytes(bytes(range(at, at + 8)), "little"))
    assert sip.finish().to_bytes(8, "little").hex() == expected


def test_a_branch_goes_on_from_where_it_was_saved() -> None:
    sip = SipHash(KEY)
    sip.start()
    sip.absorb(1)
    sip.save()
    sip.absorb(2)
    whole = sip.finish()
    sip.restore()
    one = sip.finish()
    sip.restore()
    sip.absorb(2)
    assert sip.finish() == whole != one


def test_keys() -> None:
    assert len(cookie_key(b"x")) == KEY_LEN
    assert cookie_key(b"x") == cookie_key(b"x") != cookie_key(b"y")
    with pytest.raises(ValueError, match="16 secret bytes"):
        Cookies(bytes(15))


def packet(**fields: int) -> Packet:
    pkt = Packet()
    given = {"saddr_hi": 1, "saddr": 2, "daddr_hi": 3, "daddr": 4, "sport": 5, "dport": 6}
    for name, value in (given | fields).items():
        setattr(pkt, name, value)
    return pkt


@pytest.mark.parametrize("data", [0, 1, 0xA5, 255])
def test_what_it_says(data: int) -> None:
    now = 7 * PERIOD_MS
    for seq in (0, 1, 0xFFFFFFFF):
        cookie = Cookies(KEY).make(packet(), seq, data, 7, now)
        assert 0 <= cookie < 1 << 32
        assert Cookies(KEY).check(packet(), seq, cookie, 7, now) == data


def test_anything_else_is_another_cookie() -> None:
    now, seq = 7 * PERIOD_MS, 1000
    cookies = Cookies(KEY)
    cookie = cookies.make(packet(), seq, 0x5A, 7, now)
    for name in ("saddr_hi", "saddr", "daddr_hi", "daddr", "sport", "dport"):
        assert cookies.check(packet(**{name: 99}), seq, cookie, 7, now) == -1
    assert cookies.check(packet(), seq + 1, cookie, 7, now) == -1
    assert cookies.check(packet(), seq, cookie, 8, now) == -1
    assert Cookies(bytes(16)).check(packet(), seq, cookie, 7, now) == -1
    for bit in range(32):
        assert cookies.check(packet(), seq, cookie ^ 1 << bit, 7, now) == -1


def test_it_is_good_for_its_period_and_the_next() -> None:
    cookies = Cookies(KEY)
    for period in (1, 7, 8):
        made = period * PERIOD_MS
        cookie = cookies.make(packet(), 1, 2, 3, made)
        assert cookies.check(packet(), 1, cookie, 3, made + 2 * PERIOD_MS - 1) == 2
        assert cookies.check(packet(), 1, cookie, 3, made + 2 * PERIOD_MS) == -1
        assert cookies.check(packet(), 1, cookie, 3, made - 1) == -1


def test_the_clock_goes_on_and_is_each_pairs_own() -> None:
    cookies = Cookies(KEY)

    def clock(now: int, **fields: int) -> int:
        cookies.make(packet(**fields), 1, 2, 3, now)
        return cookies.clock

    start = clock(0)
    assert clock(5000) == (start + 5000) & 0xFFFFFFFF
    assert clock(0, sport=99) == start
    assert clock(0, saddr=99) != start


def test_guesses_hardly_ever_pass() -> None:
    """23 bits stand behind each: of as many as this one in a hundred test runs would pass."""
    cookies = Cookies(KEY)
    passed = sum(cookies.check(packet(), n, n * 7919, 7, 0) >= 0 for n in range(5000))
    assert passed == 0
