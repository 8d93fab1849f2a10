"""Schedulers, one a file: the module's name is the scheduler's, its class is ``SCHEDULER``."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from tunlb.ipvs.scheduler import Scheduler


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> type[Scheduler]:
    """The class of the scheduler called ``name``; KeyError when there is none."""
    if name not in names():
        raise KeyError(name)
    found: type[Scheduler] = import_module(f"{__name__}.{name}").SCHEDULER
    return found
