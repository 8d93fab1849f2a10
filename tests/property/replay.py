"""One way to run steps and note all that came of them, in this interpreter or as a program.

As a program it reads one JSON line a case, ``[kind, steps]``, and answers with one line, so that
test_builds.py can ask another build.
"""

from __future__ import annotations

import json
import sys

import tunlb
from tests.property.corpus import KINDS, Feed, Step


def replay(kind: str, steps: list[Step]) -> list[object]:
    """What each step gave, and the counters at the end; nothing but JSON's types."""
    feed = Feed(KINDS[kind])
    seen: list[object] = []
    for step in steps:
        _, data, verdict, sent, ticked = feed.read(step)
        out = [[one.port, one.frame.hex()] for one in (*ticked, *sent)]
        seen.append([data.hex(), int(verdict), feed.rig.director.packet.reason, out])
    director = feed.rig.director
    seen.append([director.ipvs.conns.count, len(director.neighs), len(director.ipvs.life.pools)])
    seen.append(feed.rig.counters())
    return seen


def main() -> None:
    print(tunlb.build(), flush=True)
    for line in sys.stdin:
        kind, steps = json.loads(line)
        print(json.dumps(replay(kind, steps)), flush=True)


if __name__ == "__main__":
    main()
