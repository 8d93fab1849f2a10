"""A user's own hook: by its class, by an entry point, and one that cannot be had."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.arch.test_docs import DOCS, blocks
from tests.e2e.kit import LabFactory, counters, serves, with_keys, with_lines
from tunlb.lab import Lab, clients
from tunlb.lab.process import TunlbError, environment

RUN = "    def run(self, pkt, now):\n        return 1\n"


def deny() -> str:
    """The example of docs/hooks.md, against the clients of the lab."""
    source = next(block for block in blocks(DOCS / "hooks.md", "python") if "deny.py" in block)
    assert "203.0.113.0" in source
    return source.replace("203.0.113.0", "10.0.0.0")


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    """With a directory to import from that workers may read, as users may an installed package."""
    with tempfile.TemporaryDirectory(prefix="tunlb-") as name:
        site = Path(name)
        site.chmod(0o755)
        (site / "tunlb_e2e_deny.py").write_text(deny())
        (site / "tunlb_e2e_exits.py").write_text("raise SystemExit(0)\n")
        (site / "tunlb_e2e_dies.py").write_text("import os\nos._exit(1)\n")
        (site / "tunlb_e2e_idle.py").write_text(
            "from tunlb.hook import Hook\nclass Idle(Hook):\n    pass\n"
        )
        info = site / "tunlb_e2e-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tunlb-e2e\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[tunlb.hooks]\ne2e-deny = tunlb_e2e_deny:Deny\n")
        yield {"PYTHONPATH": f"{name}{os.pathsep}{environment()['PYTHONPATH']}"}


def refused(lab: Lab, vip: str) -> bool:
    with lab.client.socket(clients._family(vip), socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        return sock.connect_ex((vip, 80)) != 0


@pytest.mark.parametrize("call", ["tunlb_e2e_deny:Deny", "e2e-deny"])
@pytest.mark.parametrize("workers", [1, 2])
def test_it_refuses_a_client(lab: LabFactory, env: dict[str, str], call: str, workers: int) -> None:
    made = lab("one-arm")
    hook = {"kind": "hook", "point": "pre_routing", "priority": 50, "call": call}
    text = with_keys(made.topology.config_text, "tunlb", None, workers=workers)
    tunlb = made.start_tunlb(with_lines(text, hook), env=env)
    assert refused(made, made.topology.vips.v4)
    assert not refused(made, made.topology.vips.v6)  # it speaks of IPv4
    found = counters(tunlb)
    assert found["drop.NOT_FORWARDED"] >= 1
    assert found["ICMP_ERRORS_SENT"] >= 1
    assert "HOOK_ERRORS" not in found


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("tunlb_e2e_exits:Hook", "hook tunlb_e2e_exits:Hook: SystemExit"),
        (
            "tunlb_e2e_dies:Hook",
            r"hook tunlb_e2e_dies:Hook: importing tunlb_e2e_dies ended the process "
            r"\(exit status 1\); see what it does: ",
        ),
        ("tunlb_e2e_idle:Idle", r"needs a method run\(self, pkt, now\)"),
        ("e2e-nosuch", '"e2e-nosuch" is not known'),
    ],
)
def test_one_that_cannot_be_had(lab: LabFactory, env: dict[str, str], call: str, told: str) -> None:
    made = lab("one-arm")
    hook = {"kind": "hook", "point": "forward", "call": call}
    with pytest.raises(TunlbError, match=told):
        made.start_tunlb(with_lines(made.topology.config_text, hook), env=env)
    tunlb = made.start_tunlb()
    assert serves(made)
    assert tunlb.stop() == 0


def test_one_that_ends_the_next_program(lab: LabFactory, env: dict[str, str]) -> None:
    """A new version of the hook does: an upgrade is refused, and says whose fault it is."""
    made = lab("one-arm")
    call = "tunlb_e2e_changes:Idle"
    source = Path(env["PYTHONPATH"].partition(os.pathsep)[0]) / "tunlb_e2e_changes.py"
    source.write_text(source.with_name("tunlb_e2e_idle.py").read_text() + RUN)
    hook = {"kind": "hook", "point": "forward", "call": call}
    tunlb = made.start_tunlb(with_lines(made.topology.config_text, hook), env=env)
    source.write_text("import os\nos._exit(3)  # a new version\n")
    with clients.connection(made.client, made.topology.vips.v4, 7) as conn:
        os.kill(tunlb.pid, signal.SIGUSR2)
        refused = tunlb.wait_event(("upgrade_refused",), timeout=30)
        told = f"the new program ended (exit status 3) while trying hook {call}"
        assert refused["error"] == told
        assert conn.echo(b"still here") == b"still here"
    assert tunlb.stop() == 0
