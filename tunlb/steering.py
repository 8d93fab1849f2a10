"""Steering: the eBPF program that makes the kernel hand each frame to the worker that owns it.

Heads up: read RFC 9669 (the instruction set), linux/bpf.h and drivers/net/tun.c
(tun_ebpf_select_queue) first. Queue i of a port belongs to worker i; the driver runs the program on
each frame from the kernel, modulo the number of queues. The program is written here, instruction
by instruction, and computes what :meth:`tunlb.ipvs.sharding.Sharding.owner` does; addresses are in
a hash map beside it. What it cannot place goes to worker 0, which hands it over: ARP, whatever is
not IP, fragments, IPv6 extension headers, protocols without ports, and what is cut short (a load
beyond the end of a frame ends the program with 0).

Nothing depends on it but speed. A device keeps its program until another one is set, also without
us.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import resource
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tunlb.conf.values import IPAddress
from tunlb.ipvs.sharding import SHARD_KEYS
from tunlb.netif import LADDR, VIP

ADDRESSES_MAX = 65536  #: VIPs and laddrs of a map, about 90 bytes of kernel memory each
LOG_LEN = 1 << 18  #: bytes of what the kernel's verifier may say

TUNSETSTEERINGEBPF = 0x800454E0  # linux/if_tun.h

# The number of bpf(2) by machine, and only machines where that and the ioctl's number are what is
# written here: arch/x86/entry/syscalls/syscall_64.tbl, asm-generic/unistd.h for the others. All are
# little-endian, as is the layout of an instruction below.
SYSCALLS = MappingProxyType({"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280})

# enum bpf_cmd, bpf_map_type and bpf_prog_type of linux/bpf.h
BPF_MAP_CREATE = 0
BPF_PROG_LOAD = 5
BPF_MAP_UPDATE_BATCH = 26
BPF_MAP_TYPE_HASH = 1
BPF_PROG_TYPE_SOCKET_FILTER = 1
# union bpf_attr of linux/bpf.h, each as far as it is used
MAP_CREATE = struct.Struct("=7I16s")  # type, key, value, entries, flags, inner, node, name
MAP_BATCH = struct.Struct("=4Q2I2Q")  # in, out, keys, values, count, fd, element flags, flags
PROG_LOAD = struct.Struct("=2I2Q2IQ2I16s")  # type, count, insns, license, log level/size/buffer...

CAP_SYS_ADMIN = 21  # linux/capability.h
CAP_BPF = 39

# ---- instructions: linux/bpf_common.h and linux/bpf.h

INSTRUCTION = struct.Struct("<BBhi")  # struct bpf_insn: code, src << 4 | dst, off, imm

BPF_LD, BPF_LDX, BPF_ST, BPF_STX, BPF_JMP, BPF_ALU64 = 0x00, 0x01, 0x02, 0x03, 0x05, 0x07
BPF_W, BPF_H, BPF_B, BPF_DW = 0x00, 0x08, 0x10, 0x18
BPF_IMM, BPF_ABS, BPF_IND, BPF_MEM = 0x00, 0x20, 0x40, 0x60
BPF_ADD, BPF_MUL, BPF_AND, BPF_LSH = 0x00, 0x20, 0x50, 0x60
BPF_RSH, BPF_MOD, BPF_MOV = 0x70, 0x90, 0xB0
BPF_JA, BPF_JEQ, BPF_JNE, BPF_CALL, BPF_EXIT, BPF_JLT = 0x00, 0x10, 0x50, 0x80, 0x90, 0xA0
BPF_K, BPF_X = 0x00, 0x08
BPF_PSEUDO_MAP_FD = 1
BPF_FUNC_MAP_LOOKUP_ELEM = 1

R0, R1, R2, R6, R7, R8, R9, FRAME = 0, 1, 2, 6, 7, 8, 9, 10  # R1 to R5 do not survive a call

# Where on the stack an address is: four 32-bit words of this machine, the most significant first.
SOURCE, DESTINATION = -32, -16
ADDRESS_LEN = 16

ETHER_TYPE, ETHER_LEN, VLAN_LEN = 12, 14, 4
ETH_P_IP, ETH_P_8021Q, ETH_P_IPV6 = 0x0800, 0x8100, 0x86DD
FRAGMENT_BITS = 0x3FFF  # more fragments, and the offset
TCP, UDP, SCTP = 6, 17, 132


class SteeringError(Exception):
    """Frames cannot be steered; the text says why, ``log`` is all that the kernel's verifier said.

    Workers then find each other's frames by the hand-over.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class Assembler:
    """Instructions, and jumps ahead to labels; old or unprivileged verifiers refuse to go back."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: dict[int, str] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def emit(self, code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        self._code.append((code, src << 4 | dst, off, imm))

    def frame(self, size: int, offset: int, base: int | None = None) -> None:
        """R0 = the number at ``offset`` of the frame, counted from register ``base`` if given."""
        if base is None:
            self.emit(BPF_LD | size | BPF_ABS, imm=offset)
        else:
            self.emit(BPF_LD | size | BPF_IND, src=base, imm=offset)

    def move(self, dst: int, src: int) -> None:
        self.emit(BPF_ALU64 | BPF_MOV | BPF_X, dst, src)

    def op(self, operation: int, dst: int, imm: int) -> None:
        self.emit(BPF_ALU64 | operation | BPF_K, dst, imm=imm)

    def op_register(self, operation: int, dst: int, src: int) -> None:
        self.emit(BPF_ALU64 | operation | BPF_X, dst, src)

    def constant(self, dst: int, value: int, kind: int = 0) -> None:
        """An unsigned 64-bit constant, or the address of what the descriptor ``value`` stands for.

        It takes the room of two instructions.
        """
        low, high = struct.unpack("<2i", struct.pack("<Q", value))
        self.emit(BPF_LD | BPF_DW | BPF_IMM, dst, kind, imm=low)
        self.emit(0, imm=high)

    def jump(self, to: str, condition: int = BPF_JA, register: int = 0, imm: int = 0) -> None:
        self._jumps[len(self._code)] = to
        self.emit(BPF_JMP | condition | BPF_K, register, imm=imm)

    def finish(self) -> None:
        self.emit(BPF_JMP | BPF_EXIT)

    def program(self) -> bytes:
        code = list(self._code)
        for at, name in self._jumps.items():
            op, registers, _, imm = code[at]
            code[at] = op, registers, self._labels[name] - at - 1, imm
        return b"".join(INSTRUCTION.pack(*instruction) for instruction in code)


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


# ---- bpf(2)


class Permissions(NamedTuple):
    """What decides whether bpf(2) is permitted, besides the kernel's build."""

    capable: bool  #: CAP_BPF, or CAP_SYS_ADMIN which was before it (Linux 5.8)
    user_namespace: bool  #: not the first one, whose capabilities alone count
    unprivileged_bpf_disabled: str  #: the sysctl kernel.unprivileged_bpf_disabled; "" if unreadable
    seccomp: bool
    memlock: int  #: bytes that maps and programs may take before Linux 5.11; -1: no limit


