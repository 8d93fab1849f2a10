"""Forwarding modes, one a file: the module's name is the mode's, its object's class is ``XMIT``."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from tunlb.ipvs.mode import Mode

# Looked for once: a worker, as another user, may not be able to read the folder any more.
_NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def names() -> list[str]:
    return list(_NAMES)


def find(name: str) -> type[Mode]:
    """The class of the mode called ``name``; KeyError when there is none."""
    if name not in _NAMES:
        raise KeyError(name)
    found: type[Mode] = import_module(f"{__name__}.{name}").XMIT
    return found
