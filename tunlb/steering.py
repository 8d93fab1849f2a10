"""Steering: the eBPF program that makes the kernel hand each frame to the worker that owns it.

Heads up: read tunlb/bpf.py and drivers/net/tun.c (tun_ebpf_select_queue) first. Queue i of a port
belongs to worker i; the driver runs the program on each frame from the kernel, modulo the number of
queues. The program is written here, instruction by instruction, and computes what
:meth:`tunlb.ipvs.sharding.Sharding.owner` does; addresses are in a hash map beside it. What it
cannot place goes to worker 0, which hands it over: ARP, whatever is not IP, fragments, IPv6
extension headers, protocols without ports, and what is cut short (a load beyond the end of a frame
ends the program with 0).

Nothing depends on it but speed. A device keeps its program until another one is set, also without
us.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Mapping, Sequence

from tunlb.bpf import (
    BPF_ADD,
    BPF_AND,
    BPF_B,
    BPF_CALL,
    BPF_FUNC_MAP_LOOKUP_ELEM,
    BPF_H,
    BPF_JEQ,
    BPF_JLT,
    BPF_JMP,
    BPF_JNE,
    BPF_LDX,
    BPF_LSH,
    BPF_MEM,
    BPF_MOD,
    BPF_MOV,
    BPF_MUL,
    BPF_PSEUDO_MAP_FD,
    BPF_RSH,
    BPF_ST,
    BPF_STX,
    BPF_W,
    ETH_P_8021Q,
    ETH_P_IP,
    ETH_P_IPV6,
    ETHER_LEN,
    ETHER_TYPE,
    FRAGMENT_BITS,
    FRAME,
    R0,
    R1,
    R2,
    R6,
    R7,
    R8,
    R9,
    SCTP,
    TCP,
    UDP,
    VLAN_LEN,
    Assembler,
    Bpf,
    BpfError,
)
from tunlb.conf.values import IPAddress
from tunlb.ipvs.sharding import SHARD_KEYS
from tunlb.netif import LADDR, VIP

ADDRESSES_MAX = 65536  #: VIPs and laddrs of a map, about 90 bytes of kernel memory each

TUNSETSTEERINGEBPF = 0x800454E0  # linux/if_tun.h

# Where on the stack an address is: four 32-bit words of this machine, the most significant first.
SOURCE, DESTINATION = -32, -16
ADDRESS_LEN = 16


class SteeringError(BpfError):
    """Frames cannot be steered. Workers then find each other's frames by the hand-over."""


def assemble(workers: int, keys: bytes, map_fd: int, *, tun: bool) -> bytes:
    """The program for a port. It reads addresses' kinds from the map ``map_fd``.

    Registers: R6 the frame; R7 where its network header is, later both ports; R8 where its
    transport header is, later the client's address; R9 the protocol, later the client's port.
    """
    a = Assembler()
    a.move(R6, R1)  # where LD_ABS and LD_IND look for the frame
    if tun:
        a.op(BPF_MOV, R7, 0)
        a.frame(BPF_B, 0)
        a.op(BPF_RSH, R0, 4)
        a.jump("ipv4", BPF_JEQ, R0, 4)
        a.jump("ipv6", BPF_JEQ, R0, 6)
    else:
        a.op(BPF_MOV, R7, ETHER_LEN)
        a.frame(BPF_H, ETHER_TYPE)
        a.jump("untagged", BPF_JNE, R0, ETH_P_8021Q)
        # Only a tag that its sender wrote: one of a VLAN device or a bridge lies beside the frame
        # until the driver copies it out.
        a.op(BPF_MOV, R7, ETHER_LEN + VLAN_LEN)
        a.frame(BPF_H, ETHER_TYPE + VLAN_LEN)
        a.label("untagged")
        a.jump("ipv4", BPF_JEQ, R0, ETH_P_IP)
        a.jump("ipv6", BPF_JEQ, R0, ETH_P_IPV6)
    a.jump("worker 0")
    _ipv4(a)
    _ipv6(a)
    _transport(a)
    _find_client(a, map_fd)
    _hash(a, struct.unpack(f"={SHARD_KEYS}Q", keys))
    a.label("lport")
    a.op(BPF_MOD, R0, workers)
    a.finish()
    a.label("worker 0")
    a.op(BPF_MOV, R0, 0)
    a.finish()
    return a.program()


