"""Schedulers, one a file: the module's name is the scheduler's, its class is ``SCHEDULER``."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from tunlb.ipvs.scheduler import Scheduler

# Looked for once: a worker, as another user, may not be able to read the folder any more.
_NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def names() -> list[str]:
    return list(_NAMES)


def find(name: str) -> type[Scheduler]:
    """The class of the scheduler called ``name``; KeyError when there is none."""
    if name not in _NAMES:
        raise KeyError(name)
    found: type[Scheduler] = import_module(f"{__name__}.{name}").SCHEDULER
    return found
