"""A deployment with known acceptance and step costs, which answers blocks without a server."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from trt_mtp.controller.acceptance import prior_conditionals
from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibrate.plan import next_block
from trt_mtp.controller.calibrate.results import Arm, Block, Results, Settings
from trt_mtp.controller.context_cost import NO_CONTEXT, ContextCost

PLAIN_STEP_S = 0.02


@dataclass(slots=True)
class World:
    """Acceptance p by task, R by draft length and concurrency, and noise of a step's time.

    Noise is the standard deviation of a logarithm: of each answer, of all answers of a batch
    together, and of what each cell has beyond AL / R, which is part of its truth.
    """

    acceptance: Mapping[str, float]
    ratios: Mapping[int, Mapping[int, float]]
    noise: float = 0.05
    batch_noise: float = 0.0
    interaction: float = 0.0
    num_prompts: int = 32
    num_tokens: int = 200
    seed: int = 0
    context: ContextCost = NO_CONTEXT  # on top of the ratios, which hold where prompts are short
    failing: frozenset[tuple[str, int]] = frozenset()  # task, draft length
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        """Seed the noise."""
        self._random = random.Random(self.seed)

    def settings(self, **changes: object) -> Settings:
        """A run over all of it."""
        loads = tuple(sorted({load for curve in self.ratios.values() for load in curve}))
        values: dict[str, object] = {
            "num_prompts": tuple((task, self.num_prompts) for task in self.acceptance),
            "draft_lengths": (0, *sorted(self.ratios)),
            "concurrencies": loads,
        }
        return Settings(**{**values, **changes})  # type: ignore[arg-type]

    def true_speedup(self, task: str, draft_length: int, concurrency: int) -> float:
        """AL / R."""
        if draft_length == 0:
            return 1.0
        lengths = acceptance_lengths(prior_conditionals(self.acceptance[task]))
        return lengths[draft_length] / self.ratio(task, draft_length, concurrency)

    def ratio(self, task: str, draft_length: int, concurrency: int) -> float:
        """A cell's step in plain steps."""
        if draft_length == 0:
            return 1.0
        own = random.Random(f"{self.seed}/{task}/{draft_length}/{concurrency}/cell")
        return self.ratios[draft_length][concurrency] * own.lognormvariate(0, self.interaction)

    def arm(self, block: Block, draft_length: int) -> Arm:
        """The answers of one draft length to a block."""
        pace = self._random.lognormvariate(0, self.batch_noise)
        answers = tuple(self._answer(block, n, draft_length, pace) for n in block.prompts)
        wall = sum(answer.ttft_s + answer.decode_s for answer in answers) / block.concurrency
        return Arm(block, draft_length, answers, wall)

    def _answer(self, block: Block, prompt: int, draft_length: int, pace: float) -> Answer:
        if (block.task, draft_length) in self.failing:
            return Answer(error="the engine broke")
        # one prompt's drafts are the same whatever the load
        draw = random.Random(f"{self.seed}/{block.task}/{prompt}/{draft_length}")
        p = min(max(self.acceptance[block.task] + draw.gauss(0, 0.03), 0.02), 0.99)
        conditionals = prior_conditionals(p)[:draft_length]
        accepted, left, steps = [0] * draft_length, self.num_tokens, 0
        while left > 0:
            steps, left = steps + 1, left - 1
            for position, conditional in enumerate(conditionals):
                if draw.random() >= conditional:
                    break
                accepted[position] += 1
                left -= 1
        cost = self.ratio(block.task, draft_length, block.concurrency)
        step_s = PLAIN_STEP_S * (1 + 0.1 * block.concurrency) * cost * pace
        in_flight = block.concurrency * block.context_tokens
        step_s = self.context.step_s(step_s, draft_length, 0, in_flight)
        step_s *= self._random.lognormvariate(0, self.noise)
        tokens = self.num_tokens + 1 - left
        return Answer(
            0.1,
            steps * step_s,
            1,
            tokens,
            50 + prompt + block.context_tokens,
            steps,
            tuple(accepted),
            (step_s,) * 3,
        )


def run(
    world: World, settings: Settings, max_blocks: int = 1000, budget_s: float = math.inf
) -> Results:
    """Measure as a calibration does, until the plan has nothing more to ask."""
    results = Results()
    for _ in range(max_blocks):
        block = next_block(settings, results) if results.elapsed_s < budget_s else None
        if block is None:
            break
        for length in random.Random(block.number).sample(
            block.draft_lengths, len(block.draft_lengths)
        ):
            results.add(world.arm(block, length))
    return results
