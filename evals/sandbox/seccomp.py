"""System-call filter of the sandbox, as a classic BPF program for bubblewrap's `--seccomp`.

Refused calls fail with EPERM, so Python reports them as `PermissionError`. Threads are allowed, new processes are not:
process limits do not apply to the superuser, this filter does. Knows nothing of Python.

Source: linux/seccomp.h, linux/filter.h, and the system call tables of x86-64 and of the generic (aarch64)
ABI.
"""

from __future__ import annotations

import platform
import struct

# name: (x86-64, aarch64); None if the architecture does not have the call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    # Memory that does not count for the address-space limit.
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050000 | 1, 0x00050000 | 38
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000


def supported() -> bool:
    """Whether there is a filter for this machine's architecture."""
    return platform.machine() in _AUDIT_ARCH


def program_filter() -> bytes:
    """The filter as an array of `struct sock_filter`, for this machine's architecture."""
    machine = platform.machine()
    column = _COLUMN[machine]
    code: list[bytes] = []

    def emit(op: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        code.append(struct.pack("=HBBI", op, if_true, if_false, value))

    def refuse(number: int, result: int) -> None:
        emit(_EQUAL, number, 0, 1)
        emit(_RETURN, result)

    emit(_LOAD, _ARCH_AT)
    emit(_EQUAL, _AUDIT_ARCH[machine], 1, 0)
    emit(_RETURN, _KILL)
    emit(_LOAD, _NUMBER_AT)
    if machine == "x86_64":
        # The x32 calls are the same calls with other numbers.
        emit(_AT_LEAST, _X32_BIT, 0, 1)
        emit(_RETURN, _EPERM)
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            refuse(number, _EPERM)
    # clone3's flags are behind a pointer that the filter cannot read; after ENOSYS, libc falls back to clone.
    refuse(_CLONE3[column], _ENOSYS)
    emit(_EQUAL, _CLONE[column], 0, 3)
    emit(_LOAD, _FIRST_ARGUMENT_AT)
    emit(_ANY_BIT, _CLONE_THREAD, 1, 0)
    emit(_RETURN, _EPERM)
    emit(_RETURN, _ALLOW)
    return b"".join(code)
