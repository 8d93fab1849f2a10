"""CRC-32C (Castagnoli), and how it changes when a few bytes do (RFC 9260 appendix A, RFC 3720 B.4).

Numbers are those of the reflected algorithm: the most significant bit is x**0, and the least
significant byte is the first on the wire. A CRC is linear: two messages of n bytes that differ in
their first four have CRCs that differ by that difference, taken as a polynomial, times x**(8 * n).
So a change costs the logarithm of the length, and a CRC that was wrong stays wrong.
"""

from __future__ import annotations

import cython

from tunlb.packet import Packet

POLYNOMIAL = 0x82F63B78
ONE = 0x80000000  #: x**0


def _times(a: int, b: int) -> int:
    """The product of two polynomials, modulo POLYNOMIAL."""
    product = 0
    for bit in range(31, -1, -1):
        product ^= b if a >> bit & 1 else 0
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product


def _bytes_table() -> bytes:
    """What each byte value becomes: 256 numbers of 4 bytes, the least significant first."""
    return b"".join(_times(value, ONE >> 8).to_bytes(4, "little") for value in range(256))


def _powers_table() -> bytes:
    """A number times x**(8 * 2**k), for k from 0 to 16: what each of its 8 nibbles, the lowest
    first, adds to the product for each of 16 values. Written likewise.
    """
    power = ONE >> 8
    made = b""
    for _ in range(17):
        image = power
        images = [0] * 32  # of each bit, the highest of which is x**0
        for bit in range(31, -1, -1):
            images[bit] = image
            image = image >> 1 ^ (POLYNOMIAL if image & 1 else 0)
        for low in range(0, 32, 4):
            for nibble in range(16):
                product = 0
                for bit in range(4):
                    product ^= images[low + bit] if nibble >> bit & 1 else 0
                made += product.to_bytes(4, "little")
        power = _times(power, power)
    return made


# Bytes, because compiled code reads them without making objects of numbers.
_TABLE = cython.declare(bytes, _bytes_table())
_POWERS = cython.declare(bytes, _powers_table())


def _number(table: bytes, index: cython.Py_ssize_t) -> cython.uint:
    at: cython.Py_ssize_t = index * 4
    high: cython.uint = table[at + 3]
    return (high << 24) | (table[at + 2] << 16) | (table[at + 1] << 8) | table[at]


def add(crc: cython.uint, pkt: Packet, offset: cython.int, length: cython.int) -> cython.uint:
    """``crc`` (ALL before the first byte) after ``length`` more bytes, not complemented."""
    p = pkt.p
    i: cython.int
    for i in range(offset, offset + length):
        crc = (crc >> 8) ^ _number(_TABLE, (crc ^ p[i]) & 0xFF)
    return crc


def shifted(value: cython.uint, length: cython.int) -> cython.uint:
    """``value`` times x**(8 * length): what a difference has become ``length`` bytes later.

    ``length`` is below 2**17.
    """
    at: cython.Py_ssize_t = 0
    nibble: cython.Py_ssize_t
    product: cython.uint
    while length != 0:
        if length & 1:
            product = 0
            nibble = at
            while value != 0:
                product ^= _number(_POWERS, nibble + (value & 15))
                value >>= 4
                nibble += 16
            value = product
        length >>= 1
        at += 128
    return value
