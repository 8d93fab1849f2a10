"""Schedulers, one a file: the module's name is the scheduler's, its class is ``SCHEDULER``.

A scheduler of a user's own is a class in a module of theirs. It is named ``package.module:Class``,
or shortly by an entry point of that value in the group GROUP.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

from tunlb import plugins

if TYPE_CHECKING:
    # Not to run: whoever wants the names, to check a configuration, needs none of the engine.
    from tunlb.ipvs.scheduler import Scheduler

#: Ours that look at nothing but the packet and the dests with their weights: two directors with the
#: same seed and the same dests pick the same dest.
STATELESS = ("conhash", "dh", "mh", "sh")

GROUP = plugins.SCHEDULERS

# Looked for once: a worker, as another user, may not be able to read the folder any more.
_NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


class SchedulerError(Exception):
    """A user's scheduler cannot be had; the text says what to do."""


def names() -> list[str]:
    """Our own."""
    return list(_NAMES)


def resolve(name: str) -> str:
    """What :func:`find` takes for a scheduler as a configuration names it. Imports no user code.

    Raises KeyError when there is none of that name, SchedulerError when there are two.
    """
    if name in _NAMES:
        return name
    try:
        return plugins.resolve(GROUP, name)
    except plugins.PluginError as error:
        raise SchedulerError(str(error)) from error


def module_of(resolved: str) -> str | None:
    """The module that a user's scheduler is in; None for one of our own."""
    module, colon, _ = resolved.partition(":")
    return module if colon else None


def find(resolved: str) -> type[Scheduler]:
    """The class of a scheduler, as :func:`resolve` named it.

    Raises KeyError when there is none, SchedulerError when a user's cannot be imported or is none.
    """
    module, _, attribute = resolved.partition(":")
    if attribute:
        return _import(module, attribute)
    if resolved not in _NAMES:
        raise KeyError(resolved)
    found: type[Scheduler] = import_module(f"{__name__}.{resolved}").SCHEDULER
    return found


def trial(resolved: str) -> None:
    """Make one, to see whether that can be done. Raises as :func:`find` does."""
    cls = find(resolved)
    try:
        cls(0, 65537).update([])
    except BaseException as error:
        raise SchedulerError(
            f"scheduler {resolved}: {type(error).__name__}: {error} "
            "(the class takes a seed and a table size, update() a list of dests)"
        ) from error


def _import(module: str, attribute: str) -> type[Scheduler]:
    from tunlb.ipvs.scheduler import Scheduler

    named = f"scheduler {module}:{attribute}"
    try:
        found: object = getattr(import_module(module), attribute)
    # More than Exception: a module that is also a program raises SystemExit
    except BaseException as error:
        raise SchedulerError(
            f"{named}: {type(error).__name__}: {error} "
            "(the module must be importable: install its package, or set PYTHONPATH)"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Scheduler)):
        raise SchedulerError(f"{named} is not a subclass of tunlb.ipvs.scheduler.Scheduler")
    return found
