"""What a user can cause, as one tree; the command line prints these as one line each.

TrtMtpError              exit code 1: the work was understood and failed
├── InputError           exit code 2: a file, key, value or option is wrong
└── (subclasses live beside the code that raises them)
"""


class TrtMtpError(Exception):
    """A failure to report in one sentence, without a traceback."""

    exit_code = 1


class InputError(TrtMtpError):
    """Wrong usage or bad input; the message names the file, key or value and what was expected."""

    exit_code = 2
