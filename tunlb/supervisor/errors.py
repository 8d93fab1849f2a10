"""What ends a start."""

from __future__ import annotations


class StartError(Exception):
    """tunlb cannot start as configured; the text says what to do."""
