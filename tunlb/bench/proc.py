"""What /proc says of processes and of the machine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

_TICK_S: Final = 1.0 / os.sysconf("SC_CLK_TCK")
# The fields of /proc/PID/stat that follow the name in parentheses begin with the third one.
_UTIME: Final = 14 - 3
_PSS: Final = re.compile(rb"^Pss:\s+(\d+) kB$", re.MULTILINE)

_FILES: Final = re.compile(r"^Max open files\s+(\d+)", re.MULTILINE)


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of these processes and of their children that have ended and were waited for."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
            total += sum(map(int, fields.split()[_UTIME : _UTIME + 4]))
    return total * _TICK_S


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory of these processes together: what several of them map is counted once (Pss)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
            total += int(found[1]) * 1024 if found else 0
    return total


def open_files_max(pid: int) -> int:
    """How many files a process may open; 0 when it has ended."""
    with contextlib.suppress(OSError):
        found = _FILES.search(Path(f"/proc/{pid}/limits").read_text())
        return int(found[1]) if found else 0
    return 0


class Ticks(NamedTuple):
    """CPU time of the machine so far, in ticks of all of its cores."""

    total: int
    steal: int  # what the host of this virtual machine gave to somebody else

    def steal_share(self, before: Ticks) -> float:
        """0..1, since `before`."""
        return (self.steal - before.steal) / max(1, self.total - before.total)


def ticks(text: str | None = None) -> Ticks:
    """From the text of /proc/stat: user nice system idle iowait irq softirq steal ..."""
    words = (text or Path("/proc/stat").read_text()).partition("\n")[0].split()[1:9]
    figures = [int(word) for word in words]
    return Ticks(sum(figures), figures[7])
