"""The bench of the hand-over runs as it is, and prints a figure for each case."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_every_case_has_its_figures() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "handover.py"), "--seconds", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("│")]
    rows = [re.findall(r"[\w ]*\w", line) for line in lines]
    cases = [(name.strip(), int(burst)) for name, burst, *_ in rows]
    assert cases == [
        (name, burst)
        for name, most in (("64 B", 64), ("MTU", 64), ("64 KiB", 8))
        for burst in (1, most)
    ]
    assert all(int(figure) > 0 for row in rows for figure in row[2:])
    assert {len(row) for row in rows} == {8}
