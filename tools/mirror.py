"""Copies the tree to another place without its compiled rooms, for a second build beside the first.

`mirror.py DEST`: DEST gets what changed and loses what the tree no longer has. What was built in
DEST stays there (its own .so files and build/), so that the next build is incremental.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import sys
from pathlib import Path

MADE = frozenset({"build", "dist", "results", "__pycache__"})


def tree(top: Path) -> set[Path]:
    """The files under `top` that people wrote, relative to it."""
    found: set[Path] = set()
    for folder, names, files in os.walk(top):
        names[:] = [
            n for n in names if n not in MADE and not n.endswith(".egg-info") and n[0] != "."
        ]
        found.update(Path(folder, f).relative_to(top) for f in files if not f.endswith(".so"))
    return found


def mirror(source: Path, dest: Path) -> None:
    wanted = tree(source)
    for gone in tree(dest) - wanted:
        (dest / gone).unlink()
    for name in sorted(wanted):
        target = dest / name
        if target.exists() and filecmp.cmp(source / name, target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target)


if __name__ == "__main__":
    mirror(Path(__file__).resolve().parent.parent, Path(sys.argv[1]).resolve())
