"""What a calibration measures: draft lengths that answer the same prompts, wherever they run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trt_mtp.controller.calibrate.load_client import Batch
from trt_mtp.controller.client import Prompt


@dataclass(frozen=True, slots=True)
class RigFacts:
    """What is known of a rig before it is measured."""

    draft_lengths: tuple[int, ...]  # ascending, 0 first
    max_concurrency: int | None  # beyond it requests wait; None where nobody says
    identity: Mapping[str, Any]  # must be equal for a run to go on with a journal
    fingerprint: str
    measured_on: Mapping[str, str]
    environment: Mapping[str, str]
    shared_device: bool  # one machine runs all draft lengths


class Rig(Protocol):
    """Servers under measurement, connected inside an event loop."""

    @property
    def facts(self) -> RigFacts:
        """What is known of it."""

    @property
    def notes(self) -> Sequence[str]:
        """What it doesn't tell, as far as one has seen."""

    async def answers(
        self, draft_length: int, prompts: Sequence[Prompt], concurrency: int
    ) -> Batch:
        """A whole batch of one draft length; raises ServerLostError if it is lost for good."""

    async def close(self) -> None:
        """End all connections."""
