"""The segments that the SYN proxy itself sends, and what a row tells it to put into them."""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import B_AF, D_PORTS, ConnTable
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.sequence import X_SYNPROXY
from tunlb.ipvs.synpolicy import SynPolicy
from tunlb.netif import Netif
from tunlb.outbox import Sender
from tunlb.packet import Packet
from tunlb.wire.tcp_options import NO_WSCALE, TcpOptions

if cython.compiled:
    from cython.cimports.tunlb.ipvs import mss as clamp
    from cython.cimports.tunlb.wire import tcp, tcp_options
else:
    from tunlb.ipvs import mss as clamp
    from tunlb.wire import tcp, tcp_options

MSS_TABLE = (128, 536, 1220, 1360, 1412, 1440, 1460, 8940)  #: what a cookie can say of an MSS
MSS_V4 = 1460  #: advertised where the configuration does not say
MSS_V6 = 1440
FIRST_FLIGHT = 10  #: segments that a client may send before its dest has answered (RFC 6928)

# Words of the extra, for rows with SYNPROXY; once the dest has answered only the first three.
X_FACTS = X_SYNPROXY  #: the bits below
X_CLOCK = X_SYNPROXY + 1  #: the timestamp that we told the client; then, what the dest's is ahead
X_ISN = X_SYNPROXY + 2  #: the client's initial sequence number
X_COOKIE = X_SYNPROXY + 3  #: the one that we told it
X_TSVAL = X_SYNPROXY + 4  #: its timestamp
X_WINDOW = X_SYNPROXY + 5  #: of its ACK, scaled

# Bits of X_FACTS. The lower eight are the cookie's data: 4 bits of the client's window scale, SACK,
# and 3 bits of an index into MSS_TABLE.
SACK = 0x10
MSS_SHIFT = 5
OFFERED_SHIFT = 8  #: 4 bits: the window scale that we told the client
STAMPS = 0x1000
WAITING = 0x2000  #: the dest has not answered
RETRIES_SHIFT = 14  #: 3 bits
DEST_SHIFT = 17  #: 4 bits: the dest's window scale; 0: its windows count bytes
UNSCALED = 0x200000  #: the dest does not scale: it takes the client's windows for bytes
ANEW = 0x400000  #: the client has sent the dest itself a SYN, with X_ISN

_NO_WSCALE = cython.declare(cython.int, NO_WSCALE)
_MSS_ENTRIES = cython.declare(cython.int, len(MSS_TABLE))
_MSS_V4 = cython.declare(cython.int, MSS_V4)
_MSS_V6 = cython.declare(cython.int, MSS_V6)
_FLIGHT = cython.declare(cython.int, FIRST_FLIGHT)
_MASK32 = cython.declare(cython.longlong, 0xFFFFFFFF)
_FACTS = cython.declare(cython.longlong, X_FACTS)
_CLOCK = cython.declare(cython.longlong, X_CLOCK)
_ISN = cython.declare(cython.longlong, X_ISN)
_COOKIE = cython.declare(cython.longlong, X_COOKIE)
_TSVAL = cython.declare(cython.longlong, X_TSVAL)
_WINDOW = cython.declare(cython.longlong, X_WINDOW)
_SACK = cython.declare(cython.int, SACK)
_MSS_SHIFT = cython.declare(cython.int, MSS_SHIFT)
_STAMPS = cython.declare(cython.int, STAMPS)
_SYN = cython.declare(cython.int, 0x02)
_RST = cython.declare(cython.int, 0x04)
_ACK = cython.declare(cython.int, 0x10)

# Words of a row, see ipvs/conn.py.
_B_AF = cython.declare(cython.longlong, B_AF)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)


