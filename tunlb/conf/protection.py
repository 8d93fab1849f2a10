"""The lines that protect: who may speak to a service, and how fast a port sends."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from tunlb.conf.base import Keys, Name, PortName
from tunlb.conf.values import BitRate, IPNetwork

ACL_MAX: Final = 65535  # acl lines
TC_MAX: Final = 256  # tc lines
TC_BYTES_MAX: Final = 67108864  # of a burst, and of a queue


class Acl(Keys, kw_only=True, frozen=True, tag_field="kind", tag="acl"):
    """Sources that may or may not speak to a service. `service` None = every service."""

    service: Name | None = None
    action: Literal["deny", "allow"]
    src: IPNetwork


class Tc(Keys, kw_only=True, frozen=True, tag_field="kind", tag="tc"):
    """A class of what leaves by a port. `service` None = whatever no other class of the port takes;
    its `rate` is that of the whole port. `rate` None = as fast as the port.
    """

    port: PortName
    service: Name | None = None
    rate: BitRate | None = None
    burst: Annotated[int, Meta(ge=0, le=TC_BYTES_MAX)] = 0
    limit: Annotated[int, Meta(ge=0, le=TC_BYTES_MAX)] = 524288
    priority: Annotated[int, Meta(ge=0, le=7)] = 4

    def burst_bytes(self) -> int:
        """`burst`, or what the rate makes of 0: 20 ms of it, but 16 KiB at least."""
        return self.burst or max(16384, (self.rate or 0) // 8 // 50)
