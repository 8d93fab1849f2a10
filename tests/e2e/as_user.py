"""Runs a command as a user without any capability, where that user could not even read Python.

    as_user.py UID PATH... -- COMMAND...

In a mount namespace of its own: /dev/net/tun is open to all, as on most machines, and each PATH can
be reached although folders above it belong to root alone (an interpreter below /root, say).
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import tempfile
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
NODE = Path("/dev/net/tun")


def libc(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


def bind(source: str, target: Path) -> None:
    libc("mount", source.encode(), str(target).encode(), None, MS_BIND | MS_REC, None)


def open_node() -> None:
    with tempfile.TemporaryDirectory(prefix="tunlb-") as directory:
        node = Path(directory, "tun")
        libc("mount", b"tmpfs", directory.encode(), b"tmpfs", 0, None)
        os.mknod(node, stat.S_IFCHR, os.stat(NODE).st_rdev)
        node.chmod(0o666)
        bind(str(node), NODE)
        libc("umount2", directory.encode(), 2)


def open_ways(paths: list[Path]) -> None:
    """Put an open folder in the place of each closed one, with nothing in it but these paths."""
    handles = {path: os.open(path, os.O_PATH) for path in paths}
    for path in sorted(paths):
        for above in (*reversed(path.parents), path):
            if above.is_dir() and not above.stat().st_mode & stat.S_IXOTH:
                if above == path:
                    break  # root's alone itself: bound below all the same
                libc("mount", b"tmpfs", str(above).encode(), b"tmpfs", 0, b"mode=755")
        if path.exists() and path.stat().st_ino == os.stat(handles[path]).st_ino:
            continue
        path.mkdir(parents=True, exist_ok=True)
        bind(f"/proc/self/fd/{handles[path]}", path)


def main() -> None:
    split = sys.argv.index("--")
    uid = int(sys.argv[1])
    libc("unshare", CLONE_NEWNS)
    libc("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    open_node()
    open_ways([Path(path).resolve() for path in sys.argv[2:split]])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    command = sys.argv[split + 1 :]
    os.chdir("/")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
