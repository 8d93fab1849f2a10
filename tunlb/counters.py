"""Drop reasons, event counters and the buffer that holds them.

Every frame that tunlb does not forward ends in one :class:`DropReason` (an answer of ours that is
withheld has one of its own); everything else worth counting is an :class:`Event`, and what goes up
and down is a :class:`Gauge`. All are words of one array of unsigned 64-bit integers over a buffer
that the caller gives, so that a supervisor that shares the buffer reads them without stopping a
worker. Numbers are only ever appended: the next version goes on counting in the same array.
"""

from __future__ import annotations

from enum import IntEnum

import cython


class _Sentence(IntEnum):
    """An integer that also carries the sentence that documents it."""

    sentence: str

    def __new__(cls, value: int, sentence: str) -> _Sentence:
        member = int.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member


class DropReason(_Sentence):
    """Why a frame was not forwarded. 0 is reserved: a drop without a reason is a bug."""

    UNKNOWN = 0, "A hook dropped the packet without giving a reason."
    TRUNCATED = 1, "The frame ends before the headers that it announces."
    VNET_HEADER = (
        2,
        "The virtio-net header contradicts the frame (offsets, GSO type or segment size).",
    )
    ETHER_TYPE = 3, "Neither ARP, IPv4 nor IPv6, and no port takes it over."
    VLAN_UNKNOWN = 4, "Tagged with a VLAN that the port does not have."
    VLAN_STACK = 5, "More than one VLAN tag."
    OWN_MAC = (
        6,
        "Our own frame came back: its source is the port's MAC address (routing loop, layer a).",
    )
    LOOP = (
        7,
        "A packet that we wrote came back with its TTL lowered by one (routing loop, layer c).",
    )
    OTHERHOST = 8, "Addressed to another station's MAC address."
    IP_VERSION = 9, "The IP version field contradicts the frame's type."
    IP_HEADER = 10, "The IP header length is impossible."
    IP_CHECKSUM = 11, "The IPv4 header checksum is wrong."
    IP_LENGTH = 12, "The IP total length is shorter than the header or longer than the frame."
    IP_OPTIONS = (
        13,
        "An IPv4 source-route option, a malformed option, or too many IPv6 extension headers.",
    )
    MARTIAN = 14, "A source or destination address that must not appear on a wire."
    LAND = 15, "Source and destination are the same endpoint."
    FRAGMENT = 16, "An IP fragment; ports are unknown in all but the first."
    L4_HEADER = 17, "The TCP, UDP or ICMP header is truncated or its length field lies."
    TTL_EXCEEDED = 18, "TTL or hop limit used up; the sender gets ICMP time exceeded."
    MTU_EXCEEDED = (
        19,
        "Larger than the next link's MTU; the sender gets frag needed or packet too big.",
    )
    NO_ROUTE = 20, "No route leads to the destination; the sender gets ICMP net unreachable."
    NOT_FORWARDED = 21, "Broadcast, multicast or link-local traffic that is not forwarded."
    PORT_UNREACHABLE = 22, "Addressed to us, but no service or protocol takes it."
    TCP_NOT_SYN = 23, "A TCP segment other than a SYN to a service that knows no such conn."
    UDP_TO_TCP_VIP = 24, "A UDP datagram to a VIP that has only TCP services."
    NO_DEST = (
        25,
        "The service has no dest that may take a new conn; the sender gets port unreachable.",
    )
    CONN_TABLE_FULL = 26, "No free row, and no half-open, closing or idle UDP conn to evict."
    LPORT_EXHAUSTED = 27, "No free laddr:lport towards this dest."
    CONN_EXISTS = 28, "The new conn's tuple is taken by another conn."
    ICMP_INVALID = 29, "An ICMP message with a wrong checksum or a truncated body."
    ICMP_UNRELATED = 30, "An ICMP error about a packet that belongs to no conn."
    ICMP_IGNORED = 31, "An ICMP message for us that needs no answer."
    ARP_INVALID = 32, "A malformed ARP packet or one that claims an address of ours."
    ND_INVALID = (
        33,
        "A malformed neighbour discovery message or one that claims an address of ours.",
    )
    NEIGH_QUEUE_FULL = 34, "The queue of packets that wait for a neighbour is full."
    NEIGH_UNREACHABLE = 35, "The neighbour did not answer in time."
    NEIGH_TABLE_FULL = 36, "The neighbour table is full of neighbours that answered."
    OUTBOX_FULL = 37, "Too many frames of our own wait in this burst."
    HOOK_ERROR = 38, "A hook raised; the log has the traceback."
    HOOK_REPEAT = 39, "A hook returned REPEAT too often."
    PORT_DOWN = 40, "The outgoing device is down or gone."
    TX_BLOCKED = 41, "The outgoing device took no more frames."
    TX_REFUSED = 42, "The kernel refused the frame as malformed."
    DEST_GONE = 43, "The conn's dest was removed and its drain time is over."
    RATE_LIMITED = 44, "An answer of ours (ICMP) withheld by its rate limit."
    HANDOVER_FULL = 45, "The mailbox of the worker that owns the flow is full."
    PEERS_FULL = 46, "Too many messages for other workers wait in this burst."


