"""Of the double: the place of this process among those that were started together."""

import os

SIZE, RANK = "TENSORRT_LLM_DOUBLE_MPI_SIZE", "TENSORRT_LLM_DOUBLE_MPI_RANK"


def global_mpi_size() -> int:
    """How many there are."""
    return int(os.environ.get(SIZE, "1"))


def global_mpi_rank() -> int:
    """Which this is."""
    return int(os.environ.get(RANK, "0"))
