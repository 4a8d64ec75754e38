"""TensorRT-LLM's `draft_len_schedule`: one engine's draft length, by its own batch size."""

from bisect import bisect_left
from collections.abc import Mapping
from types import MappingProxyType

# The keys are the operator's. These are what a careful one would take, and as TensorRT-LLM needs
# it, they never reach 0.
EXAMPLE_SCHEDULE: Mapping[int, int] = MappingProxyType({4: 3, 8: 2, 1024: 1})


class BatchSchedule:
    """Draft lengths by the largest batch that they are for; beyond the last the last one holds.

    >>> schedule = BatchSchedule({4: 3, 8: 2, 1024: 1})
    >>> [schedule.draft_length(batch) for batch in (1, 4, 5, 9, 5000)]
    [3, 3, 2, 1, 1]
    """

    def __init__(self, lengths: Mapping[int, int] = EXAMPLE_SCHEDULE) -> None:
        self._bounds = sorted(lengths)
        self._lengths = [lengths[bound] for bound in self._bounds]

    def draft_length(self, batch: int) -> int:
        """The draft length of a step of `batch` requests."""
        return self._lengths[min(bisect_left(self._bounds, batch), len(self._bounds) - 1)]
