"""Users' code, as a configuration names it: ``package.module:Class``, or shortly by an entry point
of that value. Nothing of it is imported here.
"""

from __future__ import annotations

import re
from functools import cache

HOOKS = "tunlb.hooks"  #: groups of entry points: what installed packages offer
SCHEDULERS = "tunlb.schedulers"

CALL = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class PluginError(Exception):
    """A name that cannot be used; the text says why."""


def resolve(group: str, name: str) -> str:
    """``package.module:Class`` for a name that is one, or that an installed package offers.

    Raises KeyError when there is none of that name, PluginError when there are two.
    """
    return name if CALL.fullmatch(name) else _entry_point(group, name)


@cache  # a found one: what is installed while we run, and was missed, is found the next time
def _entry_point(group: str, name: str) -> str:
    from importlib.metadata import entry_points  # slow, and few need it

    try:
        entries = entry_points(group=group, name=name)
    except Exception as error:  # one package with a bad file spoils the look-up for all
        told = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"the entry points of an installed package cannot be read: {told}"
        ) from error
    found = sorted({entry.value.replace(" ", "") for entry in entries})
    if not found:
        raise KeyError(name)
    if len(found) > 1:
        raise PluginError(f"installed packages offer two of that name: {', '.join(found)}")
    if not CALL.fullmatch(found[0]):
        raise PluginError(f'its entry point is {found[0]}, and not "package.module:Class"')
    return found[0]
