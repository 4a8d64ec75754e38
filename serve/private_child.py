"""A child process whose secret options no other user of this machine ever sees.

Everybody may read a command line in /proc, and programs like tritonserver take options from nowhere
else. The environment is for the same user alone.
"""

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.private_files import keep_files_private, libc_call

VARIABLE = "TRT_MTP_OPTION_"
WORD = struct.Struct("@P")
PTRACE_TRACEME, PTRACE_DETACH = 0, 17  # <sys/ptrace.h>


def start_private(
    command: Sequence[str],
    hidden: Sequence[str],
    environment: Mapping[str, str],
    prepare: Callable[[], None],
    **options: Any,
) -> "subprocess.Popen[bytes]":
    """Start `command` with the options `hidden` after it; its files are its user's alone.

    The child is stopped at its exec, before an instruction of it runs. Then its pointers to the
    last arguments are set to the environment; the command line that the kernel shows has other
    words there. `prepare` runs before the exec.

    Raises OSError if the program can't be run, and TrtMtpError if this machine forbids ptrace of
    the own child or seccomp filters.
    """
    keep_private = keep_files_private()
    trace = libc_call("ptrace", ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    variables = {f"{VARIABLE}{number}": option for number, option in enumerate(hidden)}

    def before_exec() -> None:
        prepare()
        keep_private()
        if trace(PTRACE_TRACEME, 0, None, None) != 0:
            raise OSError

    try:
        process = subprocess.Popen(
            [*command, *(f"--hidden-{number}" for number in range(len(hidden)))],
            env={**environment, **variables},
            preexec_fn=before_exec,
            **options,
        )
    except subprocess.SubprocessError:
        raise TrtMtpError(
            f"{command[0]} can't be started hidden from other users: this machine forbids ptrace "
            f"of one's own child, or seccomp filters; allow both (Docker's defaults do)"
        ) from None
    try:
        _wait_for_exec(process.pid)
        _point_to(process.pid, list(variables))
    except BaseException:
        process.kill()
        raise
    finally:
        trace(PTRACE_DETACH, process.pid, None, None)
    return process


def _wait_for_exec(pid: int) -> None:
    """Wait for the stop at the exec, which is over: Popen waited for it."""
    if not os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
        raise ChildProcessError("it ended before its first instruction")


def _point_to(pid: int, variables: Sequence[str]) -> None:
    """Let the last arguments of a process at its first instruction be these variables' values."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    stack, end = int(fields[28 - 3]), int(fields[51 - 3])  # startstack and env_end, proc(5)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        # argc, the arguments, NULL, the environment, NULL, and more; then the texts of both
        content = os.pread(memory, end - stack, stack)
        words = memoryview(content[: len(content) // WORD.size * WORD.size]).cast("P")
        num_arguments = words[0]
        texts = [address - stack for address in words[num_arguments + 2 :] if address > stack]
        for place, name in enumerate(variables, 1 + num_arguments - len(variables)):
            prefix = f"{name}=".encode()
            (at,) = {text for text in texts if content.startswith(prefix, text)}
            os.pwrite(memory, WORD.pack(stack + at + len(prefix)), stack + place * WORD.size)
    finally:
        os.close(memory)
