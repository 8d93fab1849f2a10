"""Types that the structs of a configuration share."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

TIMEOUT_MAX_S: Final = 2678400  # 31 days, the longest that ipvsadm takes

IfName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}\Z",
        description="an interface name: 1-15 letters, digits or _ . -",
    ),
]
PortName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,19}\Z",
        description='the name of a port, or "<port>.<id>" for one of its VLANs',
    ),
]
Name: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}\Z",
        description="a name: 1-64 letters, digits or _ . : -",
    ),
]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=TIMEOUT_MAX_S)]
DeviceMtu: TypeAlias = Annotated[int, Meta(ge=68, le=65521)]


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object that takes no keys but its own."""
