"""Watches the acceptance of a cell for a shift that stays."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trt_mtp.controller.acceptance import AcceptanceKey

MOST = 4.0  # standard deviations that one answer counts
SLACK = 0.5  # of them an answer, that are no shift
ALARM = 8.0  # of them in sum


@dataclass(frozen=True, slots=True)
class DriftAlarm:
    """A sustained shift of acceptance that made the learner forget most of a cell."""

    key: "AcceptanceKey"
    direction: str  # up | down
    num_observations: int  # answers since the cell's last alarm


@dataclass(slots=True)
class DriftWatch:
    """Page's two-sided cumulative sum over standardised residuals (Biometrika 41, 1954).

    Cells differ in how unlike their requests are, more so where tasks are guessed wrong. So the
    residuals' own variance, over some hundred answers, is the measure if it is larger than 1.
    """

    correlation: float  # of an answer's steps with each other
    up: float = 0.0
    down: float = 0.0
    num_observations: int = 0  # since the last alarm
    variance: float = 1.0

    def add(self, num_tried: float, num_accepted: float, chance: float) -> str:
        """The direction of an alarm that an answer raised, after which the sums begin anew.

        An empty string where it raised none. Of the answer's first drafts so many were expected to
        be accepted as `chance` says.
        """
        expected = chance * (1 - chance) * (1 / num_tried + self.correlation)
        z = (num_accepted / num_tried - chance) / math.sqrt(max(expected, 1e-6))
        scale = max(self.variance, 1.0)
        z = min(max(z / math.sqrt(scale), -MOST), MOST)
        self.variance += 0.01 * (scale * z * z - self.variance)
        self.num_observations += 1
        self.up = max(0.0, self.up + z - SLACK)
        self.down = max(0.0, self.down - z - SLACK)
        if max(self.up, self.down) <= ALARM:
            return ""
        direction = "up" if self.up > ALARM else "down"
        self.up, self.down, self.num_observations = 0.0, 0.0, 0
        return direction
