"""Where a keeper is found."""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import Final

_PREFIX: Final = b"\0tunlb:"
_SIZE_MAX: Final = 108  # sun_path of unix(7)


def socket_address(control: str) -> bytes:
    """The abstract socket of the keeper whose configuration has this `control`.

    Abstract: each network namespace has its own, and it vanishes with the keeper. A path that is
    too long for it is hashed.
    """
    path = os.fsencode(control)
    if len(_PREFIX) + len(path) > _SIZE_MAX:
        path = blake2b(path, digest_size=32).hexdigest().encode()
    return _PREFIX + path
