"""A neighbour outside its table: a row in shared memory, and a message between workers.

Both name the interface by (queue, vid), because its index is every worker's own business.

**Rows.** 64 bytes, eight native-endian words of 64 bits: valid, queue << 32 | vid, the address (hi,
lo), the MAC address, when it was confirmed (ms), and two that are 0. A worker may be killed between
any two stores, so ``valid`` is cleared before the others change and set after them: what is left is
the old row, none, or the new one. This room is not compiled on purpose: each store is a call of the
interpreter, which a C compiler neither drops nor moves before another one.

**Messages.** 34 bytes in network order: kind, sender, vid, queue, hi, lo, MAC address (zero: none),
age in ms of the confirmation.

* ASK   to worker 0: who has this address? With a MAC address: is it still this one?
* TELL  from worker 0: this MAC address was confirmed so long ago
* KEEP  to worker 0: a conn's ACKs confirmed this MAC address so long ago
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tunlb.netif import Netif

ROW_SIZE = 64  #: bytes

ASK = 1
TELL = 2
KEEP = 3
KINDS = range(ASK, KEEP + 1)  #: the first bytes that are ours

_WORDS = ROW_SIZE // 8
_VALID = 1
_MASK32 = 0xFFFF_FFFF
_MASK64 = 0xFFFF_FFFF_FFFF_FFFF
_MESSAGE = struct.Struct(">BBHIQQ6sI")


class Message(NamedTuple):
    kind: int
    sender: int  #: the worker that said it
    vid: int
    queue: int
    hi: int
    lo: int
    mac: bytes  #: b"" in an ASK that knows none
    age: int


def pack(kind: int, sender: int, netif: Netif, hi: int, lo: int, mac: bytes, age: int) -> bytes:
    age = min(max(age, 0), _MASK32)
    return _MESSAGE.pack(kind, sender, netif.vid, netif.queue, hi, lo, mac, age)


def parse(data: bytes) -> Message | None:
    """The message, or None when it is none of ours."""
    if len(data) != _MESSAGE.size or data[0] not in KINDS:
        return None
    message = Message._make(_MESSAGE.unpack(data))
    if any(message.mac):
        return message
    return message._replace(mac=b"") if message.kind == ASK else None


class Row(NamedTuple):
    queue: int
    vid: int
    hi: int
    lo: int
    mac: bytes
    confirmed: int


class NeighRows:
    """Rows by index over ``memory`` (a whole number of rows, writable; zeroed by its maker)."""

    def __init__(self, memory: memoryview | bytearray) -> None:
        self.words = memoryview(memory).cast("B").cast("Q")

    def __len__(self) -> int:
        return len(self.words) // _WORDS

    def write(self, index: int, netif: Netif, hi: int, lo: int, mac: bytes, confirmed: int) -> None:
        """Make the row of ``index`` this neighbour's; ``confirmed`` -1 for never."""
        words = self.words
        at = index * _WORDS
        key = (netif.queue << 32 | netif.vid, hi, lo, int.from_bytes(mac, "big"))
        confirmed &= _MASK64
        if words[at] == _VALID and all(words[at + 1 + i] == key[i] for i in range(4)):
            words[at + 5] = confirmed  # one store: the row is never without its neighbour
            return
        words[at] = 0
        words[at + 1], words[at + 2], words[at + 3], words[at + 4] = key
        words[at + 5] = confirmed
        words[at] = _VALID

    def clear(self, index: int) -> None:
        self.words[index * _WORDS] = 0

    def read(self) -> list[Row]:
        """Every valid row, the one confirmed last first; whether it makes sense is not looked at
        here, but that its MAC address has 48 bits.
        """
        words = self.words
        found = []
        for at in range(0, len(words), _WORDS):
            if words[at] != _VALID or words[at + 4] >> 48:
                continue
            confirmed = words[at + 5]
            if confirmed >> 63:
                confirmed = -1
            queue, vid = words[at + 1] >> 32, words[at + 1] & _MASK32
            mac = words[at + 4].to_bytes(6, "big")
            found.append(Row(queue, vid, words[at + 2], words[at + 3], mac, confirmed))
        return sorted(found, key=lambda row: row.confirmed, reverse=True)
