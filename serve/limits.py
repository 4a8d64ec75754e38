"""Time limits after which a Triton server that runs is restarted."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits after which a running server is restarted."""

    answer_s: float = 30.0  # without an answer over gRPC or HTTP
    load_s: float = 120.0  # from a start until all models are ready


USUAL = Limits()
