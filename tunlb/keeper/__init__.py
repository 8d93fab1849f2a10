"""The keeper: a small process that forks the workers and keeps what must outlive a supervisor.

A supervisor has threads and loads no user code, so it cannot fork workers itself; it starts a
keeper (`Keeper.spawn`), which has loaded all that a worker runs. The keeper holds a copy of every
descriptor that the supervisor gives it, under a name. When its supervisor ends, however it ends,
the workers go on, and the keeper waits on an abstract socket for a successor of the same user
(`Keeper.connect`), which fetches the descriptors and goes on from there.

Each request gets one reply, {"ok": true, ...} or {"error": "text"}, with the serial number of the
request. A new connection says hello and is told {"busy": pid} while the keeper has a supervisor.

A keeper that is left without a supervisor and cannot be found either stops its workers and ends:
they hold queues that somebody else will need. `listen` fails while the keeper of a predecessor has
the name, but is remembered for that moment. So an upgrade may say `listen` to the new keeper before
`exit` to the old one, and again after it.
"""

from __future__ import annotations

from tunlb.keeper.client import Busy, Fetched, Keeper, KeeperError, KeeperGone, KeeperSilent
from tunlb.keeper.server import serve

__all__ = ["Busy", "Fetched", "Keeper", "KeeperError", "KeeperGone", "KeeperSilent", "serve"]
