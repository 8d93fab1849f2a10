"""A user's own scheduler: at the start, by a reload, and one that cannot be had."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kit import LabFactory, with_keys
from tunlb.lab import Lab, clients
from tunlb.lab.process import TunlbError, environment

SOURCE = """
from tunlb.ipvs.scheduler import Scheduler


class {name}(Scheduler):
    def schedule(self, pkt, now):
        valid = [dest for dest in self.dests if dest.valid()]
        return valid[{index}] if valid else None
"""


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    """With a directory to import from that workers may read, as users may an installed package.

    pytest's own are for their owner alone.
    """
    with tempfile.TemporaryDirectory(prefix="tunlb-") as name:
        site = Path(name)
        site.chmod(0o755)
        (site / "tunlb_e2e_first.py").write_text(SOURCE.format(name="First", index=0))
        (site / "tunlb_e2e_last.py").write_text(SOURCE.format(name="Last", index=-1))
        (site / "tunlb_e2e_broken.py").write_text("1 / 0\n")
        info = site / "tunlb_e2e-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tunlb-e2e\nVersion: 1.0\n")
        points = "[tunlb.schedulers]\ne2e-first = tunlb_e2e_first:First\n"
        (info / "entry_points.txt").write_text(points)
        yield {"PYTHONPATH": f"{name}{os.pathsep}{environment()['PYTHONPATH']}"}


def hosts(lab: Lab, fetches: int = 4) -> set[str]:
    return {
        clients.tcp_echo(lab.client, vip, 7).host
        for vip in (lab.topology.vips.v4, lab.topology.vips.v6)
        for _ in range(fetches)
    }


def test_from_the_start_and_by_a_reload(lab: LabFactory, env: dict[str, str]) -> None:
    made = lab("one-arm")
    text = made.topology.config_text
    tunlb = made.start_tunlb(with_keys(text, "service", scheduler="e2e-first"), env=env)
    assert hosts(made) == {"s1"}
    assert tunlb.reload(with_keys(text, "service", scheduler="tunlb_e2e_last:Last"))["event"] == (
        "reloaded"
    )
    assert hosts(made) == {"s3"}
    assert tunlb.reload(with_keys(text, "service", scheduler="rr"))["event"] == "reloaded"
    assert hosts(made) == {"s1", "s2", "s3"}
    assert tunlb.stop() == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [("tunlb_e2e_broken:Of", "ZeroDivisionError"), ("tunlb_e2e_first:Second", "AttributeError")],
)
def test_one_that_cannot_be_had_changes_nothing(
    lab: LabFactory, env: dict[str, str], name: str, told: str
) -> None:
    made = lab("one-arm")
    text = with_keys(made.topology.config_text, "service", scheduler="tunlb_e2e_first:First")
    tunlb = made.start_tunlb(text, env=env)
    event = tunlb.reload(with_keys(text, "service", scheduler=name))
    assert event["event"] == "reload_refused"
    assert name in str(event["problems"])
    assert told in str(event["problems"])
    assert hosts(made) == {"s1"}
    assert tunlb.stop() == 0
    assert not [event for event in tunlb.events if event["event"] == "worker_died"]


def test_one_that_cannot_be_had_at_the_start(lab: LabFactory, env: dict[str, str]) -> None:
    made = lab("one-arm")
    text = with_keys(made.topology.config_text, "service", scheduler="tunlb_e2e_broken:Of")
    with pytest.raises(TunlbError, match="scheduler tunlb_e2e_broken:Of: ZeroDivisionError"):
        made.start_tunlb(text, env=env)