def permissions() -> Permissions:
    """Those of this process."""
    status = dict(line.partition(":")[::2] for line in _read("/proc/self/status").splitlines())
    effective = int(status.get("CapEff", "0"), 16)
    return Permissions(
        capable=bool(effective & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN)),
        user_namespace=_read("/proc/self/uid_map").split() != ["0", "0", "4294967295"],
        unprivileged_bpf_disabled=_read("/proc/sys/kernel/unprivileged_bpf_disabled").strip(),
        seccomp=status.get("Seccomp", "0").strip() == "2",
        memlock=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
    )


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def refusal(what: str, error: int, why: Permissions) -> SteeringError:
    """The error for ``what`` that bpf(2) refused with errno ``error``, and what to do about it."""
    message = f"cannot {what}: {os.strerror(error)}"
    if error == errno.ENOSYS:
        return SteeringError(
            f"{message} (the kernel has no bpf(2), or a seccomp filter hides it: it needs"
            " CONFIG_BPF_SYSCALL; for a container: --cap-add BPF)"
        )
    if error == errno.EINVAL:
        return SteeringError(f"{message} (Linux 5.6 or later is needed)")
    if error != errno.EPERM:
        return SteeringError(message)
    told = f"kernel.unprivileged_bpf_disabled is {why.unprivileged_bpf_disabled or 'hidden'}"
    restricted = why.unprivileged_bpf_disabled != "0"
    if restricted and why.user_namespace:
        hint = f"{told}, and capabilities inside a user namespace do not count: start it outside"
    elif restricted and not why.capable:
        hint = f"{told}, so it takes CAP_BPF: start as root; for a container: --cap-add BPF"
    elif why.seccomp:
        hint = "a seccomp filter refuses bpf(2); for a container: --cap-add BPF"
    elif why.memlock >= 0:
        hint = (
            f"before Linux 5.11 it counts against RLIMIT_MEMLOCK, now {why.memlock} bytes:"
            " ulimit -l unlimited, or LimitMEMLOCK=infinity"
        )
    else:
        hint = "a security module refuses bpf(2), see the kernel's log"
    return SteeringError(f"{message} ({hint})")


