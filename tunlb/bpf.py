"""eBPF programs, written instruction by instruction, and bpf(2), which loads and attaches them.

Heads up: read RFC 9669 (the instruction set) and linux/bpf.h first. No compiler and no library is
needed at run time: a program is a few dozen lines of Python that emit it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

LOG_LEN = 1 << 18  #: bytes of what the kernel's verifier may say

# The number of bpf(2) by machine, and only machines where that and the ioctl's number are what is
# written here: arch/x86/entry/syscalls/syscall_64.tbl, asm-generic/unistd.h for the others. All are
# little-endian, as is the layout of an instruction below.
SYSCALLS = MappingProxyType({"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280})

# enum bpf_cmd, bpf_map_type, bpf_prog_type and bpf_attach_type of linux/bpf.h
BPF_MAP_CREATE = 0
BPF_PROG_LOAD = 5
BPF_MAP_UPDATE_BATCH = 26
BPF_LINK_CREATE = 28
BPF_MAP_TYPE_HASH = 1
BPF_PROG_TYPE_SOCKET_FILTER = 1
BPF_PROG_TYPE_SCHED_CLS = 3
BPF_TCX_INGRESS = 46
# union bpf_attr of linux/bpf.h, each as far as it is used
MAP_CREATE = struct.Struct("=7I16s")  # type, key, value, entries, flags, inner, node, name
MAP_BATCH = struct.Struct("=4Q2I2Q")  # in, out, keys, values, count, fd, element flags, flags
PROG_LOAD = struct.Struct("=2I2Q2IQ2I16s")  # type, count, insns, license, log level/size/buffer...
LINK_CREATE = struct.Struct("=4I48x")  # program, ifindex, attach type, flags, no more of it

CAP_SYS_ADMIN = 21  # linux/capability.h
CAP_BPF = 39

# ---- instructions: linux/bpf_common.h and linux/bpf.h

INSTRUCTION = struct.Struct("<BBhi")  # struct bpf_insn: code, src << 4 | dst, off, imm

BPF_LD, BPF_LDX, BPF_ST, BPF_STX, BPF_JMP, BPF_ALU64 = 0x00, 0x01, 0x02, 0x03, 0x05, 0x07
BPF_W, BPF_H, BPF_B, BPF_DW = 0x00, 0x08, 0x10, 0x18
BPF_IMM, BPF_ABS, BPF_IND, BPF_MEM = 0x00, 0x20, 0x40, 0x60
BPF_ADD, BPF_SUB, BPF_MUL, BPF_AND, BPF_LSH = 0x00, 0x10, 0x20, 0x50, 0x60
BPF_RSH, BPF_MOD, BPF_MOV = 0x70, 0x90, 0xB0
BPF_JA, BPF_JEQ, BPF_JNE, BPF_CALL, BPF_EXIT, BPF_JLT = 0x00, 0x10, 0x50, 0x80, 0x90, 0xA0
BPF_K, BPF_X = 0x00, 0x08
BPF_PSEUDO_MAP_FD = 1
BPF_FUNC_MAP_LOOKUP_ELEM = 1
BPF_FUNC_SKB_ADJUST_ROOM = 50

R0, R1, R2, R3, R4, R6, R7, R8, R9, FRAME = 0, 1, 2, 3, 4, 6, 7, 8, 9, 10  # R1-R5: lost by a call

ETHER_TYPE, ETHER_LEN, VLAN_LEN = 12, 14, 4
ETH_P_IP, ETH_P_8021Q, ETH_P_IPV6 = 0x0800, 0x8100, 0x86DD
FRAGMENT_BITS = 0x3FFF  # more fragments, and the offset
TCP, UDP, SCTP = 6, 17, 132


class BpfError(Exception):
    """The kernel takes no program; the text says why, ``log`` is all that its verifier said."""

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


def refusal(what: str, error: int, why: Permissions) -> BpfError:
    """The error for ``what`` that bpf(2) refused with errno ``error``, and what to do about it."""
    message = f"cannot {what}: {os.strerror(error)}"
    if error == errno.ENOSYS:
        return BpfError(
            f"{message} (the kernel has no bpf(2), or a seccomp filter hides it: it needs"
            " CONFIG_BPF_SYSCALL; for a container: --cap-add BPF)"
        )
    if error == errno.EINVAL:
        return BpfError(f"{message} (Linux 5.6 or later is needed)")
    if error != errno.EPERM:
        return BpfError(message)
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
    return BpfError(f"{message} ({hint})")


class Bpf:
    """bpf(2), which the C library does not have."""

    def __init__(self, machine: str | None = None) -> None:
        machine = platform.machine() if machine is None else machine
        if machine not in SYSCALLS or struct.calcsize("P") != 8:
            known = ", ".join(SYSCALLS)
            raise BpfError(
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

    def make_map(self, name: bytes, key_len: int, table: Mapping[bytes, int]) -> int:
        """The descriptor of a hash map with keys of ``key_len`` bytes and numbers of 32 bits."""
        entries = max(1, len(table))
        attr = MAP_CREATE.pack(BPF_MAP_TYPE_HASH, key_len, 4, entries, 0, 0, 0, name)
        try:
            fd = self.call(BPF_MAP_CREATE, _buffer(attr))
        except OSError as error:
            raise refusal("make a BPF map", error.errno or 0, permissions()) from error
        if not table:
            return fd
        keys = _buffer(b"".join(table))
        values = _buffer(struct.pack(f"={len(table)}I", *table.values()))
        attr = MAP_BATCH.pack(
            *(0, 0, ctypes.addressof(keys), ctypes.addressof(values), len(table), fd, 0, 0)
        )
        try:
            self.call(BPF_MAP_UPDATE_BATCH, _buffer(attr))
        except OSError as error:
            os.close(fd)
            raise refusal("fill a BPF map", error.errno or 0, permissions()) from error
        return fd

    def load(self, program: bytes, name: bytes, kind: int = BPF_PROG_TYPE_SOCKET_FILTER) -> int:
        """The descriptor of a program."""
        what = f"load the BPF program {name.decode()}"
        try:
            return self._load(program, name, kind, None)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EINVAL):
                raise refusal(what, error.errno or 0, permissions()) from error
        # Only the verifier says these two, and it explains itself when it is asked to.
        log = ctypes.create_string_buffer(LOG_LEN)
        try:
            return self._load(program, name, kind, log)
        except OSError as error:
            text = log.value.decode(errors="replace")
            end = " | ".join(text.splitlines()[-3:])
            raise BpfError(
                f"cannot {what}: the kernel's verifier refuses it: {end or error.strerror}", text
            ) from error

    def _load(
        self, program: bytes, name: bytes, kind: int, log: ctypes.Array[ctypes.c_char] | None
    ) -> int:
        code = _buffer(program)
        # No helper that it calls asks for a licence that is compatible with the kernel's.
        license_name = _buffer(b"MIT\0")
        attr = PROG_LOAD.pack(
            kind,
            len(program) // INSTRUCTION.size,
            ctypes.addressof(code),
            ctypes.addressof(license_name),
            *((0, 0, 0) if log is None else (1, LOG_LEN, ctypes.addressof(log))),
            *(0, 0, name),
        )
        return self.call(BPF_PROG_LOAD, _buffer(attr))

    def attach_ingress(self, program: int, ifindex: int) -> int:
        """Run a program (BPF_PROG_TYPE_SCHED_CLS) on what a device of this namespace receives.

        It is there as long as the descriptor that this returns is open. Linux 6.6 or later.
        """
        attr = LINK_CREATE.pack(program, ifindex, BPF_TCX_INGRESS, 0)
        try:
            return self.call(BPF_LINK_CREATE, _buffer(attr))
        except OSError as error:
            what = "attach a BPF program to a device"
            if error.errno == errno.EINVAL:
                raise BpfError(f"cannot {what}: Linux 6.6 or later is needed") from error
            raise refusal(what, error.errno or 0, permissions()) from error


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))