def _ipv4(a: Assembler) -> None:
    """Fields of RFC 791."""
    a.label("ipv4")
    a.frame(BPF_H, 6, R7)
    a.op(BPF_AND, R0, FRAGMENT_BITS)
    a.jump("worker 0", BPF_JNE, R0, 0)
    a.frame(BPF_B, 9, R7)
    a.move(R9, R0)
    a.frame(BPF_B, 0, R7)
    a.op(BPF_AND, R0, 0x0F)
    a.op(BPF_LSH, R0, 2)
    a.jump("worker 0", BPF_JLT, R0, 20)
    a.op_register(BPF_ADD, R0, R7)
    a.move(R8, R0)
    for offset, at in ((12, SOURCE), (16, DESTINATION)):
        for word, value in ((0, 0), (4, 0), (8, 0xFFFF)):  # ::ffff:0.0.0.0
            a.emit(BPF_ST | BPF_MEM | BPF_W, FRAME, off=at + word, imm=value)
        a.frame(BPF_W, offset, R7)
        a.emit(BPF_STX | BPF_MEM | BPF_W, FRAME, R0, at + 12)
    a.jump("transport")


def _ipv6(a: Assembler) -> None:
    """Fields of RFC 8200."""
    a.label("ipv6")
    a.frame(BPF_B, 6, R7)
    a.move(R9, R0)
    a.move(R8, R7)
    a.op(BPF_ADD, R8, 40)
    for offset, at in ((8, SOURCE), (24, DESTINATION)):
        for word in range(0, ADDRESS_LEN, 4):
            a.frame(BPF_W, offset + word, R7)
            a.emit(BPF_STX | BPF_MEM | BPF_W, FRAME, R0, at + word)


def _transport(a: Assembler) -> None:
    """R7 = sport << 16 | dport: TCP, UDP and SCTP all begin with them."""
    a.label("transport")
    a.jump("ports", BPF_JEQ, R9, TCP)
    a.jump("ports", BPF_JEQ, R9, SCTP)
    a.jump("worker 0", BPF_JNE, R9, UDP)
    a.label("ports")
    a.frame(BPF_W, 0, R8)
    a.move(R7, R0)


def _find_client(a: Assembler, map_fd: int) -> None:
    """R8 = where the client's address is, R9 = its port; or off to "lport" with that in R0."""
    a.constant(R1, map_fd, BPF_PSEUDO_MAP_FD)
    a.move(R2, FRAME)
    a.op(BPF_ADD, R2, DESTINATION)
    a.emit(BPF_JMP | BPF_CALL, imm=BPF_FUNC_MAP_LOOKUP_ELEM)
    a.move(R8, FRAME)
    a.op(BPF_ADD, R8, DESTINATION)
    a.move(R9, R7)
    a.op(BPF_AND, R9, 0xFFFF)
    a.jump("hash", BPF_JEQ, R0, 0)
    a.emit(BPF_LDX | BPF_MEM | BPF_W, R1, R0)
    a.move(R0, R9)
    a.jump("lport", BPF_JEQ, R1, LADDR)
    a.op(BPF_ADD, R8, SOURCE - DESTINATION)
    a.move(R9, R7)
    a.op(BPF_RSH, R9, 16)


def _hash(a: Assembler, keys: Sequence[int]) -> None:
    """R0 = the hash of the client's endpoint, before it is divided by the number of workers."""
    a.label("hash")
    a.constant(R0, keys[0])
    for word, key in enumerate(keys[1:5]):
        a.emit(BPF_LDX | BPF_MEM | BPF_W, R1, R8, word * 4)
        a.constant(R2, key)
        a.op_register(BPF_MUL, R1, R2)
        a.op_register(BPF_ADD, R0, R1)
    a.constant(R2, keys[5])
    a.op_register(BPF_MUL, R9, R2)
    a.op_register(BPF_ADD, R0, R9)
    a.op(BPF_RSH, R0, 32)


