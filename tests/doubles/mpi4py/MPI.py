"""Of the double."""

from tensorrt_llm._utils import global_mpi_size


class _World:
    def Get_size(self) -> int:
        size: int = global_mpi_size()
        return size


COMM_WORLD = _World()
