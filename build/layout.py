"""How `weights.bin` is laid out: what packing writes and the kernels read."""

FORMAT = 3  # of weights.bin and weights.json; part of the hash that names their folder
TILE = 64  # columns of a matrix that lie together: a tile is [in, TILE], the last one zero-padded


def tiled_size(inputs: int, outputs: int) -> int:
    """How many values a matrix [inputs, outputs] takes in tiles."""
    return -(-outputs // TILE) * TILE * inputs
