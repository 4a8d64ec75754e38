"""Files and shared memory that a child process makes for its own user alone.

A umask isn't enough: the shared memory of Triton's python backend is made by boost::interprocess,
which sets the mode 0644 with fchmod.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Callable
from typing import Any

from trt_mtp.errors import TrtMtpError

UMASK = 0o077
PR_SET_NO_NEW_PRIVS = 38  # <linux/prctl.h>
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1, 4  # <linux/seccomp.h>
# by machine: its name in <linux/audit.h>, and the numbers of the calls seccomp and fchmod
SYSCALLS = {"x86_64": (0xC000003E, 317, 91), "aarch64": (0xC00000B7, 277, 52)}
LOAD, IF_EQUAL, IF_ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # <linux/bpf_common.h>
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000


def keep_files_private() -> Callable[[], None]:
    """A function for the child, which holds for the processes that it starts too.

    fchmod to a mode that opens a file to others does nothing, and says that it did. The function
    raises OSError if the machine forbids seccomp filters, and this one TrtMtpError for a machine
    whose system calls aren't known.
    """
    machine = platform.machine()
    if machine not in SYSCALLS:
        raise TrtMtpError(f"trt-mtp serves on {' and '.join(SYSCALLS)}, not on {machine}")
    audit_name, seccomp, fchmod = SYSCALLS[machine]
    code = ctypes.create_string_buffer(_filter(audit_name, fchmod))
    program = ctypes.create_string_buffer(
        struct.pack("@HP", (len(code) - 1) // INSTRUCTION.size, ctypes.addressof(code))
    )
    buffers = (code, program)  # they live as long as the function
    prctl = libc_call("prctl", *[ctypes.c_ulong] * 5)
    call = libc_call("syscall", *[ctypes.c_ulong] * 3, ctypes.c_void_p)

    def keep_private() -> None:
        os.umask(UMASK)
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # without the flag, older kernels turn off speculative loads, which costs speed
        flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW
        if call(seccomp, SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(buffers[1])) != 0:
            raise OSError

    return keep_private


INSTRUCTION = struct.Struct("@HBBI")  # code, jump if true, jump if false, constant


def _filter(audit_name: int, fchmod: int) -> bytes:
    instructions = (
        (LOAD, 0, 0, 4),  # seccomp_data.arch
        (IF_EQUAL, 0, 4, audit_name),
        (LOAD, 0, 0, 0),  # seccomp_data.nr
        (IF_EQUAL, 0, 2, fchmod),
        (LOAD, 0, 0, 24),  # the mode: the second argument
        (IF_ANY_BIT, 1, 0, UMASK),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | 0),
    )
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in instructions)


def libc_call(name: str, *argument_types: Any) -> Callable[..., int]:
    """A function of the C library, looked up before a fork."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.argtypes, function.restype = argument_types, ctypes.c_long
    return function  # type: ignore[no-any-return]
