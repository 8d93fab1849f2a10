"""Far ends of tunnels: what room they leave, and what is known of the path."""

from __future__ import annotations

import pytest

from tunlb.ipvs.far import PATH_MS, PATHS_MAX, FarEnd, Paths


@pytest.mark.parametrize(
    ("kind", "af", "inner", "csum", "mtu", "room", "narrow"),
    [
        (0, 4, 4, False, 1500, 1480, False),
        (0, 6, 4, False, 1500, 1460, False),
        (1, 4, 6, True, 1500, 1472, False),
        (2, 6, 6, False, 1500, 1448, False),
        (0, 4, 4, False, 68, 68, True),
        (0, 4, 6, False, 1299, 1280, True),
        (0, 4, 6, False, 1300, 1280, False),
        (0, 6, 6, False, 1300, 1260, False),
        (2, 6, 4, False, 40, 0, False),
    ],
)
def test_room(kind, af, inner, csum, mtu, room, narrow) -> None:
    far = FarEnd(kind, af, inner, csum=csum)
    assert (far.room(mtu), far.leaves_df_out(mtu)) == (room, narrow)


def test_a_smaller_path_is_news_and_a_larger_one_is_not() -> None:
    paths = Paths()
    assert paths.mtu(0, 1) == 0
    assert paths.learn(0, 1, 1400, 0)
    assert not paths.learn(0, 1, 1400, 1000)
    assert not paths.learn(0, 1, 1450, 2000)
    assert paths.mtu(0, 1) == 1400
    assert paths.learn(0, 1, 1300, 3000)
    assert paths.learn(0, 2, 1300, 0)
    assert paths.expire(PATH_MS) == 1
    assert (paths.mtu(0, 1), paths.mtu(0, 2)) == (1300, 0)
    assert paths.expire(PATH_MS + 3000) == 1
    assert not paths.known


def test_the_same_path_lives_on() -> None:
    paths = Paths()
    paths.learn(0, 1, 1400, 0)
    paths.learn(0, 1, 1400, 5000)
    assert paths.expire(PATH_MS) == 0
    assert paths.expire(PATH_MS + 5000) == 1


def test_paths_are_bounded() -> None:
    paths = Paths()
    for number in range(PATHS_MAX):
        assert paths.learn(0, number, 1400, 0)
    assert not paths.learn(0, PATHS_MAX, 1400, 0)
    assert paths.learn(0, 0, 1300, 0)
