"""The program that runs under callgrind: `python -m tunlb.bench.micro.counted ROOM..`.

Callgrind writes its counters to a file, and starts again from zero, where the process calls
getppid(): a function of the C library that nobody else here calls, and that is found by its name in
any build of the interpreter. So one process gives four files for each room, in the order of the
lines that it prints: what came before, the room, what came between, the same without the room.

(Its --zero-before would save half of the files, and leaves remains of what came before.)
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from tunlb.bench.micro.bed import Bed
from tunlb.bench.micro.rooms import Case, Room, all_rooms

WARM_UP = 64  # times: what is done once only is done then, by us and by the interpreter


def drive(case: Case, count: int, live: bool) -> None:
    case.before(count)
    os.getppid()
    case.run(count, live)
    os.getppid()
    case.after(count)


def warm_up(room: Room, case: Case) -> None:
    count = min(room.count, WARM_UP)
    for live in (True, False):
        case.before(count)
        case.run(count, live)
        case.after(count)


def main(names: Sequence[str]) -> int:
    wanted = frozenset(names)
    base = Bed()
    gc.disable()
    for room in all_rooms():
        if room.name not in wanted:
            continue
        case = room.make(base)
        warm_up(room, case)
        drive(case, room.count, True)
        drive(case, room.count, False)
        print(room.name, room.count, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