class Bpf:
    """bpf(2), which the C library does not have."""

    def __init__(self, machine: str | None = None) -> None:
        machine = platform.machine() if machine is None else machine
        if machine not in SYSCALLS or struct.calcsize("P") != 8:
            known = ", ".join(SYSCALLS)
            raise SteeringError(
                f"the number of bpf(2) on {machine} is not known here (64 bits of {known} are)"
            )
        self._number = SYSCALLS[machine]
        self._syscall: Callable[..., int] = ctypes.CDLL(None, use_errno=True).syscall

    def call(self, command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
        """What it returns; ``attr`` is a ``union bpf_attr`` that the kernel may write to."""
        # A variadic function: whatever is not an int has to say so.
        size = ctypes.sizeof(attr)
        result = self._syscall(ctypes.c_long(self._number), command, attr, size)
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return result

    def make_map(self, kinds: Mapping[bytes, int]) -> int:
        """The descriptor of a hash map from address to kind."""
        entries = max(1, len(kinds))
        attr = MAP_CREATE.pack(
            *(BPF_MAP_TYPE_HASH, ADDRESS_LEN, 4, entries, 0, 0, 0, b"tunlb_addresses")
        )
        try:
            fd = self.call(BPF_MAP_CREATE, _buffer(attr))
        except OSError as error:
            raise refusal("make a BPF map", error.errno or 0, permissions()) from error
        if not kinds:
            return fd
        keys = _buffer(b"".join(kinds))
        values = _buffer(struct.pack(f"={len(kinds)}I", *kinds.values()))
        attr = MAP_BATCH.pack(
            *(0, 0, ctypes.addressof(keys), ctypes.addressof(values), len(kinds), fd, 0, 0)
        )
        try:
            self.call(BPF_MAP_UPDATE_BATCH, _buffer(attr))
        except OSError as error:
            os.close(fd)
            raise refusal("fill a BPF map", error.errno or 0, permissions()) from error
        return fd

    def load(self, program: bytes, name: bytes) -> int:
        """The descriptor of a socket filter."""
        what = "load the steering program"
        try:
            return self._load(program, name, None)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EINVAL):
                raise refusal(what, error.errno or 0, permissions()) from error
        # Only the verifier says these two, and it explains itself when it is asked to.
        log = ctypes.create_string_buffer(LOG_LEN)
        try:
            return self._load(program, name, log)
        except OSError as error:
            text = log.value.decode(errors="replace")
            end = " | ".join(text.splitlines()[-3:])
            raise SteeringError(
                f"cannot {what}: the kernel's verifier refuses it: {end or error.strerror}", text
            ) from error

    def _load(self, program: bytes, name: bytes, log: ctypes.Array[ctypes.c_char] | None) -> int:
        code = _buffer(program)
        # No helper that it calls asks for a licence that is compatible with the kernel's.
        license_name = _buffer(b"MIT\0")
        attr = PROG_LOAD.pack(
            BPF_PROG_TYPE_SOCKET_FILTER,
            len(program) // INSTRUCTION.size,
            ctypes.addressof(code),
            ctypes.addressof(license_name),
            *((0, 0, 0) if log is None else (1, LOG_LEN, ctypes.addressof(log))),
            *(0, 0, name),
        )
        return self.call(BPF_PROG_LOAD, _buffer(attr))


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


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
        bpf = Bpf()
        programs: dict[bool, int] = {}
        map_fd = bpf.make_map(kinds)
        try:
            for tun in wanted:
                program = assemble(self._workers, self._keys, map_fd, tun=tun)
                programs[tun] = bpf.load(program, b"tunlb_steer_tun" if tun else b"tunlb_steer_tap")
        except SteeringError:
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
