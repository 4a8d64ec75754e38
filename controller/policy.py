"""Which variant a request goes to: filter, score, pick; and learning from what came of it.

A request's expected time on a variant is wait + prefill + N · T(K, B) / AL(task, K), with T the
step time at the load B it would then run at. Load decides first, because past some concurrency
every draft length loses; then the task.
"""

import itertools
import math
import random
import secrets
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from operator import attrgetter

from trt_mtp.controller.acceptance import (
    AcceptanceKey,
    AcceptanceLearner,
    DriftAlarm,
    Estimate,
    temperature_band,
)
from trt_mtp.controller.counts import MAX_POSITIONS
from trt_mtp.controller.decision import CandidateScore, Decision, VariantState
from trt_mtp.controller.outcome import Outcome
from trt_mtp.controller.profile import Profile
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.controller.task import TaskGuess, guess_task
from trt_mtp.controller.text_model import load_text_model
from trt_mtp.errors import InputError, TrtMtpError

__all__ = ["CandidateScore", "Decision", "NoVariantError", "Policy", "VariantState"]

CHARS_PER_TOKEN = 4.0
TYPICAL_ANSWER_TOKENS = 256  # max_tokens is a bound, not what an answer takes
MAX_HOMES = 4096  # conversations whose variant is remembered
MAX_EXPLORATION_LOSS = 0.25  # of a request's expected time
MIN_SHARE = 0.1  # tasks less likely than this neither count beside another nor learn
MAX_COUNT = 1e9  # of an answer's tokens, steps or seconds
TIE = 0.02  # shorter draft lengths win within the uncertainty, but never give away more

_FASTEST = attrgetter("total_s", "draft_length")
_SHALLOWEST = attrgetter("draft_length", "total_s")


class NoVariantError(TrtMtpError):
    """No hosted variant can take the request; the message says why each can't."""


# draft length, load, acceptance length, step_s, wait_s, prefill_s, total_s
_Time = tuple[int, int, float, float, float, float, float]


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
        self._homes: OrderedDict[str, str] = OrderedDict()
        self._last_length: dict[tuple[str, int], int] = {}

    def choose(
        self, features: RequestFeatures, variants: Sequence[VariantState], *, now_s: float
    ) -> Decision:
        """The variant for a request.

        Raises InputError for a hint that names no task or no hosted length, and NoVariantError
        when no variant can take the request.
        """
        guess = guess_task(features)
        expected = self._expect(guess, features)
        candidates = self._score(features, variants, expected)
        seed = self._random.getrandbits(32)
        picked, explored, why = self._pick(features, guess.task, candidates, expected, seed)
        if features.session_id:
            self._remember(features.session_id, picked.variant)
        return Decision(
            decision_id=f"{self._prefix}-{next(self._numbers):x}",
            variant=picked.variant,
            draft_length=picked.draft_length,
            task=guess.task,
            task_probabilities=guess.probabilities,
            temperature_band=temperature_band(features.temperature),
            thinking=features.thinking,
            reasons=(*guess.reasons, *why),
            candidates=candidates,
            explored=explored,
            seed=seed,
            now_s=now_s,
            session_id=features.session_id,
            tenant=features.tenant,
        )

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
            decision.tenant,
            decision.session_id,
        )
        if outcome.ttft_s is not None and outcome.num_steps > 1 and is_steady:
            seconds = outcome.duration_s - outcome.ttft_s
            seen = self.cost.observe(
                chosen.draft_length, chosen.load, seconds, outcome.num_steps - 1
            )
            self.num_rejected_outcomes += not seen
        return alarm

    def _expect(self, guess: TaskGuess, features: RequestFeatures) -> "Expected":
        band, thinking = temperature_band(features.temperature), features.thinking
        estimate, tenant, session = self.acceptance.estimate, features.tenant, features.session_id
        return Expected(
            [
                (share, estimate(AcceptanceKey(task, band, thinking), tenant, session))
                for task, share in _likely(guess.probabilities)
            ]
        )

    def _score(
        self, features: RequestFeatures, variants: Sequence[VariantState], expected: Expected
    ) -> tuple[CandidateScore, ...]:
        """Every variant, with its expected time or the reason that it can't serve."""
        hint = features.hint_draft_length
        if hint is not None and all(v.draft_length != hint for v in variants):
            hosted = ", ".join(str(k) for k in sorted({v.draft_length for v in variants}))
            raise InputError(f"draft_length is {hint}: expected auto or a hosted one ({hosted})")
        home = self._homes.get(features.session_id) if features.session_id else None
        num_tokens = features.num_prompt_tokens or int(features.num_chars / CHARS_PER_TOKEN)
        answer = max(1, min(features.max_tokens, TYPICAL_ANSWER_TOKENS))
        on_device = _running_by_device(variants) if self.profile.shared_device else None
        times = []
        for v in variants:
            moves = home is not None and home != v.name
            load = (v.num_running if on_device is None else on_device[v.device]) + 1
            times.append(self._time(v, load, expected, answer, num_tokens if moves else 0))
        asks = hint is not None or features.num_prompt_tokens is not None
        rejections = [
            ""
            if v.is_healthy and not v.is_full and not asks
            else _rejection(v, features, num_tokens)
            for v in variants
        ]
        return _with_scores(variants, rejections, times)

    def _time(
        self, v: VariantState, load: int, expected: Expected, answer: int, moved_tokens: int
    ) -> _Time:
        """The expected time on `v`, in parts, at the draft length that it would then have."""
        draft_length = v.length_with_one_more()
        length = expected.length(draft_length)
        step_s = self.cost.step_s(draft_length, load)
        answer_s = step_s / length * answer
        ahead = v.num_running + 1 - v.max_batch_size
        wait_s = ahead * answer_s / max(v.max_batch_size, 1) if ahead > 0 else 0.0
        prefill_s = moved_tokens / self._prefill_tokens_per_s
        total_s = wait_s + prefill_s + answer_s
        return draft_length, load, length, step_s, wait_s, prefill_s, total_s

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
            probe = _probe(usable, steady, expected, seed)
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

    def _remember(self, session_id: str, variant: str) -> None:
        self._homes[session_id] = variant
        self._homes.move_to_end(session_id)
        if len(self._homes) > MAX_HOMES:
            self._homes.popitem(last=False)


