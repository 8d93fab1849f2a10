from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.unit.bench.bench_run import HEAD, SCALES, SPEEDS, Maker, sample
from tunlb.bench.doubts import doubts
from tunlb.bench.figures import BareScale, Row, Spread, number, rows, spread
from tunlb.bench.goals import GOALS, Goal, Verdict, judge
from tunlb.bench.samples import Head, Sample

ONE = (BareScale("bulk", "TCP", "Gb/s", 1e9), BareScale("latency", "L", "us", 1e-6, "lower"))


def only(samples: Sequence[Sample], subject: str = "nat") -> Row:
    (found,) = [row for row in rows(HEAD, samples, ONE) if row.subject == subject]
    return found


def turns(subject: str, *values: float, load: str = "bulk", **details: float) -> list[Sample]:
    """One sample a round, from round 1 on."""
    return [
        replace(sample(subject, value, load=load, turn=turn), details=details)
        for turn, value in enumerate(values, 1)
    ]


# ---- medians and ratios -------------------------------------------------------------------------


def test_median_and_spread_of_the_rounds() -> None:
    assert only(turns("nat", 5.0, 1.0, 3.0)).figure == Spread(3.0, 1.0, 5.0, 3)


def test_ratios_are_taken_within_a_round() -> None:
    """The machine slows down fourfold: the ratio of the medians would say 4 / 4 = 1.0."""
    samples = [*turns("nat", 8.0, 4.0, 2.0), *turns("reflector", 10.0, 4.0, 2.5)]
    assert only(samples).ratios["reflector"] == Spread(0.8, 0.8, 1.0, 3)


@pytest.mark.parametrize(
    ("other", "ratio"),
    [
        pytest.param(turns("haproxy", 2.0), Spread(0.5, 0.5, 0.5, 1), id="only one round has both"),
        pytest.param([], None, id="nobody to compare with"),
        pytest.param(turns("haproxy", 0.0, 0.0), None, id="the other got nothing through"),
        pytest.param(turns("haproxy", 0.0, 1.0), Spread(3.0, 3.0, 3.0, 1), id="once nothing"),
        pytest.param(turns("haproxy", 1.0, load="crr"), None, id="another load"),
    ],
)
def test_ratio_of_what_there_is(other: list[Sample], ratio: Spread | None) -> None:
    assert only([*turns("nat", 1.0, 3.0), *other]).ratios.get("haproxy") == ratio


def test_a_round_that_was_repeated_counts_once() -> None:
    assert only([sample(value=1.0), sample(value=2.0)]).figure == spread([2.0])


def test_nobody_is_compared_with_itself() -> None:
    row = only(turns("reflector", 1.0), "reflector")
    assert row.ratio("reflector") is None


@pytest.mark.parametrize(
    ("details", "cpu_ns", "cores"),
    [
        ({"cpu_s": 1.5, "packets": 1e6, "elapsed_s": 3.0}, 1500.0, 0.5),
        ({"cpu_s": 1.5, "packets": 0.0, "elapsed_s": 3.0}, None, 0.5),
        ({"cpu_s": 1.5}, None, None),
        ({"packets": 1e6, "elapsed_s": 3.0}, None, None),
    ],
    ids=["all known", "no packet", "only CPU", "kernel"],
)
def test_cpu_of_the_subject(
    details: dict[str, float], cpu_ns: float | None, cores: float | None
) -> None:
    row = only([replace(sample(), details=details)])
    assert (row.cpu_ns, row.cpu_cores) == (cpu_ns and pytest.approx(cpu_ns), cores)


def test_a_latency_has_a_row_for_each_percentile() -> None:
    samples = turns("nat", 1.0, load="latency", p50_s=1e-6, p99_s=2e-6)
    samples += turns("reflector", 1.0, load="latency", p50_s=1e-6, p99_s=1e-6)
    found = [row for row in rows(HEAD, samples, ONE) if row.subject == "nat"]
    assert [(row.title, row.ratios["reflector"].median) for row in found] == [
        ("p50", 1.0),
        ("p99", 2.0),
    ]


def test_percentiles_of_a_rate_are_not_the_figure() -> None:
    assert only(turns("nat", 7.0, p99_s=1e-6)).figure.median == 7.0


def test_rows_follow_the_turns() -> None:
    samples = Maker().run(rounds=1)
    found = rows(HEAD, samples[::-1], SCALES)
    loads = list(dict.fromkeys(row.load for row in found))
    assert loads == list(HEAD.loads)
    assert [row.subject for row in found if row.load == "bulk"] == list(SPEEDS)


