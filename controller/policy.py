"""Which variant a request goes to: filter, score, pick; and learning from what came of it.

A request's expected time on a variant is wait + prefill + N · T(K, B) / AL(task, K), with T the
step time at the load B it would then run at. Load decides first, because past some concurrency
every draft length loses; then the task.
"""

import itertools
import math
import random
import secrets
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple, Protocol

from trt_mtp.controller.acceptance import AcceptanceKey, AcceptanceLearner, temperature_band
from trt_mtp.controller.acceptance_estimate import Estimate
from trt_mtp.controller.context_cost import answer_tokens, mean_context_tokens
from trt_mtp.controller.decision import CandidateScore, Decision, VariantState
from trt_mtp.controller.drift import DriftAlarm
from trt_mtp.controller.fair_table import FairTable
from trt_mtp.controller.filters import rejections
from trt_mtp.controller.outcome import Outcome, outcome_problem
from trt_mtp.controller.position_counts import MAX_POSITIONS
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.controller.task import TaskGuess, guess_task
from trt_mtp.controller.text_model import load_text_model

MAX_HOMES = 4096  # conversations whose variant is remembered
MAX_EXPLORATION_LOSS = 0.25  # of a request's expected time
UNBOUNDED = 0.1  # of probes: whatever they lose, or what has changed would never be seen
MIN_SHARE = 0.1  # tasks less likely than this neither count beside another nor learn
TIE = 0.02  # shorter draft lengths win within the uncertainty, but never give away more

_FASTEST = attrgetter("total_s", "draft_length")
_SHALLOWEST = attrgetter("draft_length", "total_s")


class RoutingPolicy(Protocol):
    """What chooses variants, and learns."""

    def choose(
        self, features: RequestFeatures, variants: Sequence[VariantState], *, now_s: float
    ) -> Decision:
        """The variant for a request; raises TrtMtpError when none can take it."""

    def home(self, session_id: str | None) -> str:
        """The variant that a conversation's last request went to; empty if none is known."""

    def update(self, decision: Decision, outcome: Outcome) -> DriftAlarm | None:
        """Learn from a finished request; the drift alarm that it raised, if any."""


class _Time(NamedTuple):
    """A request's expected time on a variant, in the parts that a CandidateScore has."""

    draft_length: int
    load: int
    context_tokens: float
    acceptance_length: float
    step_s: float
    wait_s: float
    prefill_s: float
    total_s: float


class Expected:
    """Acceptance of a request whose task is only likely: what averages is the time per token."""

    __slots__ = ("_parts", "_total")

    def __init__(self, parts: list[tuple[float, Estimate]]) -> None:
        self._parts = parts
        self._total = sum([share for share, _ in parts])

    def length(self, draft_length: int) -> float:
        """The acceptance length."""
        k = draft_length if draft_length < MAX_POSITIONS else MAX_POSITIONS
        if len(self._parts) == 1:
            return self._parts[0][1].lengths[k]
        return self._total / sum([share / e.lengths[k] for share, e in self._parts])

    def deviation(self, draft_length: int) -> float:
        """How uncertain it is, one standard deviation."""
        k = min(draft_length, MAX_POSITIONS)
        return sum([share * e.deviations[k] for share, e in self._parts]) / self._total


