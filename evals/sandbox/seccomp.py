"""System-call filter of the sandbox, as a classic BPF program for bubblewrap's `--seccomp`.

A list of the calls that are allowed: what Python, its standard library and numpy need. Others fail with EPERM, so
Python reports them as `PermissionError`: networks, new processes, and what holds memory that the address-space limit
does not count (shared memory, semaphores, memfd, inotify, extended attributes, large pipes). Threads are allowed.
Process limits do not apply to the superuser, this filter does. Knows nothing of Python.

Source: linux/seccomp.h, linux/filter.h, and the system call tables of x86-64 and of the generic (aarch64)
ABI.
"""

from __future__ import annotations

import platform
import struct

# Name and number on x86-64 and aarch64; "-" if the architecture does not have the call.
_CALLS = """
brk 12 214, mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, msync 26 227,
mincore 27 232, membarrier 324 283,
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, lseek 8 62, sendfile 40 71, copy_file_range 326 285,
open 2 -, openat 257 56, openat2 437 437, creat 85 -, close 3 57, close_range 436 436, dup 32 23, dup2 33 -,
dup3 292 24, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, statfs 137 43, fstatfs 138 44,
access 21 -, faccessat 269 48, faccessat2 439 439, getcwd 79 17, chdir 80 49, fchdir 81 50, getdents 78 -,
getdents64 217 61, mkdir 83 -, mkdirat 258 34, rmdir 84 -, rename 82 -, renameat 264 38, renameat2 316 276,
link 86 -, linkat 265 37, unlink 87 -, unlinkat 263 35, symlink 88 -, symlinkat 266 36, readlink 89 -,
readlinkat 267 78, chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55,
lchown 94 -, fchownat 260 54, truncate 76 45, ftruncate 77 46, fallocate 285 47, fadvise64 221 223, fsync 74 82,
fdatasync 75 83, flock 73 32, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, umask 95 166,
getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11, llistxattr 195 12, flistxattr 196 13,
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19, pipe 22 -,
pipe2 293 59, nanosleep 35 101, clock_nanosleep 230 115, pause 34 -, restart_syscall 219 128,
socketpair 53 199, sendto 44 206, recvfrom 45 207, shutdown 48 210, getsockopt 55 209, setsockopt 54 208,
getsockname 51 204, getpeername 52 205,
time 201 -, gettimeofday 96 169, times 100 153, clock_gettime 228 113, clock_getres 229 114, alarm 37 -,
getitimer 36 102, setitimer 38 103,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigsuspend 130 133,
rt_sigtimedwait 128 137, sigaltstack 131 132, kill 62 129, tkill 200 130, tgkill 234 131,
futex 202 98, futex_waitv 449 449, set_robust_list 273 99, get_robust_list 274 100, set_tid_address 218 96,
rseq 334 293, sched_yield 24 124, sched_getaffinity 204 123, sched_setaffinity 203 122, sched_getparam 143 121,
sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126,
sched_rr_get_interval 148 127, getcpu 309 168, gettid 186 178, arch_prctl 158 -, prctl 157 167,
execve 59 221, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95, getpid 39 172, getppid 110 173,
getpgid 121 155, getpgrp 111 -, getsid 124 156, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
getresuid 118 148, getresgid 120 150, getgroups 115 158, getpriority 140 141, setpriority 141 140,
getrusage 98 165, getrlimit 97 163, setrlimit 160 164, prlimit64 302 261, capget 125 90, uname 63 160,
sysinfo 99 179, getrandom 318 278,
"""
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    name: (None if x86_64 == "-" else int(x86_64), None if aarch64 == "-" else int(aarch64))
    for name, x86_64, aarch64 in (call.split() for call in _CALLS.split(",") if call.strip())
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_FCNTL = (72, 25)
_IOCTL = (16, 29)
_LAST_KNOWN = 462  # the same on both; a libc that tries a later call expects ENOSYS on an older kernel
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOTTY, _ENOSYS = 0x00050000 | 1, 0x00050000 | 25, 0x00050000 | 38
_CLONE_THREAD = 0x00010000
_F_SETPIPE_SZ = 1031
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TCGETS2
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)
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

    def answer(value: int, result: int) -> None:
        """Return the result if the loaded word has this value."""
        emit(_EQUAL, value, 0, 1)
        emit(_RETURN, result)

    emit(_LOAD, _ARCH_AT)
    emit(_EQUAL, _AUDIT_ARCH[machine], 1, 0)
    emit(_RETURN, _KILL)
    emit(_LOAD, _NUMBER_AT)
    if machine == "x86_64":
        # The x32 calls are the same calls with other numbers.
        emit(_AT_LEAST, _X32_BIT, 0, 1)
        emit(_RETURN, _EPERM)
    emit(_AT_LEAST, _LAST_KNOWN + 1, 0, 1)
    emit(_RETURN, _ENOSYS)
    for numbers in _ALLOWED.values():
        number = numbers[column]
        if number is not None:
            answer(number, _ALLOW)
    # clone3's flags are behind a pointer that the filter cannot read; after ENOSYS, libc falls back to clone.
    answer(_CLONE3[column], _ENOSYS)
    emit(_EQUAL, _CLONE[column], 0, 4)
    emit(_LOAD, _FIRST_ARGUMENT_AT)
    emit(_ANY_BIT, _CLONE_THREAD, 0, 1)
    emit(_RETURN, _ALLOW)
    emit(_RETURN, _EPERM)
    emit(_EQUAL, _FCNTL[column], 0, 4)
    emit(_LOAD, _SECOND_ARGUMENT_AT)
    emit(_EQUAL, _F_SETPIPE_SZ, 1, 0)
    emit(_RETURN, _ALLOW)
    emit(_RETURN, _EPERM)
    emit(_EQUAL, _IOCTL[column], 0, 2 + 2 * len(_IOCTLS))
    emit(_LOAD, _SECOND_ARGUMENT_AT)
    for request in _IOCTLS:
        answer(request, _ALLOW)
    emit(_RETURN, _ENOTTY)
    emit(_RETURN, _EPERM)
    return b"".join(code)
