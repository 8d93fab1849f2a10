"""A port with a host: whatever is read, the host gets it as it came, or not at all."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.corpus import EDITS, LB, TAP, Feed, Kind, Step
from tunlb.hook import Verdict
from tunlb.testing.audit import audit

HOST = "lb0-h"


def with_host(text: str) -> str:
    lines = [json.loads(line) for line in text.splitlines()]
    lines[0] |= {"host": HOST, "host_addresses": ["10.0.0.77/32", "10.0.0.101/32"]}
    for line in lines:
        if line["kind"] == "service" and line["name"].startswith("dr"):
            line["fwdmode"] = "local"
        if line["kind"] == "dest" and line["service"].startswith("dr"):
            line["daddr"] = "fd00::100" if line["service"] == "dr6" else "10.0.0.100"
    return "\n".join(map(json.dumps, lines))


BESIDE = Kind(with_host(TAP.config), TAP.frames)

numbers = st.integers(0, 65535)
edits = st.lists(st.tuples(st.sampled_from(EDITS), numbers, numbers), max_size=4)
pauses = st.sampled_from((0, 0, 0, 30, 1000, 20_000))
steps = st.lists(st.tuples(st.integers(0, 120), edits, pauses), min_size=1, max_size=12)


@given(taken=steps)
@settings(max_examples=2 * settings().max_examples, deadline=None)
def test_as_it_came_or_not_at_all(taken: list[Step]) -> None:
    feed = Feed(BESIDE)
    passed = 0
    for step in taken:
        port, data, verdict, sent, _ = feed.read(step)
        counted = feed.rig.counters().get("HOST_IN", 0)
        to_host = [one for one in sent if one.port == HOST]
        if counted == passed:
            # Else a conn of the host's: to its MAC address, from ours.
            assert all(one.frame[10:22] == LB + LB for one in to_host)
            continue
        passed += 1
        assert counted == passed
        assert (port, Verdict(verdict)) == ("lb0", Verdict.ACCEPT)
        (frame,) = (one.frame for one in to_host)
        dst = data[10:16]
        assert dst == LB or dst[0] & 1
        assert data[16:22] != LB
        if data[22:24] == b"\x81\0" and int.from_bytes(data[24:26], "big") & 0xFFF == 0:
            continue  # a priority tag is lost
        # The kernel's padding may be lost.
        assert data[10:].startswith(frame[10:])
    audit(feed.rig.director)
