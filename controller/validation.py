"""What pydantic found wrong, as the end of a sentence."""

from collections.abc import Iterable

from pydantic import ValidationError

from trt_mtp.files import nearest


def first_problem(error: ValidationError, known: Iterable[str], *, is_secret: bool = False) -> str:
    """The first problem: its key, its value unless that is secret, and what was expected.

    `known` are the keys that there are.
    """
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(str(problem['loc'][-1]), known)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key}: {message}" if is_secret else f"{key} is {problem['input']!r:.80}: {message}"
