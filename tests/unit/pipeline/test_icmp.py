"""The bucket that limits the rate of ICMP errors."""

from __future__ import annotations

import pytest

from tunlb.pipeline.icmp import TokenBucket


def taken(bucket: TokenBucket, now: int, tries: int = 1000) -> int:
    return sum(bucket.take(now) for _ in range(tries))


def test_a_burst_and_no_more() -> None:
    bucket = TokenBucket(rate=1000, burst=50)
    assert taken(bucket, 0) == 50
    assert taken(bucket, 0) == 0


@pytest.mark.parametrize(
    ("later", "expected"), [(1, 1), (10, 10), (49, 49), (50, 50), (10**9, 50)], ids=str
)
def test_tokens_come_back_with_time_up_to_the_burst(later: int, expected: int) -> None:
    bucket = TokenBucket(rate=1000, burst=50)
    taken(bucket, 1_000_000)
    assert taken(bucket, 1_000_000 + later) == expected


def test_parts_of_a_token_are_kept() -> None:
    """One a second, asked every 100 ms: refusals cost nothing."""
    bucket = TokenBucket(rate=1, burst=1)
    assert bucket.take(5000)
    assert [bucket.take(5000 + 100 * i) for i in range(1, 21)] == ([False] * 9 + [True]) * 2
