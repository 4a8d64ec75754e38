"""One server for all draft lengths, restarted at another one by a command of the user's."""

import asyncio
import contextlib
import os
import shlex
import signal

from trt_mtp.controller.calibrate.lost_server import ServerLostError

LENGTH_MARK = "{k}"  # in a command, and in a model's name: the draft length


async def restart(command: str, draft_length: int, timeout_s: float) -> None:
    """Run `command` in a shell, the draft length in place of {k}, and wait for its end.

    What it starts in the background goes on. Raises ServerLostError if it fails or takes longer
    than `timeout_s`; then it is killed with its children.
    """
    line = command.replace(LENGTH_MARK, shlex.quote(str(draft_length)))
    process = await asyncio.create_subprocess_shell(
        line,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,  # ours is the result; what is wrong it says on stderr
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()  # not for its pipes: a server in the background keeps them
    except TimeoutError:
        raise ServerLostError(f"{line!r} did not end within {timeout_s:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        raise ServerLostError(f"{line!r} ended with exit code {process.returncode}")
