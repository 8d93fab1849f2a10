"""The supervisor: owns configuration, devices and the kernel's set-up; starts, watches, replaces,
reloads and stops the workers.

It never touches a frame, never forks a worker itself (it has threads), and loads no user code. What
a worker needs from it are messages on a channel, and descriptors: queues, memory, mailboxes. The
keeper has a copy of each descriptor and of the state (`state.State`), so that all outlive the
supervisor, and a successor goes on from there.
"""

from __future__ import annotations

from tunlb.supervisor.errors import StartError
from tunlb.supervisor.run import main
from tunlb.supervisor.start import Options, fits
from tunlb.supervisor.status import ask

__all__ = ["Options", "StartError", "ask", "fits", "main"]