class Policy:
    """Chooses variants and learns from outcomes. One thread at a time.

    `seed` fixes every random choice; `replica` names this gateway in merged state.
    """

    def __init__(
        self, profile: Profile | None = None, *, seed: int = 0, replica: str = "local"
    ) -> None:
        self.profile = profile or Profile()
        self.cost = self.profile.step_cost()
        self.acceptance = AcceptanceLearner(
            self.profile.priors(), replica, self.profile.decay_ratio
        )
        self.acceptance.merge(self.profile.learned())
        self.num_rejected_outcomes = 0
        self._prefill_tokens_per_s = self.profile.prefill_tokens_per_s
        load_text_model()  # now, not in the first request
        self._random = random.Random(seed)
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._homes: dict[str, str] = {}
        self._known_homes = FairTable(MAX_HOMES)
        self._last_length: dict[tuple[str, int], int] = {}

    def choose(
        self, features: RequestFeatures, variants: Sequence[VariantState], *, now_s: float
    ) -> Decision:
        """The variant for a request.

        Raises InputError for a hint that names no task or no hosted length, and NoVariantError
        when no variant can take the request.
        """
        rejected = rejections(features, variants)
        guess = guess_task(features)
        expected = self._expect(guess, features)
        times = self._times(features, variants, expected)
        candidates = _with_scores(variants, rejected, times)
        seed = self._random.getrandbits(32)
        picked, explored, why = self._pick(features, guess.task, candidates, expected, seed)
        if features.session_id:
            self._remember(features.session_id, picked.variant, features.tenant)
        return Decision(
            decision_id=f"{self._prefix}-{next(self._numbers):x}",
            variant=picked.variant,
            draft_length=picked.draft_length,
            task=guess.task,
            task_probabilities=guess.probabilities,
            temperature_band=temperature_band(features.temperature),
            thinking=bool(features.thinking),
            reasons=(*guess.reasons, *why),
            candidates=candidates,
            explored=explored,
            seed=seed,
            now_s=now_s,
            session_id=features.session_id,
            tenant=features.tenant,
            app=features.app,
            prompt_tokens=features.prompt_tokens,
        )

    def home(self, session_id: str | None) -> str:
        """The variant that a conversation's last request went to; empty if none is known."""
        return self._homes.get(session_id, "") if session_id else ""

    def update(self, decision: Decision, outcome: Outcome) -> DriftAlarm | None:
        """Learn from a finished request; an outcome that can't be true is counted and ignored.

        Returns the drift alarm that it raised, if any.
        """
        if outcome_problem(outcome):
            self.num_rejected_outcomes += 1
            return None
        chosen = decision.chosen
        if outcome.draft_length != chosen.draft_length:
            self.num_rejected_outcomes += 1
            return None
        shares = {
            AcceptanceKey(task, decision.temperature_band, decision.thinking): probability
            for task, probability in _likely(decision.task_probabilities)
        }
        accepted, is_steady = outcome.accepted_per_position, _kept_its_length(outcome)
        alarm = self.acceptance.update(
            shares,
            outcome.num_steps,
            accepted[: chosen.draft_length] if is_steady else accepted[:1],
            outcome.cut_after,
            decision.tenant,
            decision.session_id,
            decision.app,
        )
        if outcome.ttft_s is not None and outcome.num_steps > 1 and is_steady:
            self.num_rejected_outcomes += not self._learn_cost(chosen, outcome, outcome.ttft_s)
        return alarm

    def _learn_cost(self, chosen: CandidateScore, outcome: Outcome, ttft_s: float) -> bool:
        """Learn from an answer's time, at the load that it ran at; False if it can't be right."""
        seconds, steps = outcome.duration_s - ttft_s, outcome.num_steps - 1
        ran_at = outcome.on_device if self.profile.shared_device else outcome.on_variant
        load, context_tokens = float(chosen.load), chosen.context_tokens
        if ran_at is not None:
            load, context_tokens = ran_at.requests, ran_at.context_tokens
        return self.cost.observe(chosen.draft_length, load, seconds, steps, context_tokens)

    def _expect(self, guess: TaskGuess, features: RequestFeatures) -> "Expected":
        band, thinking = temperature_band(features.temperature), bool(features.thinking)
        keys = features.tenant, features.session_id, features.app
        return Expected(
            [
                (share, self.acceptance.estimate(AcceptanceKey(task, band, thinking), *keys))
                for task, share in _likely(guess.probabilities)
            ]
        )

    def _times(
        self, features: RequestFeatures, variants: Sequence[VariantState], expected: Expected
    ) -> "list[_Time]":
        """The expected time on every variant."""
        home = self._homes.get(features.session_id) if features.session_id else None
        num_tokens = features.prompt_tokens
        answer, own_tokens = answer_tokens(features), mean_context_tokens(features)
        in_flight = _on_devices(variants) if self.profile.shared_device else _on_variants(variants)
        times = []
        for v, (others, context_tokens) in zip(variants, in_flight, strict=True):
            moves = home is not None and home != v.name
            if context_tokens is None:
                context_tokens = others * self.cost.context.at_tokens
            load = 1 + others, context_tokens + own_tokens
            times.append(self._time(v, load, expected, answer, num_tokens if moves else 0))
        return times

    def _time(
        self, v: VariantState, at: tuple[int, float], expected: Expected, answer: int,
        moved_tokens: int,
    ) -> _Time:  # fmt: skip
        """The expected time on `v`, in parts, at the draft length that it would then have.

        `at` are the requests in flight on its device and their tokens, with this one's.
        """
        load, context_tokens = at
        draft_length = v.length_with_one_more()
        length = expected.length(draft_length)
        step_s = self.cost.step_s(draft_length, load, context_tokens)
        answer_s = step_s / length * answer
        ahead = v.num_running + 1 - v.max_batch_size
        wait_s = ahead * answer_s / max(v.max_batch_size, 1) if ahead > 0 else 0.0
        prefill_s = moved_tokens / self._prefill_tokens_per_s
        total_s = wait_s + prefill_s + answer_s
        return _Time(draft_length, load, context_tokens, length, step_s, wait_s, prefill_s, total_s)

    def _pick(
        self,
        features: RequestFeatures,
        task: str,
        candidates: tuple[CandidateScore, ...],
        expected: Expected,
        seed: int,
    ) -> tuple[CandidateScore, bool, tuple[str, ...]]:
        """The candidate to serve, whether it was taken to learn, and the reasons."""
        usable = [c for c in candidates if not c.rejected]
        best = min(usable, key=_FASTEST)
        if features.hint_draft_length is not None:
            return best, False, ("hint: the request names its draft length",)
        if len(usable) == 1:
            return best, False, ("the only variant that can take it",)
        steady, why = self._steady(task, usable, best, expected)
        if features.latency_class != "strict" and seed < self.profile.exploration * 2**32:
            is_bounded = seed >= UNBOUNDED * self.profile.exploration * 2**32
            probe = self._probe(usable, steady, expected, is_bounded)
            if probe is not None:
                return probe, True, (f"probing K={probe.draft_length} to learn",)
        self._last_length[task, best.load.bit_length()] = steady.draft_length
        return steady, False, (why,)

    def _steady(
        self, task: str, usable: list[CandidateScore], best: CandidateScore, expected: Expected
    ) -> tuple[CandidateScore, str]:
        """The best candidate, or one as good: the last draft length, or a shorter one."""
        last = self._last_length.get((task, best.load.bit_length()))
        if last is not None and last != best.draft_length:
            floor = 1 - self.profile.hysteresis
            same = [c for c in usable if c.draft_length == last and c.score >= floor]
            if same:
                return min(same, key=_FASTEST), f"K={last} as before: within hysteresis"
        ties = [
            c
            for c in usable
            if c.draft_length < best.draft_length
            and c.score >= 1 - TIE
            and c.score >= 1 - _tie(c, best, expected)
        ]
        if ties:
            tied = min(ties, key=_SHALLOWEST)
            return tied, f"K={tied.draft_length} ties with K={best.draft_length}: shorter wins"
        return best, f"K={best.draft_length} finishes first at load {best.load}"

    def _probe(
        self,
        usable: list[CandidateScore],
        steady: CandidateScore,
        expected: Expected,
        is_bounded: bool,
    ) -> CandidateScore | None:
        """Another draft length to try: the one that may be fastest, if it loses little.

        That is optimism in the face of uncertainty (Lai and Robbins, Advances in Applied
        Mathematics 6, 1985), over acceptance and cost together.
        """
        floor = 1 - MAX_EXPLORATION_LOSS if is_bounded else 0.0
        others = [c for c in usable if c.draft_length != steady.draft_length and c.score >= floor]
        if not others:
            return None
        return max(others, key=lambda c: c.score * self._optimism(c, steady, expected))

    def _optimism(
        self, candidate: CandidateScore, steady: CandidateScore, expected: Expected
    ) -> float:
        """How many times as fast it may be, two standard deviations of AL and of R up."""
        relative = expected.deviation(candidate.draft_length) / candidate.acceptance_length
        relative -= expected.deviation(steady.draft_length) / steady.acceptance_length
        cost = self.cost.deviation_between(
            (candidate.draft_length, candidate.load), (steady.draft_length, steady.load)
        )
        return math.exp(2 * math.hypot(relative, cost))

    def _remember(self, session_id: str, variant: str, tenant: str | None) -> None:
        self._homes[session_id] = variant
        gone = self._known_homes.use(tenant, session_id)
        if gone is not None:
            self._homes.pop(gone, None)


