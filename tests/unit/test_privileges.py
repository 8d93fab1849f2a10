"""Giving up privileges, in processes made for it: what a process gave up is gone for good.

Whoever runs these tests, root or not; tests/e2e/test_privileges.py has what only root can do.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys

import pytest

from tunlb import privileges
from tunlb.lab.process import environment
from tunlb.privileges import Capability, Status, UnknownUser, lookup_user, status

DROP = """
import json, os
from tunlb import privileges
{before}
privileges.drop({uid}, {gid})
{after}
print(json.dumps(privileges.status()))
"""


def run(script: str) -> Status:
    """The status that a process says it has at its end."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Status._make(tuple(x) if isinstance(x, list) else x for x in json.loads(done.stdout))


def drop(
    before: str = "", after: str = "", uid: int | None = None, gid: int | None = None
) -> Status:
    uid = os.geteuid() if uid is None else uid
    gid = os.getegid() if gid is None else gid
    return run(DROP.format(before=before, after=after, uid=uid, gid=gid))


def test_no_capability_is_left() -> None:
    left = drop()
    assert (left.inheritable, left.permitted, left.effective, left.ambient) == (0, 0, 0, 0)
    assert left.no_new_privs


def test_the_bounding_set_goes_with_cap_setpcap() -> None:
    ours = status()
    may_empty = ours.effective >> Capability.SETPCAP & 1
    assert drop().bounding == (0 if may_empty else ours.bounding)


def test_nothing_more_happens_the_second_time() -> None:
    assert drop(before=f"privileges.drop({os.geteuid()}, {os.getegid()})") == drop()


def test_it_stays_who_it_is_if_it_may_not_become_another() -> None:
    left = drop(before=f"privileges.drop({os.geteuid()}, {os.getegid()})", uid=12345, gid=12345)
    assert left.uids == (os.geteuid(),) * 4
    assert left.gids == (os.getegid(),) * 4


def test_an_error_that_is_no_refusal_is_told() -> None:
    refused = """
import errno
def refuse(*_): raise OSError(errno.EAGAIN, "try again")
os.setresuid = refuse
"""
    with pytest.raises(AssertionError, match="try again"):
        drop(before=refused)


@pytest.mark.parametrize(("uid", "gid"), [(-1, 0), (0, -1), (0xFFFFFFFF, 0), (0, 0xFFFFFFFF)])
def test_an_id_that_means_no_change_is_refused(uid: int, gid: int) -> None:
    with pytest.raises(ValueError, match="nobody has"):
        privileges.drop(uid, gid)


def test_keep_keeps_what_it_names_and_had() -> None:
    ours = status()
    wanted = 1 << Capability.SETUID | 1 << Capability.KILL
    left = run(
        "import json\nfrom tunlb import privileges\n"
        "privileges.keep([privileges.Capability.SETUID, privileges.Capability.KILL])\n"
        "print(json.dumps(privileges.status()))\n"
    )
    assert left.permitted == left.effective == ours.permitted & wanted
    assert (left.inheritable, left.ambient) == (0, 0)
    assert (left.uids, left.gids, left.groups) == (ours.uids, ours.gids, ours.groups)
    assert not left.no_new_privs


def test_status_of_this_process() -> None:
    ours = status()
    assert ours == status(os.getpid())
    assert ours.uids[:2] == (os.getuid(), os.geteuid())
    assert ours.gids[:2] == (os.getgid(), os.getegid())
    assert sorted(ours.groups) == sorted(os.getgroups())


def test_status_of_nobody() -> None:
    with pytest.raises(FileNotFoundError):
        status("tunlb")


FREE_UID = next(uid for uid in range(70000, 80000) if uid not in {u.pw_uid for u in pwd.getpwall()})
USER = pwd.getpwuid(pwd.getpwall()[-1].pw_uid)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        pytest.param("root", (0, 0), id="name"),
        pytest.param("0", (0, 0), id="number"),
        pytest.param(str(USER.pw_uid), (USER.pw_uid, USER.pw_gid), id="number of a user"),
        pytest.param(USER.pw_name, (USER.pw_uid, USER.pw_gid), id="name of a user"),
        pytest.param(str(FREE_UID), (FREE_UID, FREE_UID), id="number of nobody"),
    ],
)
def test_lookup_user(text: str, ids: tuple[int, int]) -> None:
    assert lookup_user(text) == ids


@pytest.mark.parametrize(
    "text",
    ["", "tunlb-nobody", "-1", "+1", "\u0661", "a\0b", "9" * 30, "9" * 5000, "4294967295"],
    ids=lambda text: ascii(text[:20]),
)
def test_lookup_unknown_user(text: str) -> None:
    with pytest.raises(UnknownUser, match="no user"):
        lookup_user(text)
