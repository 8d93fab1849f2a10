"""A director without devices or clocks: frames in, verdicts, frames and counters out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunlb.conf import loads
from tunlb.counters import SIZE as COUNTERS_SIZE
from tunlb.counters import Counters
from tunlb.director import Director
from tunlb.hook import Hook, Verdict
from tunlb.ipvs.conn import ConnTable, hash_secret, table_size
from tunlb.ipvs.dest import STATS_SIZE
from tunlb.ipvs.rates import RATES_SIZE
from tunlb.ipvs.sharding import Sharding
from tunlb.neigh import NEIGH_ROWS_SIZE
from tunlb.netif import Netif
from tunlb.packet import CUT, Packet
from tunlb.pipeline.hooks import ErrorHandler
from tunlb.shared import Shared
from tunlb.wire import vnet

SEED = 0x7475_6E6C_6221


def mac_of(index: int) -> int:
    """The MAC address of the port with this index in every test: 02:00:00:00:fe:01 and on."""
    return 0x0200_0000_FE01 + index


def raise_on(hook: object, error: Exception) -> None:
    """What a test does with a hook that raised."""
    raise error


class Memory:
    """What a worker leaves to its successor, without a process around it."""

    def __init__(self, conn_max: int = 1024) -> None:
        self.conn_max = conn_max
        self.conns = bytearray(table_size(conn_max))
        self.counters = bytearray(COUNTERS_SIZE)
        self.dests = bytearray(STATS_SIZE * 64)
        self.neighs = bytearray(NEIGH_ROWS_SIZE)
        self.rates = bytearray(RATES_SIZE)

    def copy(self) -> Memory:
        """As it is now: what a worker that is killed now leaves."""
        made = Memory.__new__(Memory)
        made.conn_max = self.conn_max
        made.conns, made.counters = bytearray(self.conns), bytearray(self.counters)
        made.dests, made.neighs = bytearray(self.dests), bytearray(self.neighs)
        made.rates = bytearray(self.rates)
        return made


def make_director(
    config_text: str,
    *,
    hooks: Sequence[Hook] = (),
    conn_max: int | None = None,
    secret: bytes = b"test",
    memory: Memory | Shared | None = None,
    sharding: Sharding | None = None,
    fleet: Sequence[Memory] = (),
    on_error: ErrorHandler = raise_on,
) -> Director:
    """A director for a configuration, not started: no address is known before ``start(now)``.
    ``fleet`` are the memories of all workers, where there are several.
    """
    config = loads(config_text)
    macs = {port.name: mac_of(i) for i, port in enumerate(config.ports) if port.type == "tap"}
    kept = memory or Memory(conn_max or config.tunlb.conn_max)
    return Director(
        config,
        macs,
        ConnTable(kept.conn_max, hash_secret(secret), kept.conns),
        Counters(kept.counters),
        seed=SEED,
        on_error=on_error,
        hooks=hooks,
        dest_stats=None if memory is None else memoryview(memory.dests),
        neigh_rows=None if memory is None else memoryview(memory.neighs),
        fleet=[memoryview(each.dests) for each in fleet],
        rates=memoryview(fleet[0].rates) if fleet else None,
        sharding=sharding,
    )


@dataclass(frozen=True)
class Sent:
    """A frame that left: through which port, with its virtio-net header before it."""

    port: str
    frame: bytes


class Rig:
    """A started director in which time is a number and every frame is caught."""

    def __init__(
        self,
        config_text: str,
        *,
        now: int = 1_000_000,
        hooks: Sequence[Hook] = (),
        conn_max: int | None = 1024,
        quiet: bool = True,
        memory: Memory | Shared | None = None,
        sharding: Sharding | None = None,
        fleet: Sequence[Memory] = (),
        on_error: ErrorHandler = raise_on,
    ) -> None:
        self.director = make_director(
            config_text,
            hooks=hooks,
            conn_max=conn_max,
            memory=memory,
            sharding=sharding,
            fleet=fleet,
            on_error=on_error,
        )
        self.now = now
        self.director.start(now)
        if quiet:  # most tests do not look at the announcements of the start
            self.director.tick(now)
            self.director.outbox.take()
            self._base = self.director.counters.snapshot()
        else:
            self._base = {}

    def netif(self, name: str) -> Netif:
        """The interface that a port's frames are of; a backup's are its bond's."""
        for index, port in enumerate(self.director.config.ports):
            if port.name == name:
                found: Netif = self.director.carried[index]
                return found
        return next(netif for netif in self.director.netifs if netif.name == name)

    def _sent(self, netif: Netif, frame: bytes) -> Sent:
        named = netif.vid or netif.port is not None
        name = netif.name if named else self.director.config.ports[netif.queue].name
        return Sent(name, frame)

    def receive(self, port: str, frame: bytes) -> tuple[Verdict, list[Sent]]:
        """Feed one frame (virtio-net header first); the verdict and everything that left."""
        pkt = self.director.packet
        pkt.load(frame, self.netif(port))
        verdict = Verdict(self.director.receive(pkt, self.now))
        sent = []
        if verdict == Verdict.ACCEPT:
            sent.append(self.written(pkt))
        elif verdict == Verdict.STOLEN and pkt.owner == CUT:
            sent += self.segments()
        return verdict, sent + self.outbox()

    def segments(self) -> list[Sent]:
        """What becomes of the packet that was stolen to be cut."""
        pkt = self.director.packet
        sent = []
        while (verdict := self.director.segment(pkt, self.now)) >= 0:
            if verdict == Verdict.ACCEPT:
                sent.append(self.written(pkt))
        return sent

    def send(self, port: str, frames: Iterable[bytes]) -> list[Sent]:
        """Feed frames in turn; everything that left."""
        return [sent for frame in frames for sent in self.receive(port, frame)[1]]

    def written(self, pkt: Packet) -> Sent:
        """An accepted packet as its port would write it."""
        vnet.emit(pkt)
        assert pkt.oif is not None
        return self._sent(pkt.oif, bytes(pkt.mem[pkt.start - 10 : pkt.end]))

    def outbox(self) -> list[Sent]:
        """What waits in the outbox, and what becomes of fragments that go on."""
        outbox = self.director.outbox
        sent = self.frames()
        pkt = self.director.packet
        for netif, frame, mark, handed in outbox.take_resumed():
            pkt.load(frame, netif)
            pkt.mark, pkt.handed = mark, handed
            verdict = self.director.resume(pkt, self.now)
            if verdict == Verdict.ACCEPT:
                sent.append(self.written(pkt))
            elif verdict == Verdict.STOLEN and pkt.owner == CUT:
                sent += self.segments()
        return sent + self.frames()

    def frames(self) -> list[Sent]:
        """The frames in the outbox."""
        return [self._sent(netif, frame) for netif, frame in self.director.outbox.take()]

    def wake(self) -> list[Sent]:
        """Let time pass until the director wants to be woken; what left then."""
        at = self.director.outbox.take_wake()
        assert at >= 0, "nobody asked to be woken"
        self.now = max(self.now, at)
        self.director.wake(self.now)
        return self.outbox()

    def advance(self, ms: int, step: int = 250) -> list[Sent]:
        """Let time pass in ticks; what left meanwhile."""
        sent = []
        end = self.now + ms
        while self.now < end:
            self.now = min(end, self.now + step)
            self.director.tick(self.now)
            while self.director.step():
                pass
            sent += self.outbox()
        return sent

    def reload(self, config_text: str) -> None:
        self.director.apply(loads(config_text), self.now)

    def counters(self) -> dict[str, int]:
        """Every counter that moved since the start, by name."""
        now = self.director.counters.snapshot()
        return {
            name: n - self._base.get(name, 0)
            for name, n in now.items()
            if n != self._base.get(name, 0)
        }