# ---- what the supervisor uses


def map_key(address: IPAddress) -> bytes:
    """An address as the program looks it up; IPv4 as ``::ffff:a.b.c.d``."""
    packed = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
    return struct.pack("=4I", *struct.unpack("!4I", packed))


class Steering:
    """The programs for ``workers`` workers; ``keys`` as for Sharding.

    It keeps the descriptors of the programs in force, so that a port that is opened anew gets the
    one that the others have; devices do not need us to.
    """

    def __init__(self, workers: int, keys: bytes) -> None:
        self._workers = workers
        self._keys = keys
        self._kinds: dict[bytes, int] = {}
        self._programs: dict[bool, int] = {}  # by whether it is for a TUN

    def install(
        self,
        queues: Sequence[tuple[int, bool]],
        vips: Iterable[IPAddress],
        laddrs: Iterable[IPAddress],
    ) -> None:
        """Steer the frames of ports: of each the descriptor of any queue, and whether it is a TUN.

        ``vips`` are all addresses that are ours but no laddrs, those of the ports too. Each port
        changes at once from one program to the next, while frames flow. Raises SteeringError: when
        a program cannot be made, no port has changed; when a port does not take it, the others
        have.
        """
        kinds = {map_key(address): LADDR for address in laddrs}
        kinds |= {map_key(address): VIP for address in vips}
        wanted = {tun for _, tun in queues}
        if kinds != self._kinds or not wanted <= self._programs.keys():
            programs = self._load(kinds, wanted)
            self.close()
            self._kinds = kinds
            self._programs = programs
        failed: list[SteeringError] = []
        for fd, tun in queues:
            try:
                _set_program(fd, self._programs[tun])
            except SteeringError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _load(self, kinds: Mapping[bytes, int], wanted: Iterable[bool]) -> dict[bool, int]:
        if len(kinds) > ADDRESSES_MAX:
            raise SteeringError(
                f"{len(kinds)} VIPs and local addresses are more than the {ADDRESSES_MAX} that"
                " are steered by"
            )
        try:
            return self._made(kinds, wanted)
        except BpfError as error:
            raise SteeringError(str(error), error.log) from error

    def _made(self, kinds: Mapping[bytes, int], wanted: Iterable[bool]) -> dict[bool, int]:
        bpf = Bpf()
        programs: dict[bool, int] = {}
        map_fd = bpf.make_map(b"tunlb_addresses", ADDRESS_LEN, kinds)
        try:
            for tun in wanted:
                program = assemble(self._workers, self._keys, map_fd, tun=tun)
                programs[tun] = bpf.load(program, b"tunlb_steer_tun" if tun else b"tunlb_steer_tap")
        except BpfError:
            for fd in programs.values():
                os.close(fd)
            raise
        finally:
            os.close(map_fd)  # the programs keep it
        return programs

    @staticmethod
    def clear(fd: int) -> None:
        """Let the kernel choose the queues of a device again; ``fd`` is any of them."""
        _set_program(fd, -1)

    def close(self) -> None:
        """Idempotent. Ports go on as they are."""
        programs, self._programs = self._programs, {}
        for fd in programs.values():
            os.close(fd)


def _set_program(fd: int, program: int) -> None:
    try:
        fcntl.ioctl(fd, TUNSETSTEERINGEBPF, struct.pack("i", program))
    except OSError as error:
        hint = {
            errno.EBADFD: "the device is gone",
            errno.EINVAL: "Linux 4.16 or later is needed",
        }.get(error.errno or 0, "is this the descriptor of a queue?")
        raise SteeringError(f"a port takes no steering: {error.strerror} ({hint})") from error
