"""Of the double."""

from typing import Any


class MpiCommSession:
    """A session over ranks that were started together."""

    def __init__(self, comm: Any, n_workers: int) -> None:
        self.comm, self.n_workers = comm, n_workers
