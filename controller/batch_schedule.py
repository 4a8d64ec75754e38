"""TensorRT-LLM's `draft_len_schedule`: one engine's draft length, by its own batch size."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# The operator chooses the keys. These are what a careful one would choose; as TensorRT-LLM needs
# it, they never reach 0.
EXAMPLE_SCHEDULE: Mapping[int, int] = MappingProxyType({4: 3, 8: 2, 1024: 1})


@dataclass(frozen=True, slots=True)
class BatchSchedule:
    """Draft lengths by their largest batch; the last one also holds beyond its batch.

    >>> schedule = BatchSchedule.of({4: 3, 8: 2, 1024: 1})
    >>> [schedule.draft_length(batch) for batch in (1, 4, 5, 9, 5000)]
    [3, 3, 2, 1, 1]
    """

    steps: tuple[tuple[int, int], ...]  # (largest batch, draft length), ascending, at least one

    @classmethod
    def of(cls, lengths: Mapping[int, int]) -> "BatchSchedule":
        """The schedule in a mapping of largest batches to draft lengths."""
        return cls(tuple(sorted(lengths.items())))

    @classmethod
    def from_json(cls, text: str) -> "BatchSchedule | None":
        """The schedule in a Triton model's parameter; None if it holds none."""
        try:
            schedule = {int(bound): int(length) for bound, length in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        is_one = schedule and min(schedule) >= 1 and min(schedule.values()) >= 0
        return cls.of(schedule) if is_one else None

    def draft_length(self, batch: int) -> int:
        """The draft length of a step of `batch` requests."""
        for bound, length in self.steps:
            if batch <= bound:
                return length
        return self.steps[-1][1]
