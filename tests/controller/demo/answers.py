"""Answers as the demo measures them."""

from trt_mtp.controller.client import TimedAnswer


def answer(
    duration_s: float,
    accepted: tuple[int, ...] = (),
    steps: int = 10,
    tokens: int = 20,
    variant: str = "",
) -> TimedAnswer:
    """An answer of `tokens` tokens that took `duration_s`."""
    return TimedAnswer(
        "text", tuple(range(tokens)), 0.1, duration_s, steps, accepted, variant, "coding",
        "d1" if variant else "",
    )  # fmt: skip
