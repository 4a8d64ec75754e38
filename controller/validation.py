"""The first error of pydantic, as the end of a sentence."""

from collections.abc import Iterable

from pydantic import ValidationError

from trt_mtp.files import nearest


def first_problem(error: ValidationError, known: Iterable[str], *, is_secret: bool = False) -> str:
    """The first problem: its key, its value unless that is secret, and what was expected.

    `known` are the valid keys.
    """
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key:.80}{nearest(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"the key {key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if is_secret or problem["type"] == "value_error":  # which says what the value is
        return f"{key}: {message}"
    return f"{key} is {problem['input']!r:.80}: {message}"
