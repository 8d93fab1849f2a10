"""What a keeper and its workers may do, started as root, as root of a user namespace that knows no
other user, and as a user without privileges.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunlb.keeper import Keeper
from tunlb.lab import rootless
from tunlb.lab.process import environment
from tunlb.privileges import Capability, Status

NOBODY = 65534

# A supervisor with a keeper and one worker. Each says what it may do, in /proc as another process
# sees it, because a worker could say what it likes. The keeper is a fork of this process: an
# interpreter of root's may be out of another user's reach.
TREE = """
import json, os, socket, sys
from tunlb import privileges
from tunlb.channel import pair
from tunlb.keeper import Keeper, serve

UID = GID = 65534

def work(channel):
    channel.send({})
    channel.receive()

def start():
    ours, theirs = pair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        serve(os.dup(theirs.fileno()), work)
        os._exit(0)
    theirs.close()
    return Keeper(ours, pid)

def tree():
    keeper = start()
    ours, theirs = pair()
    worker = keeper.fork(0, theirs, uid=UID, gid=GID)
    ours.receive()
    found = {
        "supervisor": privileges.status(),
        "keeper": privileges.status(keeper.pid),
        "worker": privileges.status(worker),
    }
    ours.close()
    keeper.exit()
    print(json.dumps(found))
"""
BECOME_NOBODY = "os.setgroups([7]); os.setresgid(UID, UID, UID); os.setresuid(UID, UID, UID)"


def run(script: str, wrapped: Sequence[str] = ()) -> Any:
    """What the script printed, as JSON; ``wrapped`` is the command that starts it."""
    done = subprocess.run(
        [*wrapped, sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def statuses(script: str, wrapped: Sequence[str] = ()) -> dict[str, Status]:
    found = run(TREE + script, wrapped)
    return {
        who: Status._make(tuple(x) if isinstance(x, list) else x for x in values)
        for who, values in found.items()
    }


@pytest.fixture
def users(privileged: None) -> None:
    """There are other users here."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text("ascii").splitlines()]
    if not any(int(first) <= NOBODY < int(first) + int(count) for first, _, count in ranges):
        pytest.skip("this user namespace maps no other user")


@pytest.fixture
def keeper(privileged: None) -> Iterator[Keeper]:
    """One that only listens."""
    made = Keeper.spawn(("-c", "import sys; from tunlb import keeper; keeper.serve(3, len)"))
    yield made
    made.exit()


def nothing(status: Status) -> bool:
    sets = (status.inheritable, status.permitted, status.effective, status.bounding, status.ambient)
    return sets == (0, 0, 0, 0, 0) and status.no_new_privs


def test_as_root(users: None) -> None:
    found = statuses("tree()")
    worker = found["worker"]
    assert nothing(worker)
    assert worker.uids == worker.gids == (NOBODY,) * 4
    assert worker.groups == ()

    keeper = found["keeper"]
    needed = sum(
        1 << capability
        for capability in (
            Capability.DAC_READ_SEARCH,
            Capability.KILL,
            Capability.SETGID,
            Capability.SETPCAP,
            Capability.SETUID,
        )
    )
    assert keeper.permitted == keeper.effective == keeper.bounding == needed
    assert keeper.uids == (0,) * 4
    assert found["supervisor"].permitted & ~needed, "only the keeper gives up what it has"


def test_as_root_of_a_namespace_without_other_users(unprivileged: None) -> None:
    found = statuses("tree()", rootless.command(()))
    assert found["supervisor"].permitted
    worker = found["worker"]
    assert nothing(worker)
    assert worker.uids == (0,) * 4, "it could not become anybody else"


def test_as_a_user_without_privileges(users: None) -> None:
    found = statuses(f"{BECOME_NOBODY}\nUID = GID = 12345\ntree()")
    assert found["supervisor"].permitted == 0
    worker = found["worker"]
    assert nothing(worker._replace(bounding=0))
    assert worker.bounding == found["supervisor"].bounding, "emptying it would take CAP_SETPCAP"
    assert worker.uids == (NOBODY,) * 4
    assert worker.groups == (7,), "leaving a group would take CAP_SETGID"


AFTER_AN_EXEC = """
import os
from tunlb import privileges
privileges.drop({uid}, {gid})
os.execvp("sed", ["sed", "-n", "s/^Cap[PE][rf][mf]:[[:space:]]*//p", "/proc/self/status"])
"""


@pytest.mark.parametrize("who", ["root", "nobody"])
def test_an_exec_brings_nothing_back(users: None, who: str) -> None:
    """root's uid alone gives every capability at an exec, if nothing forbids it."""
    uid = 0 if who == "root" else NOBODY
    done = subprocess.run(
        [sys.executable, "-c", AFTER_AN_EXEC.format(uid=uid, gid=uid)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.split() == ["0" * 16] * 2


CONNECT = """
import json, os
from tunlb.channel import Channel, ChannelClosed
from tunlb.keeper import Keeper, KeeperError
from tunlb.keeper.address import socket_address
import socket
UID = 65534
{before}
try:
    print(json.dumps(str(Keeper.connect({control!r}))))
except KeeperError as error:
    print(json.dumps(str(error)))
"""
KNOCK = """
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(socket_address({control!r}))
channel = Channel(sock)
try:
    channel.settimeout(5)
    channel.send({{"request": "hello", "serial": 1}})
    print(json.dumps(channel.receive()))
except ChannelClosed:
    print(json.dumps("closed"))
raise SystemExit
"""


def test_roots_keeper_is_not_for_others(users: None, keeper: Keeper) -> None:
    control = f"tunlb-{keeper.pid}"
    keeper.listen(control)
    said = run(CONNECT.format(before=BECOME_NOBODY, control=control))
    assert said == (
        f"process {keeper.pid} of user 0 has the control {control}:"
        " set another `control`, or run as that user"
    )
    # one that does not look whose keeper it is, as an attacker would not
    knock = BECOME_NOBODY + KNOCK.format(control=control)
    assert run(CONNECT.format(before=knock, control=control)) == "closed"


SQUAT = """
import os, socket, sys
from tunlb.keeper.address import socket_address
UID = 65534
{before}
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.bind(socket_address({control!r}))
sock.listen()
print("ready", flush=True)
sys.stdin.read()
"""


def test_root_takes_nothing_from_the_keeper_of_another(users: None) -> None:
    control = f"tunlb-squatted-{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-c", SQUAT.format(before=BECOME_NOBODY, control=control)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdin is not None
        assert squatter.stdout.readline() == "ready\n"
        said = run(CONNECT.format(before="", control=control))
        squatter.stdin.close()
    assert said == (
        f"process {squatter.pid} of user {NOBODY} has the control {control}:"
        " set another `control`, or run as that user"
    )