class SynSegments:
    """Builds and sends them by ``sender``; rows are those of ``conns``."""

    def __init__(self, conns: ConnTable, sender: Sender) -> None:
        self.conns = conns
        self.sender = sender
        # One of our own: what the client's ACK meets on its way may need the sender's.
        self.packet = Packet()
        self.mss_mem = memoryview(bytearray(2 * len(MSS_TABLE))).cast("H")
        for i, mss in enumerate(MSS_TABLE):
            self.mss_mem[i] = mss
        if cython.compiled:
            view: cython.ushort[::1] = self.mss_mem
            self.mss = cython.address(view[0])
        else:
            self.mss = self.mss_mem

    def mss_index(self, mss: cython.int) -> cython.int:
        """The largest entry of MSS_TABLE that is not larger; the first for what is smaller."""
        i: cython.int = _MSS_ENTRIES - 1
        while i > 0 and self.mss[i] > mss:
            i -= 1
        return i

    def answer(
        self,
        pkt: Packet,
        policy: SynPolicy,
        options: TcpOptions,
        cookie: cython.uint,
        clock: cython.uint,
        now: cython.longlong,
    ) -> cython.bint:
        """Turn a SYN that offered ``options`` into the SYN-ACK to it, and send it back; False when
        it was dropped.
        """
        seq: cython.longlong = pkt.be32(pkt.l4 + 4)
        turn(pkt)
        mss: cython.int = advertised(pkt, policy)
        sack: cython.bint = options.sack and policy.sack
        stamps: cython.bint = options.timestamps and policy.stamps
        wscale: cython.int = policy.wscale if options.wscale != _NO_WSCALE else _NO_WSCALE
        pkt.gso_type = 0
        tcp.build(
            pkt,
            cookie,
            (seq + 1) & _MASK32,
            _SYN | _ACK,
            min(_FLIGHT * mss, 65535),
            tcp_options.length_of(True, wscale != _NO_WSCALE, sack, stamps),
            0,
        )
        tcp_options.write(pkt, mss, wscale, sack, stamps, clock, options.tsval)
        tcp.seal(pkt)
        return self.sender.reply(pkt, now)

    def syn(self, row: cython.longlong, dest: Dest, iif: Netif, now: cython.longlong) -> None:
        """To the dest, the client's SYN as far as its cookie kept it."""
        x = self.conns.x
        at: cython.longlong = row * 16
        facts: cython.int = x[at + _FACTS]
        wscale: cython.int = facts & 15
        sack: cython.bint = (facts & _SACK) != 0
        stamps: cython.bint = (facts & _STAMPS) != 0
        window: cython.longlong = x[at + _WINDOW]
        if wscale != _NO_WSCALE:
            window <<= wscale
        pkt: Packet = self._to_dest(row, dest, iif)
        tcp.build(
            pkt,
            x[at + _ISN],
            0,
            _SYN,
            min(window, 65535),
            tcp_options.length_of(True, wscale != _NO_WSCALE, sack, stamps),
            0,
        )
        mss: cython.int = self.mss[(facts >> _MSS_SHIFT) & 7]
        tcp_options.write(pkt, mss, wscale, sack, stamps, x[at + _TSVAL], 0)
        tcp.seal(pkt)
        if dest.mss_clamp != 0:
            clamp.clamp(pkt, self.conns, row, dest.mss_clamp)
        self.sender.send(pkt, now)

    def client_ack(self, row: cython.longlong, iif: Netif) -> Packet:
        """The client's ACK of its handshake with us, made anew; not sent."""
        x = self.conns.x
        at: cython.longlong = row * 16
        pkt: Packet = self.packet
        pkt.reset(0, 0)
        pkt.iif = iif
        pkt.oif = None
        self._from_client(pkt, row)
        seq: cython.longlong = x[at + _ISN]
        ack: cython.longlong = x[at + _COOKIE]
        stamps: cython.bint = (x[at + _FACTS] & _STAMPS) != 0
        tcp.build(
            pkt,
            (seq + 1) & _MASK32,
            (ack + 1) & _MASK32,
            _ACK,
            x[at + _WINDOW],
            tcp_options.length_of(False, False, False, stamps),
            0,
        )
        tcp_options.write(pkt, 0, _NO_WSCALE, False, stamps, x[at + _TSVAL], x[at + _CLOCK])
        tcp.seal(pkt)
        return pkt

    def reset_dest(
        self,
        row: cython.longlong,
        dest: Dest,
        iif: Netif,
        seq: cython.longlong,
        now: cython.longlong,
    ) -> None:
        pkt: Packet = self._to_dest(row, dest, iif)
        tcp.build(pkt, seq & _MASK32, 0, _RST, 0, 0, 0)
        tcp.seal(pkt)
        self.sender.send(pkt, now)

    def reset_client(self, row: cython.longlong, iif: Netif, now: cython.longlong) -> None:
        """For the client of a row whose dest has not answered."""
        at: cython.longlong = row * 16
        pkt: Packet = self.sender.fresh(iif)
        self._from_client(pkt, row)
        turn(pkt)
        seq: cython.longlong = self.conns.x[at + _COOKIE]
        ack: cython.longlong = self.conns.x[at + _ISN]
        tcp.build(pkt, (seq + 1) & _MASK32, (ack + 1) & _MASK32, _RST | _ACK, 0, 0, 0)
        tcp.seal(pkt)
        self.sender.send(pkt, now)

    def reset_sender(self, pkt: Packet, now: cython.longlong) -> None:
        """For the client whose segment ``pkt`` is, as it came in."""
        seq: cython.longlong = pkt.be32(pkt.l4 + 4)
        ack: cython.uint = pkt.be32(pkt.l4 + 8)
        out: Packet = self.sender.fresh(pkt.iif)
        out.af = pkt.af
        out.saddr_hi = pkt.saddr_hi
        out.saddr = pkt.saddr
        out.daddr_hi = pkt.daddr_hi
        out.daddr = pkt.daddr
        out.sport = pkt.sport
        out.dport = pkt.dport
        turn(out)
        tcp.build(out, ack, (seq + length_of(pkt)) & _MASK32, _RST | _ACK, 0, 0, 0)
        tcp.seal(out)
        self.sender.send(out, now)

    def _to_dest(self, row: cython.longlong, dest: Dest, iif: Netif) -> Packet:
        """The sender's packet, from the client as the dest knows it."""
        q = self.conns.q
        at: cython.longlong = row * 16 + 4
        ports: cython.uint = self.conns.d[row * 32 + _D_PORTS + 1]
        pkt: Packet = self.sender.fresh(iif)
        pkt.af = dest.af
        pkt.saddr_hi = q[at + 2]
        pkt.saddr = q[at + 3]
        pkt.daddr_hi = q[at]
        pkt.daddr = q[at + 1]
        pkt.sport = ports & 0xFFFF
        pkt.dport = ports >> 16
        return pkt

    def _from_client(self, pkt: Packet, row: cython.longlong) -> None:
        """The addresses of what the client sends."""
        q = self.conns.q
        at: cython.longlong = row * 16
        ports: cython.uint = self.conns.d[row * 32 + _D_PORTS]
        pkt.af = self.conns.b[row * 128 + _B_AF]
        pkt.saddr_hi = q[at]
        pkt.saddr = q[at + 1]
        pkt.daddr_hi = q[at + 2]
        pkt.daddr = q[at + 3]
        pkt.sport = ports >> 16
        pkt.dport = ports & 0xFFFF


def turn(pkt: Packet) -> None:
    """Source and destination change places."""
    hi: cython.ulonglong = pkt.saddr_hi
    lo: cython.ulonglong = pkt.saddr
    port: cython.uint = pkt.sport
    pkt.saddr_hi = pkt.daddr_hi
    pkt.saddr = pkt.daddr
    pkt.sport = pkt.dport
    pkt.daddr_hi = hi
    pkt.daddr = lo
    pkt.dport = port


def advertised(pkt: Packet, policy: SynPolicy) -> cython.int:
    """The MSS for a client: the configured one, as far as the port that it is on takes it."""
    netif: Netif = pkt.iif
    room: cython.int = netif.mtu - (40 if pkt.af == 4 else 60)
    mss: cython.int = policy.mss
    if mss == 0:
        mss = _MSS_V4 if pkt.af == 4 else _MSS_V6
    return min(mss, room, policy.most) - policy.less


def length_of(pkt: Packet) -> cython.int:
    """Sequence numbers that a segment takes: its payload and FIN."""
    payload: cython.int = pkt.end - pkt.l4 - (pkt.p[pkt.l4 + 12] >> 4) * 4
    return payload + (pkt.tcp_flags & 1)