class Event(_Sentence):
    """What happened, other than drops."""

    RX_FRAMES = 0, "Frames read from all ports."
    RX_BYTES = 1, "Bytes read from all ports, without the virtio-net header."
    TX_FRAMES = 2, "Frames written to all ports."
    TX_BYTES = 3, "Bytes written to all ports, without the virtio-net header."
    ARP_IN = 4, "ARP packets accepted."
    ND_IN = 5, "Neighbour solicitations and advertisements accepted."
    NEIGH_REQUESTS = 6, "ARP requests and neighbour solicitations sent."
    NEIGH_REPLIES = 7, "ARP replies and neighbour advertisements sent in answer."
    NEIGH_ANNOUNCEMENTS = 8, "Gratuitous ARPs and unsolicited neighbour advertisements sent."
    NEIGH_QUEUED = 9, "Packets that waited for a neighbour."
    ICMP_ECHO_REPLIES = 10, "Echo requests answered."
    ICMP_ERRORS_SENT = 11, "ICMP errors sent."
    ICMP_RELATED = 12, "ICMP errors translated and passed on to a conn's other side."
    CONN_NEW = 13, "Conns born."
    CONN_EXPIRED = 14, "Conns ended by their timeout."
    CONN_REUSED = 15, "Conns replaced because a new SYN reused their ports."
    CONN_EVICTED = 16, "Conns evicted because the table was full."
    LPORT_RECYCLED = 17, "Closing conns ended early because their lport was needed."
    IPVS_IN_PACKETS = 18, "Packets from clients to dests."
    IPVS_OUT_PACKETS = 19, "Packets from dests to clients."
    IPVS_IN_BYTES = 20, "IP bytes from clients to dests."
    IPVS_OUT_BYTES = 21, "IP bytes from dests to clients."
    FORWARDED = 22, "Packets routed without a service."
    HOOK_ERRORS = 23, "Exceptions raised by hooks and schedulers."
    NETIF_LOST = 24, "Times that a device vanished or failed under us."
    LOOP_REROUTED = 25, "Loops of class A: the kernel routed a packet of ours back into a TUN."
    LOOP_RETURNED = 26, "Loops of class D: another station sent a packet of ours back to us."
    HANDED_OVER = 27, "Frames handed over to the worker that owns their flow."
    HANDED_IN = 28, "Frames taken over from another worker."
    CONN_ADOPTED = 29, "Conns of a former worker that its successor went on with."


class Gauge(_Sentence):
    """What goes up and down."""

    HEARTBEAT = 0, "When the worker last let time pass, in ms of the monotonic clock."
    CONNS = 1, "Rows in use in the conn table."
    NEIGHS = 2, "Neighbours known or asked for."
    LPORT_POOLS = 3, "Pools of local ports, one for each laddr and dest endpoint."


# Room for those to come, so that a later version finds each where it was.
EVENT_BASE = 128
GAUGE_BASE = 256
SIZE = 8 * 320  #: bytes that a Counters needs

_EVENT_BASE = cython.declare(cython.int, EVENT_BASE)
_GAUGE_BASE = cython.declare(cython.int, GAUGE_BASE)


class Counters:
    """The counters of one worker.

    ``buffer`` is writable, at least :data:`SIZE` bytes, zeroed by its maker; values are
    native-endian u64.
    """

    def __init__(self, buffer: bytearray | memoryview | None = None) -> None:
        self.mem = memoryview(bytearray(SIZE) if buffer is None else buffer).cast("B").cast("Q")
        if cython.compiled:
            view: cython.ulonglong[::1] = self.mem
            self.v = cython.address(view[0])
        else:
            self.v = self.mem

    def drop(self, reason: cython.int) -> None:
        self.v[reason] += 1

    def add(self, event: cython.int, n: cython.ulonglong) -> None:
        self.v[_EVENT_BASE + event] += n

    def set(self, gauge: cython.int, value: cython.ulonglong) -> None:
        self.v[_GAUGE_BASE + gauge] = value

    def dropped(self, reason: int) -> int:
        return int(self.mem[reason])

    def event(self, event: int) -> int:
        return int(self.mem[EVENT_BASE + event])

    def gauge(self, gauge: int) -> int:
        return int(self.mem[GAUGE_BASE + gauge])

    def snapshot(self) -> dict[str, int]:
        """All counters that are not zero: ``{"drop.LOOP": 1, "RX_FRAMES": 7}``; no gauges."""
        values = {f"drop.{r.name}": self.dropped(r) for r in DropReason}
        values.update({e.name: self.event(e) for e in Event})
        return {name: value for name, value in values.items() if value}
