"""Of the double."""

from typing import Any


class MPICommExecutor:
    """Where a worker waits; this one's leader ends at once."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        return None