def test_a_load_that_is_gone_is_shown_in_base_units() -> None:
    (row,) = rows(HEAD, turns("nat", 1234.2, load="gone"), ONE)
    assert (row.scale.title, row.shown(row.figure.median)) == ("gone", "1,234")


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (0.0, "0"),
        (0.00123, "0.00123"),
        (0.0398, "0.0398"),
        (0.5, "0.500"),
        (0.9996, "1.00"),
        (1.234, "1.23"),
        (9.999, "10.0"),
        (12.34, "12.3"),
        (99.96, "100"),
        (1234.6, "1,235"),
        (100_000.0, "100,000"),
        (-12.34, "-12.3"),
    ],
)
def test_number(figure: float, text: str) -> None:
    assert number(figure) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [(spread([0.5, 0.7, 0.6]), "0.60 (0.50-0.70)"), (spread([0.5]), "0.50")],
    ids=["rounds", "one round"],
)
def test_ratio_as_text(found: Spread, text: str) -> None:
    assert str(found) == text


# ---- goals --------------------------------------------------------------------------------------


def verdict(head: Head, goal: Goal, samples: Sequence[Sample]) -> Verdict:
    return judge(head, rows(head, samples, ONE), [goal])[0]


FAST = Goal("bulk", "reflector", 0.95)
PROMPT = Goal("latency", "reflector", 1.10, at_least=False, metric="p99_s")


@pytest.mark.parametrize(
    ("mine", "sentence"),
    [
        ((0.95, 0.95, 0.95), "reached"),
        ((0.99, 0.94, 0.96), "reached, but not in every round"),
        ((0.94, 0.94, 0.94), "missed"),
        ((0.99, 0.90, 0.91), "missed, but not in every round"),
    ],
)
def test_a_rate_is_at_least(mine: tuple[float, ...], sentence: str) -> None:
    samples = [*turns("nat", *mine), *turns("reflector", 1.0, 1.0, 1.0)]
    assert verdict(HEAD, FAST, samples).sentence == sentence