def _likely(probabilities: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
    """The tasks that count: at most three, the first of them always."""
    if len(probabilities) == 1:
        return probabilities
    return probabilities[:1] + tuple([p for p in probabilities[1:3] if p[1] >= MIN_SHARE])


def _kept_its_length(outcome: Outcome) -> bool:
    """Whether all steps drafted as much as was decided, give or take one step at an end.

    Under a schedule another batch is another draft length. Then the time is of no one length, and
    only the first position was tried in every step. No drafts reported says nothing against it.
    """
    drafted = outcome.num_draft_tokens
    wanted = outcome.num_steps * outcome.draft_length
    return not drafted or abs(drafted - wanted) <= outcome.draft_length


def _on_variants(variants: Sequence[VariantState]) -> list[tuple[int, float | None]]:
    """Requests in flight on each variant, and the tokens in their caches; None: not known."""
    return [(v.num_running, v.context_tokens) for v in variants]


def _on_devices(variants: Sequence[VariantState]) -> list[tuple[int, float | None]]:
    """The same on each variant's device, which it shares with others, offered or not.

    Contexts that are not known are taken to be as long as the others there.
    """
    num, num_known, tokens = Counter[str](), Counter[str](), Counter[str]()
    for v in variants:
        num[v.device] += v.num_running
        if v.context_tokens is not None:
            num_known[v.device] += v.num_running
            tokens[v.device] += v.context_tokens  # type: ignore[assignment]
    all_of = [max(num[v.device], v.num_on_device) for v in variants]
    return [
        (each, each * tokens[v.device] / num_known[v.device] if num_known[v.device] else None)
        for v, each in zip(variants, all_of, strict=True)
    ]


def _with_scores(
    variants: Sequence[VariantState], rejections: Sequence[str], times: Sequence[_Time]
) -> tuple[CandidateScore, ...]:
    """The candidates, those that may serve compared with the best of them."""
    pairs = zip(times, rejections, strict=True)
    best = min(time.total_s for time, rejected in pairs if not rejected)
    return tuple(
        [
            CandidateScore(v.name, time.draft_length, rejected=rejected)
            if rejected
            else CandidateScore(v.name, *time, best / time.total_s)
            for v, rejected, time in zip(variants, rejections, times, strict=True)
        ]
    )  # fmt: skip


def _tie(shallow: CandidateScore, best: CandidateScore, expected: Expected) -> float:
    """The loss at which `shallow` is as good: what is uncertain between the two lengths."""
    uncertain = expected.deviation(best.draft_length) - expected.deviation(shallow.draft_length)
    return min(TIE, 0.5 * uncertain / best.acceptance_length)
