"""Several workers of one tunlb, without processes: directors that hand frames and messages over."""

from __future__ import annotations

from collections.abc import Mapping

from tunlb.hook import Verdict
from tunlb.ipvs.sharding import Sharding, shard_keys
from tunlb.packet import CUT, NOT_ASKED
from tunlb.testing.flow import Memory, Rig, Sent
from tunlb.wire import vnet

HANDOVERS_MAX = 64  #: more than any exchange needs; beyond it something goes in circles


class Workers:
    """``count`` workers with one configuration; frames go in at any of them."""

    def __init__(self, config_text: str, count: int = 2, *, now: int = 1_000_000) -> None:
        self.config_text = config_text
        self.count = count
        self.keys = shard_keys(b"test")
        self.memories = [Memory() for _ in range(count)]
        self.rigs = [self._make(worker, now) for worker in range(count)]

    def _make(self, worker: int, now: int) -> Rig:
        return Rig(
            self.config_text,
            now=now,
            memory=self.memories[worker],
            sharding=Sharding(self.count, worker, self.keys),
            fleet=self.memories,
        )

    def kill(self, worker: int) -> Rig:
        """The worker dies and is replaced by another one over what it left."""
        # Nobody calls the former one again: its memory is what it left, and the others see it.
        self.rigs[worker] = self._make(worker, self.rigs[worker].now)
        self.rigs[worker].director.adopt(self.rigs[worker].now)
        return self.rigs[worker]

    def receive(self, worker: int, port: str, frame: bytes) -> list[Sent]:
        """Feed one frame to a worker; everything that left, whoever sent it."""
        rig = self.rigs[worker]
        rig.director.packet.load(frame, rig.netif(port))
        return self._run(rig) + self.settle()

    def _run(self, rig: Rig) -> list[Sent]:
        pkt = rig.director.packet
        sent = self._walk(rig, Verdict(rig.director.receive(pkt, rig.now)))
        for each in self.rigs:
            pkt = each.director.packet
            for netif, frame, mark, handed in each.director.outbox.take_resumed():
                pkt.load(frame, netif)
                pkt.mark, pkt.handed = mark, handed
                sent += self._walk(each, Verdict(each.director.resume(pkt, each.now)))
        return sent

    def _walk(self, rig: Rig, verdict: Verdict) -> list[Sent]:
        """The packet in a rig's buffer, wherever it has to go."""
        for _ in range(HANDOVERS_MAX):
            pkt = rig.director.packet
            if verdict == Verdict.ACCEPT:
                return [rig.written(pkt), *rig.frames()]
            if verdict == Verdict.STOLEN and pkt.owner == CUT:
                return [*rig.segments(), *rig.frames()]
            if verdict != Verdict.STOLEN or pkt.owner < 0:
                return rig.frames()
            rig = self._hand_over(rig, self.rigs[pkt.owner])
            verdict = Verdict(rig.director.receive(rig.director.packet, rig.now))
        raise AssertionError("a frame is handed around for ever")

    def _hand_over(self, giver: Rig, owner: Rig) -> Rig:
        pkt = giver.director.packet
        chosen = pkt.chosen if pkt.handed else NOT_ASKED
        vnet.emit(pkt)
        iif = pkt.iif
        owner.director.packet.load(
            bytes(pkt.mem[pkt.start - 10 : pkt.end]),
            owner.director.neighs.netifs[iif.queue, iif.vid],
        )
        owner.director.packet.handed = True
        owner.director.packet.chosen = chosen
        return owner

    def settle(self) -> list[Sent]:
        """Deliver the messages between workers until there are none; what was sent on the way."""
        sent: list[Sent] = []
        for _ in range(HANDOVERS_MAX):
            mail = [
                item
                for rig in self.rigs
                if rig.director.peers is not None
                for item in rig.director.peers.take()
            ]
            if not mail:
                return sent
            for to, message in mail:
                self.rigs[to].director.hear(message, self.rigs[to].now)
            sent += [frame for rig in self.rigs for frame in rig.outbox()]
        raise AssertionError("messages go around for ever")

    def advance(self, ms: int, step: int = 250) -> list[Sent]:
        sent: list[Sent] = []
        for _ in range(0, ms, step):
            for rig in self.rigs:
                sent += rig.advance(step, step)
            sent += self.settle()
        return sent

    def counters(self) -> Mapping[str, int]:
        """Sums over all workers."""
        total: dict[str, int] = {}
        for rig in self.rigs:
            for name, n in rig.counters().items():
                total[name] = total.get(name, 0) + n
        return total