@pytest.mark.parametrize(("p99_s", "reached"), [(1.10, True), (0.5, True), (1.11, False)])
def test_a_latency_is_at_most(p99_s: float, reached: bool) -> None:
    """Of the 99th percentile: the value would reach every goal."""
    samples = turns("nat", 0.0, load="latency", p99_s=p99_s)
    samples += turns("reflector", 1.0, load="latency", p99_s=1.0)
    assert verdict(HEAD, PROMPT, samples).reached is reached


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (replace(HEAD, loads=("crr",)), "bulk was not asked for"),
        (replace(HEAD, loads=(), skipped={"bulk": "no iperf3"}), "bulk: no iperf3"),
        (replace(HEAD, subjects=("nat",)), "reflector was not asked for"),
        (replace(HEAD, subjects=("reflector",)), "nat was not asked for"),
        (replace(HEAD, skipped={"reflector": "no cc"}), "reflector: no cc"),
        (replace(HEAD, skipped={"nat/bulk": "it died\nof this"}), "nat: it died"),
        (HEAD, "no round has both nat and reflector"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_why_a_goal_was_not_measured(head: Head, why: str) -> None:
    found = verdict(head, FAST, [])
    assert (found.reached, found.sentence) == (None, f"not measured: {why}")


def test_each_mode_has_the_goals_of_the_limit_and_two_all_of_them() -> None:
    verdicts = judge(HEAD, rows(HEAD, Maker().run(), SCALES))
    goals = {
        name: [str(v.goal) for v in verdicts if v.subject == name]
        for name in dict.fromkeys(v.subject for v in verdicts)
    }
    assert goals["nat"] == goals["fnat"] == [str(goal) for goal in GOALS]
    of_the_limit = [str(goal) for goal in GOALS if goal.against == "reflector"]
    assert goals["dr"] == goals["snat"] == of_the_limit
    assert len(of_the_limit) == 6
    cut = [
        text.replace("bulk >= 0.95 x reflector", "bulk >= 0.95 x reflector-mtu")
        for text in of_the_limit
    ]
    assert goals["tunnel"] == goals["tunnel-gre"] == goals["tunnel-gue"] == cut
    assert len(goals) == 7
    # what the made-up run's speeds say: 0.98 or 0.99 of what limits each, 0.9 of nftables
    missed = {str(v.goal) for v in verdicts if not v.reached}
    assert missed == {"crr >= 1.00 x nftables"}


# ---- doubts -------------------------------------------------------------------------------------


def said(samples: Sequence[Sample], head: Head = HEAD) -> list[str]:
    return doubts(head, samples, rows(head, samples, ONE))


CALM = turns("nat", 1.0, 1.0, 1.0, 1.0, 1.0)


def test_a_calm_run_has_no_doubts() -> None:
    assert said(CALM) == []


@pytest.mark.parametrize(
    ("head", "doubt"),
    [
        (replace(HEAD, load_average=0.51), "load average 0.51 at the start"),
        (replace(HEAD, cores=2), "2 cores for client, subject and server"),
        (replace(HEAD, build="uncompiled"), "tunlb is uncompiled here"),
        (replace(HEAD, rounds=7), None),
    ],
    ids=["busy", "few cores", "uncompiled", "ended early, after enough"],
)
def test_doubts_about_the_run(head: Head, doubt: str | None) -> None:
    found = said(CALM, head)
    assert [each[: len(doubt or "")] for each in found] == ([doubt] if doubt else [])


@pytest.mark.parametrize(
    ("head", "begins"),
    [
        (replace(HEAD, rounds=4), "4 rounds: "),
        (HEAD, "4 rounds of 5 planned: "),
    ],
    ids=["asked for", "interrupted"],
)
def test_few_rounds(head: Head, begins: str) -> None:
    (found,) = said(CALM[:4], head)
    assert found.startswith(begins)


@pytest.mark.parametrize("limit", ["reflector", "reflector-mtu"])
@pytest.mark.parametrize(("high", "noisy"), [(1.3, False), (1.31, True)])
def test_a_reflector_that_differs_from_itself(limit: str, high: float, noisy: bool) -> None:
    found = said(turns(limit, 1.0, high, 1.2, 1.2, 1.2))
    assert [each.startswith(f"bulk: the {limit}'s own rounds differ") for each in found] == (
        [True] if noisy else []
    )


def test_only_the_reflector_tells_of_noise() -> None:
    assert said(turns("nat", 1.0, 9.0, 1.0, 1.0, 1.0)) == []


def test_stolen_time() -> None:
    samples = [replace(CALM[0], details={"steal_share": 0.05}), *CALM[1:]]
    assert said(samples) == [
        "the host gave CPU time to others during 1 of 5 samples (up to 5%)",
    ]


@pytest.mark.parametrize(
    ("details", "limited"),
    [
        ({"peers_busy": 0.97, "cpu_s": 0.5, "elapsed_s": 1.0}, True),
        ({"peers_busy": 0.97, "cpu_s": 0.95, "elapsed_s": 1.0}, False),
        ({"peers_busy": 0.97}, True),
        ({"peers_busy": 0.9, "cpu_s": 0.5, "elapsed_s": 1.0}, False),
        ({}, False),
    ],
    ids=["subject idle", "both busy", "kernel", "generator idle", "nothing known"],
)
def test_the_generator_as_the_limit(details: dict[str, float], limited: bool) -> None:
    samples = [*(replace(one, details=details) for one in CALM[:3]), *CALM[3:]]
    expected = ["bulk: the generator was the limit for nat: they may be faster than shown"]
    assert said(samples) == (expected if limited else [])


def test_a_generator_that_was_the_limit_once_is_none() -> None:
    samples = turns("nat", 1.0, 1.0, peers_busy=1.0) + CALM[2:]
    assert said(samples) == []


def test_notes_that_differ_in_figures_are_one_doubt() -> None:
    samples = [
        replace(one, subject=name, notes=(f"the sender used {97 + turn} % of its core",))
        for turn, (one, name) in enumerate(zip(CALM, ("nat", "nat", "dr", "a", "b"), strict=True))
    ]
    assert said([*samples, sample("c", notes=("no answer from 2",))]) == [
        "bulk: the sender used 97 % of its core (nat, dr, a, b; 5 samples, the first is quoted)",
        "bulk: no answer from 2 (c)",
    ]


def test_four_culprits_are_named() -> None:
    samples = [replace(one, subject=f"s{turn}", notes=("x",)) for turn, one in enumerate(CALM)]
    (found,) = said(samples)
    assert found.startswith("bulk: x (s0, s1, s2, s3 and 1 more;")
