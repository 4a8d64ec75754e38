"""The list of draft lengths that a user asks for."""

from trt_mtp.errors import InputError

DEFAULT = "0,1,2,3,5"


def parse_draft_lengths(text: str, largest: int) -> tuple[int, ...]:
    """The draft lengths in `text`, ascending; raises InputError that names the wrong one.

    >>> parse_draft_lengths("3, 0,1", largest=15)
    (0, 1, 3)
    """
    lengths: list[int] = []
    for part in text.split(","):
        word = part.strip()
        if not word.removeprefix("-").isdecimal() or not word.isascii():
            raise InputError(
                f"--draft-lengths {text}: {word!r} is not an integer; expected a list as {DEFAULT}"
            )
        length = int(word)
        if length < 0:
            raise InputError(f"--draft-lengths {text}: {length} is negative; 0 is no speculation")
        if length > largest:
            raise InputError(
                f"--draft-lengths {text}: {length} is more than {largest}, the most this engine "
                f"can verify in one step"
            )
        if length in lengths:
            raise InputError(f"--draft-lengths {text}: {length} is there twice")
        lengths.append(length)
    return tuple(sorted(lengths))
