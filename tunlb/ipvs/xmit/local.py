"""The host itself is the dest (IPVS: LOCALNODE): packets go to it as they came, and its answers go
out without us. So all is as with direct routing, but for where the route leads: the address of such
a dest is one of the host's, and the route to it ends at the host's TAP.
"""

from __future__ import annotations

from tunlb.ipvs.dest import FWD_LOCAL
from tunlb.ipvs.xmit.dr import DirectRouting


class LocalNode(DirectRouting):
    number = FWD_LOCAL


XMIT = LocalNode
