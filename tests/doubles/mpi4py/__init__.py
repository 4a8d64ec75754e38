"""A double of mpi4py: what a leader and its workers ask for."""
