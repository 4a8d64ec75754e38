"""Call a function in a process of its own, with the Python that a variant's record names."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from trt_mtp.errors import OUT_OF_PROCESSES, InputError, TrtMtpError, is_out_of_processes
from trt_mtp.parent import die_with_parent
from trt_mtp.serve.processes import descendants, kill_group, without_ctrl_c

Result = TypeVar("Result")
# our own Python gets our paths; another one has an environment with trt-mtp, and keeps its paths
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]) or sys.path; "
BOOT += "from trt_mtp.serve.apart import main; main(sys.argv[2])"


def call_apart(
    python: str | None,
    function: Callable[..., Result],
    *arguments: object,
    what: str,
    timeout_s: float,
) -> Result:
    """`function(*arguments)`, run by `python`, or by ours without one.

    Raises what it raises of TrtMtpError, and TrtMtpError when its process ends before the result or
    takes longer than `timeout_s`; `what` begins the sentence.
    """
    with tempfile.TemporaryDirectory(prefix="trt-mtp-apart-") as folder:
        job = Path(folder) / "job"
        job.write_bytes(pickle.dumps((function, arguments)))
        paths = json.dumps([] if python else sys.path)
        environment = {
            name: value for name, value in os.environ.items() if not python or name != "PYTHONPATH"
        }
        with without_ctrl_c():
            process = subprocess.Popen(
                [python or sys.executable, "-P", "-c", BOOT, paths, str(job)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # the result has another way
                env=environment,
                start_new_session=True,  # a group of its own, so that one kill reaches all
                preexec_fn=die_with_parent(),
            )
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TrtMtpError(f"{what} took longer than {timeout_s:.0f} s") from None
        finally:  # also what an engine started and left, as vLLM does when it is killed
            kill_group(process, tuple(descendants(process.pid)))
        answer = job.with_name("answer")
        if not answer.exists():
            raise TrtMtpError(f"the process of {what} ended with code {process.returncode}")
        result, error, is_input = pickle.loads(answer.read_bytes())
        if error:
            raise (InputError if is_input else TrtMtpError)(error)
        returned: Result = result
        return returned


def main(job: str) -> None:
    """The other process: run the job in the file and write its answer beside it."""
    function, arguments = pickle.loads(Path(job).read_bytes())
    answer: tuple[Any, str, bool]
    try:
        answer = (function(*arguments), "", False)
    except TrtMtpError as error:
        answer = (None, str(error), isinstance(error, InputError))
    except BaseException as error:  # what Rust raises is no Exception
        if not is_out_of_processes(error):
            raise
        answer = (None, OUT_OF_PROCESSES, False)
    temporary = Path(job).with_name("unfinished")
    temporary.write_bytes(pickle.dumps(answer))
    temporary.rename(Path(job).with_name("answer"))