def outcome_problem(outcome: Outcome) -> str:
    """Why an outcome can't be learned from; an empty string when it can."""
    if outcome.finish_reason == "error":
        return "it failed"
    times = [outcome.duration_s] if outcome.ttft_s is None else [outcome.ttft_s, outcome.duration_s]
    if not all(math.isfinite(t) and t >= 0 for t in times) or times != sorted(times):
        return "its times can't be right"
    counts = (
        outcome.num_steps,
        outcome.num_draft_tokens,
        outcome.num_accepted_draft_tokens,
        outcome.num_output_tokens,
    )
    if min(counts) < 0:
        return "a count is negative"
    if max(counts) > MAX_COUNT or outcome.duration_s > MAX_COUNT:
        return "a number is beyond reason"
    positions = (outcome.num_steps, *outcome.accepted_per_position, 0)
    if any(a < b for a, b in itertools.pairwise(positions)):
        return "more drafts were accepted than were reached"
    return ""


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


def _running_by_device(variants: Sequence[VariantState]) -> Mapping[str, int]:
    """Requests in flight on each device that variants share."""
    found = Counter[str]()
    for variant in variants:
        found[variant.device] += variant.num_running
    return found


def _rejection(variant: VariantState, features: RequestFeatures, num_tokens: int) -> str:
    """Why a variant may not serve a request; an empty string when it may."""
    hint = features.hint_draft_length
    if hint is not None and variant.draft_length != hint:
        return f"is not of the draft length asked for ({hint})"
    if not variant.is_healthy:
        return "is not healthy"
    if variant.is_full:
        return f"is full ({variant.num_running} in flight)"
    # a length estimated from characters is too rough to refuse by: the engine will know
    if features.num_prompt_tokens and num_tokens >= variant.max_seq_len:
        return f"holds {variant.max_seq_len} tokens and the prompt has {num_tokens}"
    return ""


def _with_scores(
    variants: Sequence[VariantState], rejections: Sequence[str], times: Sequence[_Time]
) -> tuple[CandidateScore, ...]:
    """The candidates; raises NoVariantError where all are rejected."""
    usable = [time[-1] for time, rejected in zip(times, rejections, strict=True) if not rejected]
    if not usable:
        pairs = zip(variants, rejections, strict=True)
        why = "; ".join(f"{v.name} {rejected}" for v, rejected in pairs) or "none is hosted"
        raise NoVariantError(f"no variant can take this request: {why}")
    best = min(usable)
    return tuple(
        [
            CandidateScore(v.name, time[0], rejected=rejected)
            if rejected
            else CandidateScore(v.name, *time, best / time[-1])
            for v, rejected, time in zip(variants, rejections, times, strict=True)
        ]
    )  # fmt: skip


def _tie(shallow: CandidateScore, best: CandidateScore, expected: Expected) -> float:
    """The loss at which `shallow` is as good: what is uncertain between the two lengths."""
    uncertain = expected.deviation(best.draft_length) - expected.deviation(shallow.draft_length)
    return min(TIE, 0.5 * uncertain / best.acceptance_length)


def _probe(
    usable: list[CandidateScore], steady: CandidateScore, expected: Expected, seed: int
) -> CandidateScore | None:
    """Another draft length to try: one that may be the best, and loses little if it isn't.

    Where nothing is drafted, any length teaches, or acceptance that has risen would never be seen.
    """
    others = [
        c
        for c in usable
        if c.draft_length != steady.draft_length and c.score >= 1 - MAX_EXPLORATION_LOSS
    ]
    if not others:
        return None
    promising = [
        c
        for c in others
        if c.draft_length > steady.draft_length
        and (steady.draft_length == 0 or c.score * _optimism(c, expected) >= steady.score)
    ]
    choices = promising or [c for c in others if c.draft_length > 0]
    if steady.draft_length == 0 and choices:
        return min(choices, key=_SHALLOWEST)  # the cheapest that teaches
    return choices[seed % len(choices)] if choices else None


def _optimism(candidate: CandidateScore, expected: Expected) -> float:
    return 1 + 2 * expected.deviation(candidate.draft_length) / candidate.acceptance_length
