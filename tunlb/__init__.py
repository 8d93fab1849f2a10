"""tunlb: a layer-4 load balancer in user space, on TUN/TAP."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

__version__ = "0.1.0"

__all__ = ["__version__", "build"]


def build() -> Literal["compiled", "uncompiled"]:
    """Which of the two builds this process runs.

    Looks where the import system would take `tunlb.packet` from, without importing it, so that
    `tunlb --version` stays a matter of milliseconds. One room stands for all of them: setup.py
    compiles every room or none.
    """
    spec = find_spec("tunlb.packet")
    if spec is None or spec.origin is None or spec.origin.endswith(".py"):
        return "uncompiled"
    return "compiled"
