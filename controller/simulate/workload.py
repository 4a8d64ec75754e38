"""A simulated workload: requests with acceptance drawn from the published spread, on one rig."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trt_mtp.controller.acceptance import prior_conditionals
from trt_mtp.controller.acceptance_estimate import acceptance_lengths
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.outcome import MeanLoad, Outcome
from trt_mtp.controller.profile import PUBLISHED_ACCEPTANCE, Profile
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.controller.tasks import TASKS

# Spread of first-draft acceptance between requests of one task. NInfer published an SD of 0.04
# (code) to 0.10 (structured) of acceptance at K = 3, which is 1.5 times that of the first draft.
SPREAD = dict.fromkeys(TASKS, 0.04) | {"coding": 0.027, "structured_output": 0.03}
TIME_NOISE = 0.03  # log SD of an answer's time

MIXES: Mapping[str, Mapping[str, float]] = {
    "code-creative": {"coding": 0.5, "writing": 0.3, "roleplay": 0.2},
    "chat": {"qa": 0.3, "writing": 0.15, "roleplay": 0.1, "humanities": 0.15, "stem": 0.1,
             "coding": 0.1, "multilingual": 0.1},
    "agent": {"coding": 0.55, "tool_call": 0.35, "structured_output": 0.1},
    "rag": {"rag": 0.6, "summarization": 0.25, "qa": 0.15},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """A request with its true acceptance, which no policy sees."""

    task: str
    num_tokens: int
    conditionals: tuple[float, ...]
    lengths: tuple[float, ...]  # AL(K)
    features: RequestFeatures
    prompt_tokens: int | None = None  # None: the contexts are those of the table of step times


@dataclass(slots=True)
class Workload:
    """Draws requests and their outcomes; all of it follows from `seed`.

    `guess_accuracy` is the share of requests whose task is guessed right; a wrong guess is another
    task of the mix. `acceptance` holds the true mean of each task.
    """

    cost: StepCost
    seed: int = 0
    guess_accuracy: float = 0.85
    mean_tokens: int = 250
    mean_prompt_tokens: float = 0.0  # 0: prompts are left out
    acceptance: Mapping[str, float] = field(default_factory=lambda: PUBLISHED_ACCEPTANCE)
    _random: random.Random = field(init=False)
    _numpy: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._numpy = np.random.default_rng(self.seed)

    def draw(self, mix: Mapping[str, float], task: str | None = None) -> SimulatedRequest:
        """The next request of a mix, or of one task; the length of answers is log-normal."""
        task = task or self._random.choices(list(mix), list(mix.values()))[0]
        guessed, others = task, [t for t in mix if t != task]
        if others and self._random.random() >= self.guess_accuracy:
            guessed = self._random.choice(others)
        mean, spread = self.acceptance[task], SPREAD[task]
        strength = mean * (1 - mean) / spread**2 - 1
        p = self._random.betavariate(mean * strength, (1 - mean) * strength)
        conditionals = prior_conditionals(min(max(p, 0.02), 0.995))
        num_tokens = max(8, int(self.mean_tokens * self._random.lognormvariate(-0.32, 0.8)))
        lengths, prompt_tokens = acceptance_lengths(conditionals), self._prompt_tokens()
        return SimulatedRequest(
            task,
            num_tokens,
            conditionals,
            lengths,
            _features(guessed, prompt_tokens),
            prompt_tokens,
        )

    def _prompt_tokens(self) -> int | None:
        """The length of prompts is log-normal, too."""
        if not self.mean_prompt_tokens:
            return None
        return max(1, int(self.mean_prompt_tokens * self._random.lognormvariate(-0.32, 0.8)))

    def seconds(self, request: SimulatedRequest, draft_length: int, load: int) -> float:
        """The expected time of an answer at a constant load."""
        steps = request.num_tokens / request.lengths[draft_length]
        return steps * self.cost.step_s(draft_length, load)

    def outcome(
        self, request: SimulatedRequest, draft_length: int, seconds: float | None = None,
        load: int = 1, parts: Sequence[tuple[int, float]] = (), ttft_s: float | None = None,
        mean_load: MeanLoad | None = None,
    ) -> Outcome:  # fmt: skip
        """The outcome that a variant would report, with noise in its counts and times.

        If a schedule changed the draft length, `parts` has each length with its steps.
        """
        made = [(k, round(steps)) for k, steps in parts if steps >= 0.5]
        if not made:
            made = [
                (draft_length, max(2, round(request.num_tokens / request.lengths[draft_length])))
            ]
        steps = sum(part for _, part in made)
        accepted = [0] * max(k for k, _ in made)
        for length, reached in made:
            for j, conditional in enumerate(request.conditionals[:length]):
                reached = int(self._numpy.binomial(reached, conditional))
                accepted[j] += reached
        if seconds is None:
            step_s = self.cost.step_s(draft_length, load)
            seconds = steps * step_s * self._random.lognormvariate(0, TIME_NOISE)
        ttft_s = seconds / steps if ttft_s is None else ttft_s + (seconds - ttft_s) / steps
        return Outcome(
            draft_length, steps, sum(k * part for k, part in made), sum(accepted), tuple(accepted),
            request.num_tokens, ttft_s, seconds, "stop", on_variant=mean_load,
        )  # fmt: skip


def _features(task: str, prompt_tokens: int | None) -> RequestFeatures:
    return RequestFeatures(
        num_chars=1000,
        temperature=0.7,
        max_tokens=1024,
        hint_task=task,
        num_prompt_tokens=prompt_tokens,
    )


def published_cost() -> StepCost:
    """The true step cost in simulations: the composite rig of profile.py."""
    return Profile().step_cost()
