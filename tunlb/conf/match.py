"""Which packets a service without a vaddr takes (DPVS: struct dp_vs_match)."""

from __future__ import annotations

from typing import Final

from tunlb.conf.base import Keys, PortName
from tunlb.conf.values import IPNetwork, PortRange

MATCHES_MAX: Final = 64  # services with a match; each new flow is held against them in turn
PREFIXES_MAX: Final = 64  # prefixes of one match


class Match(Keys, kw_only=True, frozen=True):
    """All that is given must hold. `iport`: the port it came by; `oport`: where its route leads."""

    src: tuple[IPNetwork, ...] = ()
    dst: tuple[IPNetwork, ...] = ()
    sport: PortRange | None = None
    dport: PortRange | None = None
    iport: PortName | None = None
    oport: PortName | None = None
