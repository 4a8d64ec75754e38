"""What a user can cause, as one tree; the command line prints these as one line each.

Exit code 1: the input was understood and the work failed. 2: a file, key, value or option is wrong.

TrtMtpError                       1
├── InputError                    2
│   ├── UnreadableError
│   └── ParameterError            controller/gateway/openai/errors.py
├── DoesNotFitError               build/memory.py
├── CrashError, LoadTimeoutError  serve/triton.py
├── OverBudgetError               controller/accept/step.py
├── NoVariantError                controller/filters.py
├── ServerLostError               controller/calibrate/lost_server.py
├── GateFailedError               controller/rollout/gates.py
├── InconclusiveError             controller/rollout/context.py
├── LockLostError                 controller/rollout/store.py
├── OrderReceivedError            controller/rollout/runner.py
├── RefusedError, UnreachableError  controller/rollout/triton.py
└── RequestError                  controller/gateway/failure.py, which draws what is below it
"""

OUT_OF_PROCESSES = (
    "this machine lets it start no more threads or processes; raise the limit (`ulimit -u`, "
    "a container's --pids-limit, systemd's TasksMax)"
)


class TrtMtpError(Exception):
    """A failure to report in one sentence, without a traceback."""

    exit_code = 1


class InputError(TrtMtpError):
    """Wrong usage or bad input; the message names the file, key or value and what was expected."""

    exit_code = 2


class UnreadableError(InputError):
    """A file that the system doesn't give: the next try may be luckier."""


def is_out_of_processes(error: BaseException) -> bool:
    """Whether it is what Python, the kernel or a library in Rust says where no thread starts."""
    text = str(error)
    return "can't start new thread" in text or "Resource temporarily unavailable" in text


def is_panic(error: BaseException) -> bool:
    """Whether it is what Rust raises where it gives up, which is no Exception.

    >>> is_panic(ValueError())
    False
    """
    return type(error).__name__ == "PanicException"
