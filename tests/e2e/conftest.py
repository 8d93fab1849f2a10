"""The labs of the end-to-end tests.

Where namespaces cannot be made, these tests are skipped at a desk and fail in CI (CI=true).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tunlb.lab import TOPOLOGIES, Lab, Topology, rootless

HERE = Path(__file__).parent

LabFactory = Callable[[str | Topology], Lab]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--few",
        action="store_true",
        help="of an end-to-end test with many parameters only the first and the last",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every test in this folder is an end-to-end test."""
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.e2e)
    if config.getoption("--few"):
        left_out = set(ours) - set(first_and_last(ours))
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))


def first_and_last(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Of the tests made of one function by parameters the first and the last that may run."""
    made_of: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow") is None:
            function = getattr(item, "originalname", item.name)
            made_of.setdefault((item.path, function), []).append(item)
    return [item for same in made_of.values() for item in dict.fromkeys((same[0], same[-1]))]


def demand(problems: Sequence[str]) -> None:
    """Goes on only if there are no problems."""
    if not problems:
        return
    text = "; ".join(problems)
    if os.environ.get("CI") == "true":
        pytest.fail(f"end-to-end tests must run in CI, but {text}", pytrace=False)
    pytest.skip(f"{text} (without root: python -m tunlb.lab.rootless python -m pytest tests/e2e)")


@pytest.fixture(scope="session")
def _host_problems() -> list[str]:
    return [
        *rootless.missing_tools(),
        *rootless.missing_device(),
        *rootless.missing_namespaces(rootless=False),
    ]


@pytest.fixture(scope="session")
def _rootless_problems() -> list[str]:
    return rootless.missing(rootless=True)


@pytest.fixture
def privileged(_host_problems: list[str]) -> None:
    """The test may make namespaces and devices."""
    demand(_host_problems)


@pytest.fixture
def unprivileged(_rootless_problems: list[str]) -> None:
    """The test may make user namespaces, and devices inside them."""
    demand(_rootless_problems)


@pytest.fixture
def lab(privileged: None) -> Iterator[LabFactory]:
    """`lab("one-arm")` is that lab, up until the end of the test."""
    with ExitStack() as stack:
        labs: list[Lab] = []

        def make(topology: str | Topology) -> Lab:
            what = TOPOLOGIES[topology] if isinstance(topology, str) else topology
            made = Lab(what, f"{what.name}-{os.getpid()}-{len(labs)}")
            labs.append(made)
            stack.enter_context(made)
            # pytest shows it with a test that fails
            stack.callback(_show_logs, made)
            return made

        yield make


def _show_logs(lab: Lab) -> None:
    for tunlb in lab.tunlbs:
        print(f"what tunlb (process {tunlb.pid}) logged:")
        print("\n".join(tunlb.log_lines))
