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
    L4_HEADER = 17, "The TCP, UDP, SCTP or ICMP header is truncated or its length field lies."
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
    LPORT_EXHAUSTED = (
        27,
        "No free laddr:lport towards this dest; with snat the sender gets host unreachable.",
    )
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
    PROXY_NO_ROOM = (
        47,
        "With its PROXY header larger than the dest's MTU; the sender gets frag needed or too big.",
    )
    SYNPROXY_COOKIE = 48, "A segment of no conn to a SYN proxy, without a SYN cookie that is good."
    SYNPROXY_WAITING = (
        49,
        "A segment that has no place on a proxied conn whose dest has not answered yet.",
    )
    SYNPROXY_HELD_FULL = 50, "Too many segments are held until dests have answered."
    ACL_DENIED = 51, "The source is on the black list of the service."
    ACL_NOT_ALLOWED = 52, "The service has a white list, and the source is not on it."
    TCP_UNKNOWN_PORT = 53, "TCP to a VIP's port that no service has, with `defence_tcp`."
    CONN_RATE = 54, "The source opens more conns a second than the service's `conn_rate`."
    FRAGMENT_INVALID = (
        55,
        "A fragment too small for its headers, misaligned or beyond 65,535 bytes.",
    )
    FRAGMENT_OVERLAP = 56, "A fragment that overlaps others of its datagram, or comes twice."
    FRAGMENT_ORPHAN = 57, "A later fragment for a service, whose first one opened no conn."
    FRAGMENT_TIMEOUT = 58, "A later fragment that waited for the first in vain."
    FRAGMENT_QUEUE_FULL = 59, "Too many later fragments wait for their first ones."
    TC_QUEUE_FULL = 60, "The queue of the packet's tc class is full."
    TC_POLICED = 61, "Beyond the rate of a tc class that has no queue."
    NAT64_HEADER = (
        62,
        "An IPv6 header that IPv4 has no place for, or a packet too long for it, at a NAT64 dest.",
    )
    NAT64_NO_CHECKSUM = (
        63,
        "A datagram without a checksum that NAT64 can make none for: over IPv6, or in fragments.",
    )
    ICMP_UNTRANSLATABLE = 64, "An ICMP error that the other family has no words for."
    SCTP_NOT_INIT = 65, "An SCTP packet other than an INIT to a service that knows no such conn."
    HOST_MAC = (
        66,
        "From the host, with a source other than the port's MAC address (is its TAP on a bridge?).",
    )
    MIRROR_LOST = 67, "A copy for the host that its TAP did not take; the frame itself went on."
    ECHO_UNKNOWN = 68, "An ICMP echo reply to a service, of a ping that no conn knows."
    STANDBY = 69, "Read from a device of a bond that is not its active one."
    TUNNEL_LOOP = 70, "The far end of a tunnel is an address of ours: wrapping would loop."
    TUNNEL_SOURCE = 71, "No address of ours can be the source of a tunnel's outer header."
    SEGMENTS = (
        72,
        "A frame that cannot be cut for a tunnel: too many or too odd segments or fragments.",
    )
    TUNNEL_ERROR = (
        73,
        "An ICMP error about a tunnel's outer packet; the client is told if it quotes enough.",
    )
    SERVICE_FULL = (
        74,
        "The service carries its max_conn conns; the sender gets port unreachable.",
    )
    CONN_LAPSED = (
        75,
        "The conn's dest was removed or made quiescent, and the service ends its conns then.",
    )


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
    LPORT_RECYCLED = 17, "Closing or idle conns ended early because their lport was needed."
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
    TOA_SENT = 30, "Segments that told the client's address by TOA."
    TOA_OMITTED = 31, "Segments without TOA, because it did not fit the path's MTU."
    PROXY_SENT = 32, "PROXY headers put before the first bytes of a client, repeated ones included."
    PROXY_ALONE = 33, "PROXY headers sent in a segment of their own."
    PROXY_PIECES = (
        34,
        "Frames of datagrams cut in software, so that a PROXY header can stand between.",
    )
    SYNPROXY_SYNACKS = 35, "SYNs answered with a SYN cookie."
    SYNPROXY_CONNS = 36, "Conns born by a SYN cookie that came back."
    SYNPROXY_OPENED = 37, "Proxied conns whose dest answered."
    SYNPROXY_RETRIES = 38, "SYNs of the SYN proxy repeated to a dest."
    SYNPROXY_REFUSED = 39, "Clients of the SYN proxy reset: their dest refused or did not answer."
    SYNPROXY_ABORTED = 40, "Clients of the SYN proxy that gave up before their dest answered."
    SYNPROXY_HELD = 41, "Segments held until a dest had answered."
    SYNPROXY_ON = 42, "Times that too many half-open conns made a service's SYN proxy start."
    FRAGMENT_FIRST = 43, "First fragments whose ports are remembered."
    FRAGMENT_LATER = 44, "Later fragments that went the way of their first one."
    FRAGMENT_HELD = 45, "Later fragments that had to wait for their first one."
    FRAGMENT_EVICTED = 46, "Datagrams forgotten, before they were whole, to make room for others."
    RATE_EVICTED = 47, "Sources whose conn rate was forgotten to make room for others."
    TC_QUEUED = 48, "Packets that waited in the queue of a tc class."
    NAT64_PACKETS = 49, "Packets translated from one IP version to the other."
    NAT64_CHECKSUMS = 50, "UDP datagrams of no checksum that got the one that IPv6 wants."
    HOST_IN = 51, "Frames that tunlb does not handle, passed to the host."
    HOST_OUT = 52, "Frames of the host, written to its port."
    HOST_MIRRORED = 53, "Copies of received frames for the host."
    CONN_BYPASSED = 54, "Conns born to their original destination: no dest may take them."
    CONN_RESUMED = 55, "Conns of another director that the fallback of a service went on with."
    SEGMENTS_CUT = 56, "Segments cut from offloaded frames for a tunnel."
    TUNNEL_PMTU = 57, "Path MTUs of tunnels lowered by ICMP errors."
    TUNNEL_PMTU_EXPIRED = 58, "Path MTUs of tunnels forgotten after their time."
    MSS_CLAMPED = 59, "SYNs whose MSS option was lowered."
    OPS_PACKETS = 60, "Datagrams scheduled one by one, without a conn."
    TEMPLATE_NEW = 61, "Persistence templates made."
    TEMPLATE_MOVED = 62, "Persistence templates given another dest, because theirs was gone."
    TEMPLATE_EXPIRED = 63, "Persistence templates ended by their timeout."
    TEMPLATE_ASKED = 64, "New conns for whose template another worker was asked."
    CONN_RESET = 65, "Conns of which both sides were sent a RST."
    RESETS_SENT = 66, "RSTs sent."
    CONN_ENDED = (
        67,
        "Conns ended because their dest was removed or made quiescent, or their laddr removed.",
    )
    FRAGMENTS_CUT = 68, "Fragments cut from packets without DF that are too large for a tunnel."
    NAT64_CUT = 69, "Packets over IPv4 that NAT64 cut, because IPv6 takes no such long ones."
    OPS_ANSWERS = 70, "Answers to datagrams of OPS_PACKETS, led back through nat."


class Gauge(_Sentence):
    """What goes up and down."""

    HEARTBEAT = 0, "When the worker last let time pass, in ms of the monotonic clock."
    CONNS = 1, "Rows in use in the conn table."
    NEIGHS = 2, "Neighbours known or asked for."
    LPORT_POOLS = 3, "Pools of local ports, one for each laddr and dest endpoint."
    SYNPROXY_HELD = 4, "Segments that the SYN proxy holds."
    TEMPLATES = 5, "Persistence templates, which are among the rows in use."
    RAMPS = 6, "Dests whose weight still grows after their start."
    FRAGMENTS_WAITING = 7, "Later fragments that wait for their first ones."
    TC_WAITING = 8, "Packets in the queues of tc classes."


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
