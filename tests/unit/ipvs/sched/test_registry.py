"""One file a scheduler, its module's name is how the configuration calls it; and users' own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunlb.ipvs import sched
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet

#: A destination or client whose dest is not valid has none.
NO_FALLBACK = ("dh",)

each = pytest.mark.parametrize("name", sched.names())


@each
def test_every_scheduler_is_found_and_stands_an_empty_list(name: str) -> None:
    scheduler = sched.find(name)(7)
    assert isinstance(scheduler, Scheduler)
    assert scheduler.schedule(Packet(), 0) is None
    scheduler.update([])
    assert scheduler.schedule(Packet(), 0) is None


def picked(scheduler: Scheduler, clients: range) -> set[int]:
    """Whom conns go to, each from its own source to its own destination; -1 for none."""
    pkt = Packet()
    found = set()
    for client in clients:
        pkt.saddr, pkt.daddr = client, client + 7
        dest = scheduler.schedule(pkt, 0)
        found.add(-1 if dest is None else dest.id)
    return found


@each
def test_only_valid_dests_are_picked(name: str, make, clients) -> None:
    scheduler = sched.find(name)(7)
    refused = {-1} if name in NO_FALLBACK else set()
    dests = make(1, 0, 2, 1, 1)
    scheduler.update(dests)
    dests[2].available = False
    dests[3].max_conn, dests[3].inactconns = 5, 5
    assert picked(scheduler, clients[:64]) <= {0, 4} | refused
    dests[0].weight = 0  # without update(): a pick must look at the dest itself
    assert picked(scheduler, clients[:64]) == {4} | refused
    dests[4].available = False
    assert picked(scheduler, clients[:4]) == {-1}
    dests[2].available = True
    assert picked(scheduler, clients[:64]) == {2} | refused


@each
def test_a_single_dest_gets_everything_until_it_is_full(name: str, make, clients) -> None:
    scheduler = sched.find(name)(7)
    dests = make(3)
    scheduler.update(dests)
    assert picked(scheduler, clients[:16]) == {0}
    dests[0].max_conn, dests[0].inactconns = 2, 2
    assert picked(scheduler, clients[:16]) == {-1}
    dests[0].inactconns = 1
    assert picked(scheduler, clients[:16]) == {0}


@each
def test_an_update_is_followed(name: str, make, clients) -> None:
    """Dests come, go (which makes them unavailable) and change their weights."""
    scheduler = sched.find(name)(7)
    dests = make(1, 1, 1, 1)
    scheduler.update(dests[:2])
    assert picked(scheduler, clients[:64]) <= {0, 1}
    scheduler.update(dests[2:])
    dests[0].available = dests[1].available = False
    assert picked(scheduler, clients[:64]) <= {2, 3}
    dests[3].weight = 0
    scheduler.update(dests[2:])
    assert picked(scheduler, clients[:64]) == {2}
    dests[2].available = False
    scheduler.update([])
    assert picked(scheduler, clients[:4]) == {-1}


def test_the_schedulers_of_ipvs_and_dpvs_are_there() -> None:
    theirs = "rr wrr lc wlc sed nq twos fo ovf sh mh dh lblc lblcr"  # IPVS
    assert sched.names() == sorted([*theirs.split(), "conhash"])
    with pytest.raises(KeyError):
        sched.find("nosuch")


# ---- a user's own


class Mine(Scheduler):
    def schedule(self, pkt: Packet, now: int) -> Dest | None:
        return next((dest for dest in self.dests if dest.valid()), None)


class NoScheduler:
    pass


class NoArguments(Scheduler):
    def __init__(self) -> None:
        super().__init__()


class NoUpdate(Scheduler):
    def update(self, dests: list[Dest]) -> None:
        raise IndexError("out of luck")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that packages are installed in."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if module.startswith("tunlb_test_"):
            del sys.modules[module]


def install(site: Path, package: str, points: str, source: str = "") -> None:
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{sched.GROUP}]\n{points}\n")
    (site / f"{package}.py").write_text(source)


def test_our_own_are_what_they_are_called() -> None:
    assert [sched.resolve(name) for name in sched.names()] == sched.names()
    assert {sched.module_of(name) for name in sched.names()} == {None}


def test_a_class_by_its_module() -> None:
    named = f"{__name__}:Mine"
    assert sched.resolve(named) == named
    assert sched.module_of(named) == __name__
    assert sched.find(named) is Mine


def test_a_class_by_its_entry_point(site: Path) -> None:
    source = "from tunlb.ipvs.scheduler import Scheduler\nclass Of(Scheduler):\n    pass\n"
    install(site, "tunlb_test_one", "tunlb-test-one = tunlb_test_one:Of", source)
    named = sched.resolve("tunlb-test-one")
    assert named == "tunlb_test_one:Of"
    assert "tunlb_test_one" not in sys.modules, "a name is looked up without running user code"
    found = sched.find(named)
    assert issubclass(found, Scheduler)
    assert found.__module__ == "tunlb_test_one"


def test_what_is_installed_later_is_found_then(site: Path) -> None:
    with pytest.raises(KeyError):
        sched.resolve("tunlb-test-late")
    install(site, "tunlb_test_late", "tunlb-test-late = tunlb_test_late:Of")
    assert sched.resolve("tunlb-test-late") == "tunlb_test_late:Of"


def test_an_entry_point_does_not_replace_one_of_ours(site: Path) -> None:
    install(site, "tunlb_test_rr", "rr = tunlb_test_rr:Of")
    assert sched.resolve("rr") == "rr"


def test_two_entry_points_of_one_name_are_not_guessed_between(site: Path) -> None:
    install(site, "tunlb_test_a", "tunlb-test-both = tunlb_test_a:Of")
    install(site, "tunlb_test_b", "tunlb-test-both = tunlb_test_b:Of")
    with pytest.raises(sched.SchedulerError, match=r"two .*: tunlb_test_a:Of, tunlb_test_b:Of"):
        sched.resolve("tunlb-test-both")


def test_an_entry_point_of_a_module_is_refused(site: Path) -> None:
    install(site, "tunlb_test_module", "tunlb-test-module = tunlb_test_module")
    with pytest.raises(sched.SchedulerError, match="tunlb_test_module, and not"):
        sched.resolve("tunlb-test-module")


@pytest.mark.parametrize(
    "name", ["", ":", "a:", ":b", "a.b", "a:b:c", "a b:C", "1:C", "a.:C", "../x"]
)
def test_no_name_at_all(name: str) -> None:
    with pytest.raises(KeyError):
        sched.resolve(name)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (
            "tunlb_test_absent:Of",
            "scheduler tunlb_test_absent:Of: ModuleNotFoundError: .* PYTHONPATH",
        ),
        (f"{__name__}:Absent", "AttributeError"),
        (f"{__name__}:NoScheduler", "is not a subclass of tunlb.ipvs.scheduler.Scheduler"),
        (f"{__name__}:each", "is not a subclass"),
    ],
)
def test_what_cannot_be_had_says_why(named: str, told: str) -> None:
    with pytest.raises(sched.SchedulerError, match=told):
        sched.find(named)


@pytest.mark.parametrize("source", ["1 / 0", "raise SystemExit(3)", "import tunlb_test_absent"])
def test_a_module_that_fails(site: Path, source: str) -> None:
    (site / "tunlb_test_bad.py").write_text(source)
    with pytest.raises(sched.SchedulerError, match="scheduler tunlb_test_bad:Of: "):
        sched.find("tunlb_test_bad:Of")


@pytest.mark.parametrize("name", [*sched.names(), f"{__name__}:Mine"])
def test_what_can_be_had_passes_its_trial(name: str) -> None:
    sched.trial(name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("NoArguments", r"scheduler .*:NoArguments: TypeError: .*\(the class takes a seed and"),
        ("NoUpdate", r"scheduler .*:NoUpdate: IndexError: out of luck \(.*update\(\) a list"),
        ("NoScheduler", "is not a subclass"),
    ],
)
def test_what_cannot_be_made_fails_its_trial(name: str, told: str) -> None:
    with pytest.raises(sched.SchedulerError, match=told):
        sched.trial(f"{__name__}:{name}")
