"""The other end of a tunnel: an eBPF program that takes what a device receives out of it.

Not every kernel has tunnel devices, and a program in user space would be the limit of what is
measured. This one stands at the device's ingress (tcx): it cuts the outer header off, and the inner
packet goes on as if it had come so. A partial checksum survives, because the kernel keeps where
that begins by its place in memory. Checksums of the outer headers are not looked at.

Not a tunnel of ours, cut short, or a fragment: it passes as it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Final

from tunlb.bench.samples import BenchError
from tunlb.bpf import (
    BPF_ADD,
    BPF_AND,
    BPF_B,
    BPF_CALL,
    BPF_FUNC_SKB_ADJUST_ROOM,
    BPF_H,
    BPF_JEQ,
    BPF_JMP,
    BPF_JNE,
    BPF_LSH,
    BPF_MOV,
    BPF_PROG_TYPE_SCHED_CLS,
    BPF_SUB,
    ETH_P_IP,
    ETH_P_IPV6,
    ETHER_LEN,
    ETHER_TYPE,
    FRAGMENT_BITS,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    R9,
    UDP,
    Assembler,
    Bpf,
    BpfError,
)
from tunlb.lab.host import Host
from tunlb.wire.encap import GUE_HEADERS, IPPROTO_GRE, IPPROTO_IPIP, IPPROTO_IPV6

# linux/bpf.h
BPF_ADJ_ROOM_MAC: Final = 1
BPF_F_ADJ_ROOM_DECAP_L3_IPV4: Final = 1 << 7
BPF_F_ADJ_ROOM_DECAP_L3_IPV6: Final = 1 << 8
TCX_PASS: Final = 0

_IPV6_HEADER: Final = 40
_NAME: Final = b"tunlb_decap"


def assemble(gue_port: int) -> bytes:
    """The program. A load beyond the end of a frame ends it with 0, which is TCX_PASS.

    Registers: R6 the frame; R7 where the outer header ends, as far as it is known; R8 which
    protocol is there, later the inner one; R9 what has to outlive a load.
    """
    a = Assembler()
    a.move(R6, R1)  # where LD_ABS and LD_IND look for the frame
    a.frame(BPF_H, ETHER_TYPE)
    a.jump("outer ipv4", BPF_JEQ, R0, ETH_P_IP)
    a.jump("outer ipv6", BPF_JEQ, R0, ETH_P_IPV6)
    a.jump("pass")
    _outer(a)
    a.label("protocol")
    a.jump("ipv4", BPF_JEQ, R8, IPPROTO_IPIP)
    a.jump("ipv6", BPF_JEQ, R8, IPPROTO_IPV6)
    a.jump("gre", BPF_JEQ, R8, IPPROTO_GRE)
    a.jump("pass", BPF_JNE, R8, UDP)
    _gue(a, gue_port)
    _gre(a)
    a.label("ipv4")
    a.op(BPF_MOV, R4, BPF_F_ADJ_ROOM_DECAP_L3_IPV4)
    a.jump("strip")
    a.label("ipv6")
    a.op(BPF_MOV, R4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6)
    a.label("strip")
    a.move(R1, R6)
    a.op(BPF_MOV, R2, ETHER_LEN)
    a.op_register(BPF_SUB, R2, R7)  # so many bytes less, behind the Ethernet header
    a.op(BPF_MOV, R3, BPF_ADJ_ROOM_MAC)
    a.emit(BPF_JMP | BPF_CALL, imm=BPF_FUNC_SKB_ADJUST_ROOM)
    a.label("pass")
    a.op(BPF_MOV, R0, TCX_PASS)
    a.finish()
    return a.program()


def _outer(a: Assembler) -> None:
    """R7 = the end of the outer IP header, R8 = its protocol (RFC 791, RFC 8200)."""
    a.label("outer ipv4")
    a.frame(BPF_H, ETHER_LEN + 6)
    a.op(BPF_AND, R0, FRAGMENT_BITS)
    a.jump("pass", BPF_JNE, R0, 0)
    a.frame(BPF_B, ETHER_LEN + 9)
    a.move(R8, R0)
    a.frame(BPF_B, ETHER_LEN)
    a.op(BPF_AND, R0, 0x0F)
    a.op(BPF_LSH, R0, 2)
    a.op(BPF_ADD, R0, ETHER_LEN)
    a.move(R7, R0)
    a.jump("protocol")
    a.label("outer ipv6")
    a.frame(BPF_B, ETHER_LEN + 6)
    a.move(R8, R0)
    a.op(BPF_MOV, R7, ETHER_LEN + _IPV6_HEADER)


def _gue(a: Assembler, port: int) -> None:
    """Variant 0 and data, with whatever optional fields its length has room for."""
    a.frame(BPF_H, 2, R7)
    a.jump("pass", BPF_JNE, R0, port)
    a.frame(BPF_B, 9, R7)
    a.move(R8, R0)
    a.frame(BPF_B, 8, R7)
    a.move(R9, R0)
    a.op(BPF_AND, R0, 0xE0)
    a.jump("pass", BPF_JNE, R0, 0)
    a.op(BPF_AND, R9, 0x1F)
    a.op(BPF_LSH, R9, 2)
    a.op_register(BPF_ADD, R7, R9)
    a.op(BPF_ADD, R7, GUE_HEADERS)
    a.jump("ipv4", BPF_JEQ, R8, IPPROTO_IPIP)
    a.jump("ipv6", BPF_JEQ, R8, IPPROTO_IPV6)
    a.jump("pass")


def _gre(a: Assembler) -> None:
    """With or without a checksum, and nothing else (RFC 2784)."""
    a.label("gre")
    a.frame(BPF_H, 2, R7)
    a.move(R8, R0)
    a.frame(BPF_H, 0, R7)
    a.op(BPF_ADD, R7, 4)
    a.jump("gre without a checksum", BPF_JEQ, R0, 0)
    a.jump("pass", BPF_JNE, R0, 0x8000)
    a.op(BPF_ADD, R7, 4)
    a.label("gre without a checksum")
    a.jump("ipv4", BPF_JEQ, R8, ETH_P_IP)
    a.jump("pass", BPF_JNE, R8, ETH_P_IPV6)
    a.jump("ipv6")


@contextlib.contextmanager
def decapsulating(host: Host, device: str, gue_port: int) -> Iterator[None]:
    """A device of a host takes tunnels off for the length of the block.

    Raises:
        BenchError: the kernel does not take the program.
    """
    try:
        bpf = Bpf()
        program = bpf.load(assemble(gue_port), _NAME, BPF_PROG_TYPE_SCHED_CLS)
        try:
            with host.inside():
                link = bpf.attach_ingress(program, socket.if_nametoindex(device))
        finally:
            os.close(program)  # the link keeps it
    except BpfError as error:
        raise BenchError(str(error)) from error
    try:
        yield
    finally:
        os.close(link)


def missing() -> str | None:
    """Why this kernel cannot take packets out of tunnels; None when it can."""
    try:
        bpf = Bpf()
        program = bpf.load(assemble(0), _NAME, BPF_PROG_TYPE_SCHED_CLS)
        try:
            os.close(bpf.attach_ingress(program, 0))
        finally:
            os.close(program)
    except BpfError as error:
        # There is no such device, and only a kernel that could have attached it gets so far.
        cause = error.__cause__
        able = isinstance(cause, OSError) and cause.errno == errno.ENODEV
        return None if able else str(error)
    return None
