"""A neighbour table of its own for unit tests: frames and messages in, frames and messages out."""

from __future__ import annotations

from tunlb import neigh as n
from tunlb.counters import Counters
from tunlb.neigh import NOARP, REACHABLE, NeighEntry, NeighTable
from tunlb.neighrows import Message, pack, parse
from tunlb.netif import ADDRESS, Addresses, Netif
from tunlb.outbox import Outbox
from tunlb.packet import Packet
from tunlb.peers import Peers
from tunlb.testing import frames as f
from tunlb.wire import icmp, ipv6

MAPPED = 0xFFFF_0000_0000
OUR_MAC = 0x020000000001
PORT = Netif(0, "lb0", OUR_MAC)
OTHER = Netif(1, "lb1", 0x020000000009)
TUN = Netif(2, "tun0", 0, tun=True)
VLAN = Netif(7, "lb1.10", 0x020000000009, vid=10, queue=1)
MAC, FORGED = f.mac_bytes("02:00:00:00:00:11"), f.mac_bytes("02:00:00:00:00:66")
V4, V6 = (0, MAPPED | 0x0A00000B), (0xFD << 56, 0x11)
START = 1_000_000


class Room:
    """A neighbour table of its own, with a clock that is a number."""

    def __init__(self, worker: int = 0, workers: int = 1, rows: bytearray | None = None) -> None:
        self.counters = Counters()
        self.addresses = Addresses()
        self.addresses.add(PORT, 4, 0, MAPPED | 0x0A0000FE, ADDRESS)
        self.addresses.add(PORT, 6, 0xFD << 56, 0xFE, ADDRESS)
        self.outbox = Outbox(self.counters)
        self.peers = Peers(worker, workers, self.counters)
        peers = self.peers if workers > 1 else None
        self.table = NeighTable(self.counters, self.addresses, self.outbox, peers, rows)
        self.table.netifs = {(n.queue, n.vid): n for n in (PORT, OTHER, TUN, VLAN)}
        self.now = START
        self.table.advance(self.now, 1)

    def entry(self, key: tuple[int, int] = V4, netif: Netif = PORT) -> NeighEntry:
        index = self.table.resolve(netif, *key, self.now)
        found = self.table.entries[index]
        assert found is not None
        return found

    def known(self, state: int = REACHABLE, key: tuple[int, int] = V4) -> NeighEntry:
        """An entry that has been learnt and then moved on to ``state``."""
        entry = self.entry(key)
        entry.set_mac(MAC)
        entry.state = state
        entry.requested = START - 60_000
        entry.confirmed = -1
        if state < NOARP:
            self.table.schedule(entry.index, self.now, n.STATE_TIMEOUT_MS[state])
        return entry

    def packet(self) -> Packet:
        pkt = Packet()
        pkt.load(f.vnet(f.ipv4("192.0.2.1", "10.0.0.11", f.udp(1, 2, b"x"))), TUN)
        pkt.ether_type = 0x0800
        return pkt

    def output(self, entry: NeighEntry) -> tuple[int, Packet]:
        pkt = self.packet()
        pkt.neigh = entry.index
        return self.table.output(pkt, self.now), pkt

    def arp(self, frame: bytes, netif: Netif = PORT) -> int:
        pkt = Packet()
        pkt.load(f.vnet(frame), netif)
        return self.table.arp_input(pkt, self.now)

    def reply(self, mac: bytes = MAC, spa: str = "10.0.0.11", netif: Netif = PORT) -> int:
        return self.arp(f.arp(2, mac, spa, PORT.mac_bytes, "10.0.0.254"), netif)

    def nd(self, packet: bytes, netif: Netif = PORT) -> int:
        pkt = Packet()
        pkt.load(f.vnet(f.eth(PORT.mac_bytes, MAC, payload=packet)), netif)
        assert ipv6.parse(pkt) == 0
        assert icmp.parse(pkt) == 0
        return self.table.nd_input(pkt, self.now)

    def wait(self, ms: int) -> None:
        end = self.now + ms
        while self.now < end:
            self.now = min(end, self.now + 250)
            self.table.advance(self.now, 4096)

    def sent(self) -> list[bytes]:
        return [frame for _, frame in self.outbox.take()]

    def said(self) -> list[tuple[int, Message]]:
        """The messages for other workers, read; (to, message)."""
        found = [(to, parse(message)) for to, message in self.peers.take()]
        return [(to, message) for to, message in found if message is not None]

    def hear(
        self,
        kind: int,
        mac: bytes = MAC,
        age: int = 0,
        *,
        sender: int = 0,
        key: tuple[int, int] = V4,
        netif: Netif = PORT,
    ) -> None:
        self.table.hear(pack(kind, sender, netif, *key, mac, age), self.now)
