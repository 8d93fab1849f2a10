"""Neighbours, ARP and ND alike: the NUD table, the bounded queues, and who may teach us a MAC
address.

Heads up: read RFC 826, RFC 4861 section 7.3 and RFC 5227 beside this file; states, events and
timers are DPVS' (src/neigh.c). An entry is

* NONE       asked for and not answered; packets queue, a timeout drops them and forgets the entry
* SEND       a request is on the wire
* REACHABLE  confirmed, by an answer or by a conn's ACK, within the last 60 s
* PROBE      not confirmed for a while; usable, and the next packet asks again (unicast)
* DELAY      asked again; usable until the answer or a timeout

Only an answer that we asked for teaches a MAC address. A gratuitous one for an entry that we have
makes us ask that station by unicast, and its answer counts. Our own addresses, groups and broadcast
are never learnt. At most :data:`NEIGH_MAX` entries, :data:`QUEUE_MAX` packets an entry, one request
a second an address.

An entry's index is handed to conns, so a deleted entry that a conn may hold (``pinned``) changes
``epoch``: rows with an older epoch resolve their neighbours anew.

Of several workers only worker 0 speaks on the wire, so that there is one request for an address and
one answer for ours. Every worker has a table, states and limits of its own; where it would send a
request, it ASKs worker 0, and what worker 0 learns it TELLs everyone (:mod:`tunlb.neighrows`). Who
has no entry forgets that at once: a later ASK of his is answered without the wire. What a conn's
ACKs confirm at another worker KEEPs the entry of worker 0, which has to look at the gratuitous
claims about it.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.neighrows import ASK, KEEP, ROW_SIZE, TELL, Message, NeighRows, pack, parse
from tunlb.netif import NOWHERE, Addresses, NeighKey, Netif
from tunlb.outbox import PLAIN_VNET, Outbox, copy_of
from tunlb.packet import VNET_LEN, Packet
from tunlb.peers import Peers
from tunlb.timers import Wheel
from tunlb.wire import arp, nd

if cython.compiled:
    from cython.cimports.tunlb.netif import neigh_key
    from cython.cimports.tunlb.wire import ether, icmp, vnet
else:
    from tunlb.netif import neigh_key
    from tunlb.wire import ether, icmp, vnet

NEIGH_MAX = 1024
QUEUE_MAX = 128
REQUEST_INTERVAL_MS = 1000
NEIGH_ROWS_SIZE = (NEIGH_MAX + 1) * ROW_SIZE  #: bytes of the rows of a table

NONE = 0
SEND = 1
REACHABLE = 2
PROBE = 3
DELAY = 4
NOARP = 5  #: a TUN, the host, or a static neighbour: no protocol, no timer

STATE_NAMES = ("NONE", "SEND", "REACHABLE", "PROBE", "DELAY", "NOARP")

# Events, the columns' order is NONE SEND REACHABLE PROBE DELAY (DPVS: nud_states).
SEND_ARP = 0
RECV_ARP = 1
ACK_CONFIRM = 2
MBUF_REF = 3
TIMEOUT = 4
NUD = (
    bytes((SEND, SEND, REACHABLE, DELAY, DELAY)),
    bytes((REACHABLE, REACHABLE, REACHABLE, REACHABLE, REACHABLE)),
    bytes((NONE, SEND, REACHABLE, REACHABLE, REACHABLE)),
    bytes((NONE, SEND, REACHABLE, PROBE, DELAY)),
    bytes((NONE, NONE, PROBE, NONE, NONE)),
)
STATE_TIMEOUT_MS = (2000, 3000, 60000, 30000, 3000)

BROADCAST_MAC = b"\xff" * 6
_MAPPED_PREFIX = cython.declare(cython.ulonglong, 0xFFFF)
_REACHABLE = cython.declare(cython.int, REACHABLE)
_PROBE = cython.declare(cython.int, PROBE)
_REQUEST_INTERVAL = cython.declare(cython.longlong, REQUEST_INTERVAL_MS)
_NO_ROUTE = cython.declare(cython.int, DropReason.NO_ROUTE)
_QUEUE_FULL = cython.declare(cython.int, DropReason.NEIGH_QUEUE_FULL)
_UNREACHABLE = cython.declare(cython.int, DropReason.NEIGH_UNREACHABLE)


class NeighEntry:
    """One neighbour of one interface. ``mac`` is 6 bytes; times are ms, -1 for never."""

    def __init__(self, index: int, netif: Netif, hi: int, lo: int) -> None:
        self.index = index
        self.netif = netif
        self.hi = hi
        self.lo = lo
        self.state = NONE
        self.mac = bytes(6)
        self.prefix = ether.prefix_of(netif, self.mac)
        self.confirmed = -1
        self.requested = -REQUEST_INTERVAL_MS
        self.asking = False  # a request is out, and its one answer has not come
        self.pinned = False
        self.queue: list[bytes] = []

    def set_mac(self, mac: bytes) -> None:
        self.mac = mac
        self.prefix = ether.prefix_of(self.netif, mac)


class NeighTable(Wheel):
    """Every neighbour of every interface, and the timers of their states.

    ``peers`` leads to the other workers; None: there are none. ``rows`` (NEIGH_ROWS_SIZE writable
    bytes, zeroed when new) mirrors each entry that has a MAC address, for the next incarnation to
    :meth:`adopt`; None: nobody will. ``netifs`` has every interface by (queue, vid): what peers and
    rows call it.
    """

    def __init__(
        self,
        counters: Counters,
        addresses: Addresses,
        outbox: Outbox,
        peers: Peers | None = None,
        rows: memoryview | bytearray | None = None,
    ) -> None:
        super().__init__(NEIGH_MAX + 1, 1024, 250)
        self.counters = counters
        self.addresses = addresses
        self.outbox = outbox
        self.peers = Peers(0, 1, counters) if peers is None else peers
        self.rows = None if rows is None else NeighRows(rows)
        if self.rows is not None and len(self.rows) <= NEIGH_MAX:
            raise ValueError(f"neighbours need {NEIGH_ROWS_SIZE} bytes of rows")
        self.netifs: dict[tuple[int, int], Netif] = {}
        # Index 0 means "not decided"; nobody also sits where an entry was deleted.
        self._nobody = NeighEntry(0, NOWHERE, 0, 0)
        self.entries = [self._nobody]
        self.epoch = 1
        self._by_key: dict[NeighKey, NeighEntry] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._by_key)

    def lookup(self, netif: Netif, hi: int, lo: int) -> NeighEntry | None:
        return self._by_key.get(neigh_key(netif.index, hi, lo))

    def resolve(
        self, netif: Netif, hi: cython.ulonglong, lo: cython.ulonglong, now: cython.longlong
    ) -> cython.int:
        """The index of the entry for an address on ``netif``, made if need be; 0 when the table is
        full.
        """
        if netif.noarp:
            hi = 0
            lo = 0
        entry = self._by_key.get(neigh_key(netif.index, hi, lo))
        if entry is None:
            entry = self._new(netif, hi, lo)
            if entry is None:
                return 0
            if netif.noarp:
                entry.state = NOARP
                entry.set_mac(netif.mac_bytes)  # a host has its port's
            else:
                self.schedule(entry.index, now, STATE_TIMEOUT_MS[NONE])
        return entry.index

    def _new(self, netif: Netif, hi: int, lo: int) -> NeighEntry | None:
        if len(self._by_key) >= NEIGH_MAX and not self._evict():
            return None
        if self._free:
            index = self._free.pop()
        else:
            index = len(self.entries)
            self.entries.append(self._nobody)
        entry = NeighEntry(index, netif, hi, lo)
        self.entries[index] = entry
        self._by_key[neigh_key(netif.index, hi, lo)] = entry
        return entry

    def _evict(self) -> bool:
        """Make room: forget who was asked for longest ago and has not answered. Whoever asks for
        many absent neighbours so pushes out his own; those that answered stay.
        """
        for entry in self._by_key.values():
            if entry.state < REACHABLE:
                self._delete(entry)
                return True
        return False

    def add_static(self, netif: Netif, hi: int, lo: int, mac: bytes) -> None:
        """A neighbour of the configuration: never asked for, never forgotten."""
        index = self.resolve(netif, hi, lo, 0)
        entry = self.entries[index]
        if entry is self._nobody:
            raise ValueError(f"more than {NEIGH_MAX} static neighbours")
        self.cancel(index)
        # Only a row of its own: before adopt() the others are a former incarnation's.
        has_row = REACHABLE <= entry.state < NOARP
        entry.state = NOARP
        entry.set_mac(mac)
        if has_row:
            self._mirror(entry)
        self._release(entry)

    def forget_static(self) -> None:
        """Drop the static neighbours, before those of a new configuration."""
        for entry in list(self._by_key.values()):
            if entry.state == NOARP and not entry.netif.noarp:
                self._delete(entry)

    # -- the packet path

    def output(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Send the packet to ``pkt.neigh``: ACCEPT with the L2 header written and ``oif`` set, or
        STOLEN into the queue of an unresolved neighbour, or DROP.
        """
        # Checked, because a hook of the user's may have set it, and a compiled list does not look.
        if pkt.neigh <= 0 or pkt.neigh >= len(self.entries):
            return pkt.drop(_NO_ROUTE)
        entry: NeighEntry = self.entries[pkt.neigh]
        netif: Netif = entry.netif
        pkt.oif = netif
        if netif.tun:
            pkt.start = pkt.l3
            return 1
        if entry.state < _REACHABLE:
            return self._queue(entry, pkt, now)
        if entry.state == _PROBE:
            self._request(entry, now, b"")
        ether.push(pkt, entry.prefix)
        return 1

    def _queue(self, entry: NeighEntry, pkt: Packet, now: cython.longlong) -> cython.int:
        if len(entry.queue) >= QUEUE_MAX:
            return pkt.drop(_QUEUE_FULL)
        ether.push(pkt, entry.prefix)
        vnet.emit(pkt)
        entry.queue.append(copy_of(pkt))
        self.counters.add(Event.NEIGH_QUEUED, 1)
        self._request(entry, now, b"")
        return 2

    # -- states

    def _enter(self, entry: NeighEntry, state: int, now: int) -> None:
        entry.state = state
        self.schedule(entry.index, now, STATE_TIMEOUT_MS[state])

    def _request(self, entry: NeighEntry, now: cython.longlong, known: bytes) -> None:
        """Ask for the entry, at most once a second: by broadcast or group while unknown, by unicast
        to verify, and where another worker still knows it (``known``) when we do not.
        """
        if now - entry.requested < _REQUEST_INTERVAL:
            return
        to = entry.mac if entry.state >= REACHABLE else known if entry.state == NONE else b""
        if not self._send_request(entry, to):
            return
        entry.requested = now
        entry.asking = True
        state = NUD[SEND_ARP][entry.state]
        if state != entry.state:
            self._enter(entry, state, now)

    def _send_request(self, entry: NeighEntry, to: bytes) -> bool:
        netif = entry.netif
        if not self._speaks():
            ask = pack(ASK, self.peers.worker, netif, entry.hi, entry.lo, to, 0)
            return self.peers.put(0, ask)
        is_v4 = entry.hi == 0 and entry.lo >> 32 == _MAPPED_PREFIX
        source = self.addresses.primary(netif, 4 if is_v4 else 6)
        if source is None:
            return False
        if is_v4:
            frame = arp.build(
                netif,
                arp.REQUEST,
                source[1] & 0xFFFFFFFF,
                bytes(6),
                entry.lo & 0xFFFFFFFF,
                to or BROADCAST_MAC,
            )
        else:
            frame = nd.solicit(netif, source, (entry.hi, entry.lo), to)
        self.counters.add(Event.NEIGH_REQUESTS, 1)
        return self.outbox.put(netif, PLAIN_VNET + frame)

    def _learn(self, entry: NeighEntry, mac: bytes, now: int) -> None:
        """An answer that we asked for: take its MAC address, and tell the other workers."""
        entry.asking = False
        self._take(entry, mac, now, now)
        if self._speaks():
            self.peers.tell_all(self._message(TELL, entry, mac, now))

    def _take(self, entry: NeighEntry, mac: bytes, confirmed: int, now: int) -> None:
        """``mac`` was right at ``confirmed``: it is reachable, and the waiting packets go. A
        question of ours stays open: others may wait for its answer.
        """
        # What our own traffic says later counts for its own MAC address only.
        entry.confirmed = max(confirmed, entry.confirmed) if mac == entry.mac else confirmed
        entry.set_mac(mac)
        entry.state = NUD[RECV_ARP][entry.state]
        self.schedule(entry.index, now, entry.confirmed + STATE_TIMEOUT_MS[REACHABLE] - now)
        self._mirror(entry)
        self._release(entry)

    def _mirror(self, entry: NeighEntry) -> None:
        if self.rows is None:
            return
        if REACHABLE <= entry.state < NOARP:
            self.rows.write(
                entry.index, entry.netif, entry.hi, entry.lo, entry.mac, entry.confirmed
            )
        else:
            self.rows.clear(entry.index)

    def _release(self, entry: NeighEntry) -> None:
        waiting, entry.queue = entry.queue, []
        for frame in waiting:
            self.outbox.put(entry.netif, frame[:VNET_LEN] + entry.mac + frame[VNET_LEN + 6 :])

    def fire(self, index: cython.int, now: cython.longlong) -> cython.longlong:
        """The state's time is over: confirmed entries stay reachable, others take the TIMEOUT
        column.
        """
        entry = self.entries[index]
        if entry is self._nobody:
            return 0
        timeout = STATE_TIMEOUT_MS[entry.state]
        if entry.state >= REACHABLE and entry.confirmed >= 0 and now - entry.confirmed < timeout:
            entry.state = NUD[ACK_CONFIRM][entry.state]
            self._mirror(entry)
            if not self._speaks():
                self.peers.put(0, self._message(KEEP, entry, entry.mac, now))
            return int(entry.confirmed + STATE_TIMEOUT_MS[REACHABLE] - now)
        if entry.state == NONE:
            self._delete(entry)
            return 0
        entry.state = NUD[TIMEOUT][entry.state]
        if entry.state == NONE:
            self._mirror(entry)
            self._discard(entry)
        return STATE_TIMEOUT_MS[entry.state]

    def _discard(self, entry: NeighEntry) -> None:
        for _ in entry.queue:
            self.counters.drop(_UNREACHABLE)
        entry.queue = []

    def _delete(self, entry: NeighEntry) -> None:
        self._discard(entry)
        self.cancel(entry.index)
        del self._by_key[neigh_key(entry.netif.index, entry.hi, entry.lo)]
        self.entries[entry.index] = self._nobody
        self._free.append(entry.index)
        if entry.pinned:
            self.epoch += 1

    # -- ARP and ND input: cold, so in plain bytes

    def arp_input(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """An ARP packet (DPVS: neigh_resolve_input). STOLEN when it was good, or worker 0's."""
        if not self._speaks() and not pkt.handed:
            pkt.owner = 0
            return 2
        netif: Netif = pkt.iif
        body = bytes(pkt.mem[pkt.l3 : pkt.end])
        if not arp.is_ethernet_ipv4(body):
            return pkt.drop(DropReason.ARP_INVALID)
        operation = int.from_bytes(body[6:8], "big")
        sender_mac = body[8:14]
        sender = _mapped(body[14:18])
        target = _mapped(body[24:28])
        if operation not in (arp.REQUEST, arp.REPLY) or not self._may_claim(sender, sender_mac):
            return pkt.drop(DropReason.ARP_INVALID)
        self.counters.add(Event.ARP_IN, 1)
        if operation == arp.REQUEST and self.addresses.owned_by(netif, 0, target):
            reply = arp.build(
                netif, arp.REPLY, target & 0xFFFFFFFF, sender_mac, sender & 0xFFFFFFFF, sender_mac
            )
            self.counters.add(Event.NEIGH_REPLIES, 1)
            self.outbox.put(netif, PLAIN_VNET + reply)
        self._heard(netif, 0, sender, sender_mac, operation == arp.REPLY and sender != target, now)
        return 2

    def nd_input(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """A neighbour solicitation or advertisement (RFC 4861 sections 7.1, 7.2)."""
        netif: Netif = pkt.iif
        if netif.tun or icmp.verify(pkt) != 0:
            return pkt.drop(DropReason.ND_INVALID)
        if not self._speaks() and not pkt.handed:
            pkt.owner = 0
            return 2
        message = nd.parse(pkt)
        if message is None or (
            message.mac and not self._may_claim(message.claim[1], message.mac, message.claim[0])
        ):
            return pkt.drop(DropReason.ND_INVALID)
        self.counters.add(Event.ND_IN, 1)
        source = (pkt.saddr_hi, pkt.saddr)
        if message.solicitation:
            if self.addresses.owned_by(netif, message.target[0], message.target[1]):
                to = message.mac or bytes(pkt.mem[pkt.start + 6 : pkt.start + 12])
                reply = nd.advertise(
                    netif, message.target, None if source == (0, 0) else source, to
                )
                self.counters.add(Event.NEIGH_REPLIES, 1)
                self.outbox.put(netif, PLAIN_VNET + reply)
            if message.mac:
                self._heard(netif, source[0], source[1], message.mac, False, now)
        elif message.mac:
            self._heard(
                netif, message.target[0], message.target[1], message.mac, message.solicited, now
            )
        elif message.solicited:
            # A unicast verification may be answered without the link-layer option (RFC 4861 section
            # 4.4).
            entry = self.lookup(netif, message.target[0], message.target[1])
            if entry is not None and entry.asking and DELAY >= entry.state >= REACHABLE:
                self._learn(entry, entry.mac, now)
        return 2

    def _may_claim(self, lo: int, mac: bytes, hi: int = 0) -> bool:
        """Not one of our addresses, and a unicast MAC address that is not zero."""
        return not (mac[0] & 1) and mac != bytes(6) and not self.addresses.is_local(hi, lo)

    def _heard(self, netif: Netif, hi: int, lo: int, mac: bytes, answer: bool, now: int) -> None:
        """Somebody claims an address. Only for an entry that we have does it matter at all."""
        entry = self.lookup(netif, hi, lo)
        if entry is None or entry.state == NOARP or mac == netif.mac_bytes:
            return
        asked = entry.asking and now - entry.requested < STATE_TIMEOUT_MS[SEND]
        if answer and asked:
            self._learn(entry, mac, now)
        elif (
            mac != entry.mac
            and entry.state >= REACHABLE
            and now - entry.requested >= REQUEST_INTERVAL_MS
        ):
            # Gratuitous: ask the claimant itself; only its answer counts.
            if self._send_request(entry, mac):
                entry.requested = now
                entry.asking = True

    # -- announcements

    def announce(self) -> None:
        """A gratuitous ARP or unsolicited advertisement for each address that is ours (RFC 5227,
        RFC 4861 7.2.6).
        """
        if not self._speaks():
            return
        for netif, hi, lo, _ in self.addresses.items():
            if netif.tun:
                continue
            if hi == 0 and lo >> 32 == _MAPPED_PREFIX:
                v4 = lo & 0xFFFFFFFF
                frame = arp.build(netif, arp.REQUEST, v4, bytes(6), v4, BROADCAST_MAC)
            else:
                frame = nd.advertise(netif, (hi, lo), None, nd.ALL_NODES_MAC)
            self.counters.add(Event.NEIGH_ANNOUNCEMENTS, 1)
            self.outbox.put(netif, PLAIN_VNET + frame)

    # -- between workers

    def _speaks(self) -> cython.bint:
        """Is it this worker that speaks ARP and ND on the wire?"""
        return self.peers.worker == 0

    def _message(self, kind: int, entry: NeighEntry, mac: bytes, now: int) -> bytes:
        age = now - entry.confirmed
        return pack(kind, self.peers.worker, entry.netif, entry.hi, entry.lo, mac, age)

    def hear(self, message: bytes, now: int) -> None:
        """A message from another worker; what makes no sense is ignored."""
        heard = parse(message)
        if heard is None or not self._is_peer(heard.sender):
            return
        netif = self._place(heard.queue, heard.vid, heard.hi, heard.lo, heard.mac)
        if netif is None:
            return
        entry = None
        if heard.kind == TELL and heard.sender == 0:
            entry = self.lookup(netif, heard.hi, heard.lo)
        elif heard.kind != TELL and self._speaks():
            entry = self.entries[self.resolve(netif, heard.hi, heard.lo, now)]
        if entry is None or entry is self._nobody or entry.state == NOARP:
            return
        if heard.kind == ASK:
            self._asked(entry, heard, now)
        elif heard.kind == KEEP and entry.state >= REACHABLE and entry.mac != heard.mac:
            self._doubt(entry, now)
        else:
            self._take(entry, heard.mac, now - heard.age, now)

    def _is_peer(self, worker: int) -> bool:
        return worker < self.peers.workers and worker != self.peers.worker

    def _place(self, queue: int, vid: int, hi: int, lo: int, mac: bytes) -> Netif | None:
        """The interface that a row or a message names; None when what it says cannot be true."""
        netif = self.netifs.get((queue, vid))
        if netif is None or netif.noarp or mac == netif.mac_bytes:
            return None
        allowed = self._may_claim(lo, mac, hi) if mac else not self.addresses.is_local(hi, lo)
        return netif if allowed else None

    def _asked(self, entry: NeighEntry, heard: Message, now: int) -> None:
        """Answer what is known; else ask the wire, for all who want to know."""
        timeout = STATE_TIMEOUT_MS[REACHABLE]
        if entry.state >= REACHABLE and entry.confirmed >= 0 and now - entry.confirmed < timeout:
            self.peers.put(heard.sender, self._message(TELL, entry, entry.mac, now))
        else:
            self._request(entry, now, heard.mac)

    def _doubt(self, entry: NeighEntry, now: int) -> None:
        """Another worker's conns confirm another MAC address: one of us missed something. Ask the
        station that we know: its answer tells everyone; without one it is soon forgotten, and the
        other one kept or asked for.
        """
        if entry.state != DELAY:
            entry.confirmed = -1
            self._mirror(entry)
            self._enter(entry, PROBE, now)
            self._request(entry, now, b"")

    # -- from one incarnation to the next

    def adopt(self, now: int) -> int:
        """Take back the neighbours of the rows, and clear the rows that make no sense; how many
        came back. To be called once ``netifs``, addresses and static neighbours are set.
        """
        if self.rows is None:
            return 0
        kept = 0
        # Read whole before anything is written: an entry's new index gives it another row.
        for row in self.rows.read():
            netif = self._place(row.queue, row.vid, row.hi, row.lo, row.mac)
            if netif is None or row.confirmed > now:
                continue
            if self.lookup(netif, row.hi, row.lo) is not None:
                continue  # a static one, or a row twice: the one confirmed last came first
            entry = self._new(netif, row.hi, row.lo)
            if entry is None:
                break
            kept += 1
            self._take(entry, row.mac, row.confirmed, now)
            if row.confirmed < 0 or now - row.confirmed >= STATE_TIMEOUT_MS[REACHABLE]:
                self._enter(entry, PROBE, now)
        for index in range(len(self.rows)):
            if index >= len(self.entries) or not REACHABLE <= self.entries[index].state < NOARP:
                self.rows.clear(index)
        return kept


def _mapped(address: bytes) -> int:
    return 0xFFFF_0000_0000 | int.from_bytes(address, "big")
