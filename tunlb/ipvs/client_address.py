"""How a dest learns the client's address, where it sees one of ours as its peer (`client_ip`).

- TOA (DPVS: tcp_in_add_toa): a TCP option in every segment until the dest has answered one, so that
  the segment with which its kernel opens the connection has it, whichever that is. That it is open
  only the dest can show: a client could claim it too early, and then tell a lie of its own.
- PROXY (HAProxy's protocol): a header before the client's first byte. It travels in the client's
  own segment with that sequence number: the ACK of the handshake, as a rule. So a server that waits
  for the header before it speaks (SMTP, MySQL) has it at once, and what makes a client repeat a
  lost segment makes the header come again. DPVS waits for the first payload, which never comes if
  the client waits for the server.
- PROXY for UDP: the header before the payload of the first datagram, or of every one.

TCP numbers are kept right by sequence.py. What is done when is in the bits of X_STATE.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.ipvs.conn import B_AF, D_PORTS, H_FLAGS, H_MTU, SEQUENCE, SYNPROXY, ConnTable
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.sequence import (
    ACKED,
    AHEAD,
    EVERY,
    KEEP,
    PROXY_V1,
    PROXY_V2,
    READY,
    SENT,
    SPOKEN,
    TOA,
    X_FIRST_ACK,
    X_SENT_AT,
    X_SHIFT,
    X_STATE,
    X_STEP,
    X_STEP_AT,
    X_SYN,
)
from tunlb.ipvs.synsegments import X_CLOCK
from tunlb.outbox import Sender
from tunlb.packet import IPPROTO_TCP, Packet
from tunlb.wire.icmp import ERR_TOO_BIG

if cython.compiled:
    from cython.cimports.tunlb.ipvs import proxy_header, sequence, tcp_edits
    from cython.cimports.tunlb.wire import checksum, icmp, splice, tcp
else:
    from tunlb.ipvs import proxy_header, sequence, tcp_edits
    from tunlb.wire import checksum, icmp, splice, tcp

RESEND_MS = 200  #: a client that repeats its first segment after this long has not been heard
TOA_KIND = 254
FAST_OPEN_KIND = 34  #: RFC 7413

_TCP = cython.declare(cython.int, IPPROTO_TCP)
_TOA = cython.declare(cython.uint, TOA)
_PROXY = cython.declare(cython.uint, PROXY_V1 | PROXY_V2)
_PROXY_V1 = cython.declare(cython.uint, PROXY_V1)
_TOLD = cython.declare(cython.uint, TOA | PROXY_V1 | PROXY_V2)
_EVERY = cython.declare(cython.uint, EVERY)
_READY = cython.declare(cython.uint, READY)
_SENT = cython.declare(cython.uint, SENT)
_ACKED = cython.declare(cython.uint, ACKED)
_AHEAD = cython.declare(cython.uint, AHEAD)
_KEEP = cython.declare(cython.uint, KEEP)
_SPOKEN = cython.declare(cython.uint, SPOKEN)
_SEQUENCE = cython.declare(cython.int, SEQUENCE)
_SYNPROXY = cython.declare(cython.int, SYNPROXY)
_RESEND_MS = cython.declare(cython.longlong, RESEND_MS)
_TOA_KIND = cython.declare(cython.int, TOA_KIND)
_FAST_OPEN_KIND = cython.declare(cython.int, FAST_OPEN_KIND)
_ERR_MTU = cython.declare(cython.int, ERR_TOO_BIG)
_NO_ROOM = cython.declare(cython.int, DropReason.PROXY_NO_ROOM)
_TOA_SENT = cython.declare(cython.int, Event.TOA_SENT)
_TOA_OMITTED = cython.declare(cython.int, Event.TOA_OMITTED)
_PROXY_SENT = cython.declare(cython.int, Event.PROXY_SENT)
_PROXY_ALONE = cython.declare(cython.int, Event.PROXY_ALONE)
_HALF = cython.declare(cython.longlong, 0x8000_0000)
_MASK32 = cython.declare(cython.longlong, 0xFFFFFFFF)

# Words of a row, see ipvs/conn.py, and of its extra, see ipvs/sequence.py.
_B_AF = cython.declare(cython.longlong, B_AF)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_H_MTU = cython.declare(cython.longlong, H_MTU)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_X_STATE = cython.declare(cython.longlong, X_STATE)
_X_SHIFT = cython.declare(cython.longlong, X_SHIFT)
_X_STEP = cython.declare(cython.longlong, X_STEP)
_X_STEP_AT = cython.declare(cython.longlong, X_STEP_AT)
_X_SYN = cython.declare(cython.longlong, X_SYN)
_X_FIRST_ACK = cython.declare(cython.longlong, X_FIRST_ACK)
_X_SENT_AT = cython.declare(cython.longlong, X_SENT_AT)
_X_CLOCK = cython.declare(cython.longlong, X_CLOCK)


def how(client_ip: str, udp: str) -> int:
    """The words of the configuration as :func:`arm` takes them."""
    bits = {"none": 0, "toa": TOA, "proxy-v1": PROXY_V1, "proxy-v2": PROXY_V2}[client_ip]
    return bits | EVERY if bits and udp == "every" else bits


def arm(conns: ConnTable, row: cython.longlong, what: cython.int) -> None:
    """The new conn's dest is to be told: ``what`` is TOA, PROXY_V1 or PROXY_V2, the last for UDP
    perhaps with EVERY. Call it before the first packet.
    """
    sequence.start(conns, row)
    if what & _PROXY:
        sequence.inserted(conns, row, len(_header(conns, row, what)))
    conns.x[row * 16 + _X_STATE] |= what


def _header(conns: ConnTable, row: cython.longlong, state: cython.uint) -> bytes:
    return proxy_header.build(conns, row, 1 if state & _PROXY_V1 else 2)


class ClientAddress:
    """What Transmit asks for packets of rows with SEQUENCE, before they are rewritten.

    ``sender`` sends a PROXY header that does not fit before the payload that it belongs to.
    """

    def __init__(self, counters: Counters, sender: Sender) -> None:
        self.counters = counters
        self.sender = sender

    def inbound(
        self, pkt: Packet, conns: ConnTable, row: cython.longlong, dest: Dest, now: cython.longlong
    ) -> cython.int:
        """From the client: 0, or the DropReason, perhaps with an ICMP error on the packet."""
        x = conns.x
        at: cython.longlong = row * 16
        state: cython.uint = x[at + _X_STATE]
        if pkt.proto != _TCP:
            return self._datagram(pkt, conns, row, state) if state & _PROXY else 0
        if not state & _TOLD or (state & _ACKED and not pkt.tcp_flags & 0x02):
            sequence.inbound(pkt, conns, row)
            return 0
        if pkt.tcp_flags & 0x02:
            x[at + _X_SYN] = pkt.be32(pkt.l4 + 4)
            tcp_edits.cut_payload(pkt)
            if state & _TOA:
                tcp_edits.blank(pkt, _TOA_KIND)
                # With its cookie a kernel opens the connection now, and looks for no option later.
                tcp_edits.blank(pkt, _FAST_OPEN_KIND)
            return 0
        if state & _TOA:
            self._carry(pkt, conns, row, state)
            return 0
        if (
            state & _READY
            and not pkt.tcp_flags & 0x04
            and pkt.be32(pkt.l4 + 4) == x[at + _X_STEP_AT]
        ):
            self._first(pkt, conns, row, dest, now)
        else:
            sequence.inbound(pkt, conns, row)
        return 0

    def outbound(
        self, pkt: Packet, conns: ConnTable, row: cython.longlong, dest: Dest, now: cython.longlong
    ) -> cython.int:
        """From the dest: 0, or the DropReason."""
        x = conns.x
        at: cython.longlong = row * 16
        state: cython.uint = x[at + _X_STATE]
        if pkt.proto != _TCP:
            return 0
        if state & _TOLD and pkt.tcp_flags & 0x10:
            if pkt.tcp_flags & 0x02:
                self._answered(pkt, conns, row, state)
            elif pkt.tcp_flags & 0x04:
                if state & _PROXY and _refuses(pkt, conns, row):
                    return 0
            elif state & _TOA:
                if state & _READY:
                    _listen(pkt, conns, row)
            elif state & (_SENT | _ACKED) == _SENT:
                if sequence.acknowledged(conns, row, pkt.be32(pkt.l4 + 8)):
                    x[at + _X_STATE] |= _ACKED
                elif state & _AHEAD:
                    self._missed(pkt, conns, row, dest, now)
        sequence.outbound(pkt, conns, row)
        return 0

    # -- the handshake

    def _answered(
        self, pkt: Packet, conns: ConnTable, row: cython.longlong, state: cython.uint
    ) -> None:
        """The dest's SYN-ACK tells both initial numbers. One that answers another SYN than the last
        one did opens a new connection on the same ports, which is told anew. One that answers the
        same SYN has another number of its own where the dest uses SYN cookies.
        """
        x = conns.x
        at: cython.longlong = row * 16
        ack: cython.longlong = pkt.be32(pkt.l4 + 8)
        syn: cython.longlong = x[at + _X_SYN]
        if ack == (syn + 1) & _MASK32:
            first: cython.longlong = pkt.be32(pkt.l4 + 4)
            first = (first + 1 + x[at + _X_SHIFT]) & _MASK32
            if state & _READY and ack == x[at + _X_STEP_AT]:
                x[at + _X_FIRST_ACK] = first
            else:
                sequence.ready(conns, row, ack, first)
        if state & _TOA:
            tcp_edits.lower_mss(pkt, 8 if conns.b[row * 128 + _B_AF] == 4 else 20)
        else:
            tcp_edits.lower_window(pkt, x[at + _X_STEP])

    # -- TOA

    def _carry(
        self, pkt: Packet, conns: ConnTable, row: cython.longlong, state: cython.uint
    ) -> None:
        """A segment that is no SYN, of a client whose dest may not have opened the connection."""
        at: cython.longlong = row * 16
        sequence.inbound(pkt, conns, row)
        if pkt.tcp_flags & 0x04:
            return
        if not state & _READY or not pkt.tcp_flags & 0x10:
            tcp_edits.blank(pkt, _TOA_KIND)
            return
        # In the client's own count, as X_FIRST_ACK is.
        ack: cython.longlong = pkt.be32(pkt.l4 + 8)
        ack = (ack + conns.x[at + _X_SHIFT]) & _MASK32
        if state & _SPOKEN and ack != conns.x[at + _X_FIRST_ACK]:
            _told(conns, row)
        else:
            self._put_option(pkt, conns, row)

    def _put_option(self, pkt: Packet, conns: ConnTable, row: cython.longlong) -> None:
        """TOA right behind the fixed header. A client's own is taken out, and where options leave
        no room all but timestamps are: a client cannot hide or lie by filling them.
        """
        tcp_edits.blank(pkt, _TOA_KIND)
        p = pkt.p
        begin: cython.int = pkt.l4 + 20
        length: cython.int = (p[pkt.l4 + 12] >> 4) * 4 - 20
        option: bytes = proxy_header.toa(conns, row)
        gone: cython.int = 0
        if length + len(option) > 40:
            gone = length
            stamps: cython.int = sequence.find_option(pkt, 8)
            if stamps != 0 and p[stamps + 1] == 10:
                option += b"\1\1" + bytes(pkt.mem[stamps : stamps + 10])
        n: cython.int = len(option) - gone
        if n > 0:
            over: cython.int = pkt.wire_length() + n - conns.h[row * 64 + _H_MTU]
            if (over > 0 and pkt.gso_size <= over) or not splice.grows(pkt, n):
                self.counters.add(_TOA_OMITTED, 1)
                return
            if over > 0:
                pkt.gso_size -= over
        splice.replace(pkt, begin, gone, option)
        tcp_edits.put_flags(pkt, 20 + length + n, pkt.tcp_flags)
        self.counters.add(_TOA_SENT, 1)

    # -- PROXY, TCP

    def _first(
        self, pkt: Packet, conns: ConnTable, row: cython.longlong, dest: Dest, now: cython.longlong
    ) -> None:
        """A segment that starts at the client's first byte, while the dest has not acknowledged
        the header.
        """
        p = pkt.p
        x = conns.x
        at: cython.longlong = row * 16
        state: cython.uint = x[at + _X_STATE]
        length: cython.int = (p[pkt.l4 + 12] >> 4) * 4
        taken: cython.bint = pkt.end - pkt.l4 > length or pkt.tcp_flags & 0x01 != 0
        if taken and state & _SENT and ((now - x[at + _X_SENT_AT]) & _MASK32) < _RESEND_MS:
            # The header has just left, in the ACK before. If it got lost, the dest will say what it
            # waits for (_missed), or the client repeats this.
            window: cython.uint = pkt.be16(pkt.l4 + 14)
            x[at + _X_STATE] = (state & 0xFFFF) | _AHEAD | (window << 16)
            sequence.inbound(pkt, conns, row)
            return
        header: bytes = _header(conns, row, state)
        n: cython.int = len(header)
        fits: cython.bint = splice.grows(pkt, n) and (
            pkt.gso_type != 0 or pkt.end - pkt.l3 + n <= conns.h[row * 64 + _H_MTU]
        )
        x[at + _X_SENT_AT] = now & _MASK32
        if fits:
            sequence.inbound(pkt, conns, row)
            tcp_edits.put_seq(pkt, x[at + _X_STEP_AT])
            # The kernel cuts an offloaded frame anew, at gso_size: it only has more to cut.
            splice.replace(pkt, pkt.l4 + length, 0, header)
            tcp_edits.put_flags(pkt, length, pkt.tcp_flags | 0x08)
            if pkt.tcp_flags & 0x20:
                tcp_edits.move_urgent(pkt, n)
            x[at + _X_STATE] |= _SENT
            self.counters.add(_PROXY_SENT, 1)
            return
        x[at + _X_STATE] |= _SENT
        sequence.inbound(pkt, conns, row)
        self._alone(
            pkt, conns, row, dest, header, pkt.be32(pkt.l4 + 8), pkt.be16(pkt.l4 + 14), 0, now
        )

    def _missed(
        self, pkt: Packet, conns: ConnTable, row: cython.longlong, dest: Dest, now: cython.longlong
    ) -> None:
        """The dest acknowledges no more than the handshake although data went ahead of the header:
        send it again, once for each time that data does.
        """
        p = pkt.p
        x = conns.x
        at: cython.longlong = row * 16
        state: cython.uint = x[at + _X_STATE]
        header: cython.int = (p[pkt.l4 + 12] >> 4) * 4
        if (
            pkt.tcp_flags & 0x07
            or pkt.end - pkt.l4 > header
            or pkt.be32(pkt.l4 + 8) != x[at + _X_STEP_AT]
        ):
            return
        x[at + _X_STATE] = state & 0xFFFF & ~_AHEAD
        x[at + _X_SENT_AT] = now & _MASK32
        # Acknowledges what the client's ACK of the handshake did: what else it has is unknown here.
        ack: cython.longlong = x[at + _X_FIRST_ACK]
        ack = (ack - x[at + _X_SHIFT]) & _MASK32
        self._alone(pkt, conns, row, dest, _header(conns, row, state), ack, state >> 16, 1, now)

    def _alone(
        self,
        pkt: Packet,
        conns: ConnTable,
        row: cython.longlong,
        dest: Dest,
        header: bytes,
        ack: cython.uint,
        window: cython.int,
        echo: cython.int,
        now: cython.longlong,
    ) -> None:
        """The header in a segment of ours, with the timestamps of ``pkt``, whose place it takes in
        the client's stream or (``echo``) which asks for it.
        """
        out: Packet = self.sender.fresh(pkt.iif)
        q = conns.q
        key: cython.longlong = row * 16 + 4
        out.af = dest.af
        out.saddr_hi = q[key + 2]
        out.saddr = q[key + 3]
        out.daddr_hi = q[key]
        out.daddr = q[key + 1]
        ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1]
        out.sport = ports & 0xFFFF
        out.dport = ports >> 16
        stamps: cython.int = sequence.find_option(pkt, 8)
        if stamps != 0 and pkt.p[stamps + 1] != 10:
            stamps = 0
        options: cython.int = 12 if stamps != 0 else 0
        tcp.build(out, conns.x[row * 16 + _X_STEP_AT], ack, 0x18, window, options, len(header))
        if stamps != 0:
            value: cython.longlong = pkt.be32(stamps + 2)
            heard: cython.longlong = pkt.be32(stamps + 6)
            if echo:
                # The dest's own, as the SYN proxy has just made the client's of it.
                if conns.h[row * 64 + _H_FLAGS] & _SYNPROXY:
                    value += conns.x[row * 16 + _X_CLOCK]
                value, heard = heard, value
            out.put32(out.l4 + 20, 0x0101080A)
            out.put32(out.l4 + 24, value & _MASK32)
            out.put32(out.l4 + 28, heard & _MASK32)
        out.mem[out.l4 + 20 + options : out.end] = header
        tcp.seal(out)
        if self.sender.send(out, now):
            self.counters.add(_PROXY_ALONE, 1)

    # -- PROXY, UDP

    def _datagram(
        self, pkt: Packet, conns: ConnTable, row: cython.longlong, state: cython.uint
    ) -> cython.int:
        header: bytes = _header(conns, row, state)
        n: cython.int = len(header)
        mtu: cython.int = conns.h[row * 64 + _H_MTU]
        if pkt.end - pkt.l3 + n > mtu or not splice.grows(pkt, n):
            icmp.refuse(pkt, _NO_ROOM, _ERR_MTU, mtu - n)
            return _NO_ROOM
        splice.replace(pkt, pkt.l4 + 8, 0, header)
        if not state & _EVERY:
            _told(conns, row)
        self.counters.add(_PROXY_SENT, 1)
        return 0


def quoted(
    pkt: Packet,
    conns: ConnTable,
    row: cython.longlong,
    direction: cython.int,
    l4: cython.int,
    proto: cython.int,
) -> None:
    """An ICMP error that travels in ``direction`` quotes, at ``l4``, what we wrote: as its sender
    wrote it. What a path takes is less for who does not know what we add.
    """
    x = conns.x
    at: cython.longlong = row * 16
    state: cython.uint = x[at + _X_STATE]
    if proto == _TCP:
        number: cython.uint = pkt.be32(l4 + 4)
        if direction == 0:
            number = (number - x[at + _X_SHIFT]) & _MASK32
        else:
            number = sequence.to_client(conns, row, number)
        change: cython.uint = sequence.exchange32(pkt, l4 + 4, number)
        if l4 + 18 <= pkt.end:
            pkt.put16(l4 + 16, checksum.update(pkt.be16(l4 + 16), change))
    if direction == 0:
        return
    added: cython.int = 0
    if state & _TOA:
        added = 8 if conns.b[row * 128 + _B_AF] == 4 else 20
    elif proto != _TCP and state & _PROXY:
        added = len(_header(conns, row, state))
    mtu: cython.int
    if pkt.af == 4:
        mtu = pkt.be16(pkt.l4 + 6)
        if pkt.be16(pkt.l4) == 0x0304 and mtu >= 68 + added:
            pkt.put16(pkt.l4 + 6, mtu - added)
    else:
        mtu = min(pkt.be32(pkt.l4 + 4), 65535)
        if pkt.be16(pkt.l4) == 0x0200 and mtu >= 1280 + added:
            pkt.put32(pkt.l4 + 4, mtu - added)


def pieces(pkt: Packet, conns: ConnTable, row: cython.longlong) -> list[bytes]:
    """Cut an offloaded frame of datagrams down to its first one. The payloads of the others: each,
    or all of them where none gets a header.
    """
    begin: cython.int = pkt.l4 + 8
    size: cython.int = pkt.gso_size
    rest: bytes = bytes(pkt.mem[min(begin + size, pkt.end) : pkt.end])
    if rest:
        splice.replace(pkt, begin + size, len(rest), b"")
    pkt.gso_type = 0
    pkt.gso_size = 0
    if not rest:
        return []
    if not conns.x[row * 16 + _X_STATE] & _EVERY:
        return [rest]
    return [rest[at : at + size] for at in range(0, len(rest), size)]


def _told(conns: ConnTable, row: cython.longlong) -> None:
    """The dest knows: from here on the conn pays nothing for it."""
    conns.x[row * 16 + _X_STATE] &= ~_TOLD
    if not conns.x[row * 16 + _X_STATE] & _KEEP:
        conns.h[row * 64 + _H_FLAGS] &= 0xFFFF ^ _SEQUENCE


def again(conns: ConnTable, row: cython.longlong, what: cython.int) -> None:
    """A SYN on a conn whose dest was told, and may have forgotten the connection that we still
    have: then the next one is to be told, too. ``what`` is as for :func:`arm`.
    """
    x = conns.x
    at: cython.longlong = row * 16
    if not what & _TOA:
        return
    if not conns.h[row * 64 + _H_FLAGS] & _SEQUENCE:
        sequence.start(conns, row)
    if not x[at + _X_STATE] & _TOA:
        x[at + _X_STATE] = (x[at + _X_STATE] & ~_READY) | _TOA


def _listen(pkt: Packet, conns: ConnTable, row: cython.longlong) -> None:
    """Does what the dest sends, neither SYN nor RST, show that it has opened the connection? Data,
    FIN, or that it has taken data. An ACK of nothing may be a challenge (RFC 5961).
    """
    at: cython.longlong = row * 16
    beyond: cython.longlong = pkt.be32(pkt.l4 + 8)
    beyond = (beyond - conns.x[at + _X_STEP_AT]) & _MASK32
    header: cython.int = (pkt.p[pkt.l4 + 12] >> 4) * 4
    if 0 < beyond < _HALF:
        _told(conns, row)
    elif pkt.tcp_flags & 0x01 or pkt.end - pkt.l4 > header:
        conns.x[at + _X_STATE] |= _SPOKEN


def _refuses(pkt: Packet, conns: ConnTable, row: cython.longlong) -> cython.bint:
    """Does a RST answer a SYN on the ports of an older connection, and is counted like that SYN?"""
    at: cython.longlong = row * 16
    ack: cython.longlong = pkt.be32(pkt.l4 + 8)
    syn: cython.longlong = conns.x[at + _X_SYN]
    return ack == (syn + 1) & _MASK32 and ack != conns.x[at + _X_STEP_AT]
