"""Who tells a service's dests which client a conn is of."""

from __future__ import annotations

import cython

from tunlb.ipvs.match import Prefixes


class Telling:
    """``what`` is as client_address.how has it; 0: nobody does. Clients in ``trusted`` are
    balancers that do it themselves: what they say passes as it is.
    """

    def __init__(self, what: int = 0, trusted: Prefixes | None = None) -> None:
        self.what = what
        self.trusted = trusted

    def of(self, hi: cython.ulonglong, lo: cython.ulonglong) -> cython.int:
        """What is to be done for a conn of this client."""
        if self.what != 0 and self.trusted is not None and self.trusted.hold(hi, lo):
            return 0
        return self.what


NOTHING = Telling()
