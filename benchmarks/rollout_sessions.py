"""Do the gates of a rollout keep their promise with conversations, and how soon do they find what?

`python -m benchmarks.rollout_sessions [--json] [--short]`

First, false aborts: equal canaries of 5% of the sessions, which are as unlike as conversations are
(requests by Zipf's law with exponent 1, log speed of a session with SD 0.3, of a request 0.1), and
equal canaries that get everything after 200 stable requests, at 2 % errors. Aimed at: at most 1 %.
Then, among 20,000 sessions of one request each, the canary requests until a worse canary is found.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks._report import arguments, print_report
from trt_mtp.controller.rollout.gates import GateKeeper, Requests
from trt_mtp.controller.rollout.session_cap import SessionCap
from trt_mtp.controller.rollout.spec import Gates

SHARE = 0.05  # of sessions that are the canary's
WINDOW = 800  # requests of both sides
SESSION_SD, REQUEST_SD, HEAVY_SD = 0.3, 0.1, 0.8
LOAD_SD = 0.15

Random = np.random.Generator


@dataclass(frozen=True, slots=True)
class Worse:
    """How the canary differs: factors of speed, TTFT and acceptance; SD of requests; errors."""

    speed: float = 1.0
    ttft: float = 1.0
    acceptance: float = 1.0
    request_sd: float = REQUEST_SD
    errors: tuple[float, float] = (0.002, 0.002)  # stable, canary


def draw(random: Random, offsets: Any, load: float, is_canary: bool, worse: Worse) -> Requests:
    """One task's requests, one per offset of log speed."""
    num = len(offsets)
    noise = np.exp(offsets + random.normal(0, worse.request_sd, num)) / load
    factor = worse if is_canary else Worse()
    acceptance = 2.5 * np.exp(offsets / 2 + random.normal(0, worse.request_sd, num))
    return Requests(
        task=np.zeros(num),
        is_error=(random.random(num) < worse.errors[is_canary]).astype(float),
        ttft_s=0.1 * load * random.lognormal(0, HEAVY_SD, num) * factor.ttft,
        tpot_s=0.02 / noise / factor.speed,
        tok_s=50 * noise * factor.speed,
        acceptance_length=acceptance * factor.acceptance,
    )


def rollout(seed: int, num_sessions: int, worse: Worse, num_windows: int) -> int | None:
    """The canary requests after which it was aborted; None if it never was.

    Without sessions (0) every request stands for itself.
    """
    random, keeper, cap = np.random.default_rng(seed), GateKeeper(Gates()), SessionCap()
    speed = random.normal(0, SESSION_SD, max(num_sessions, 1))
    is_canary = random.random(max(num_sessions, 1)) < SHARE
    popularity = 1 / np.arange(1, max(num_sessions, 1) + 1)
    popularity /= popularity.sum()
    num_canary = 0
    for _ in range(num_windows):
        if num_sessions:
            sessions = random.choice(num_sessions, WINDOW, p=popularity)
            mine, offsets = is_canary[sessions], speed[sessions]
            kept = np.array([cap.admits(str(session)) for session in sessions])
        else:
            mine, offsets = random.random(WINDOW) < SHARE, np.zeros(WINDOW)
            kept = np.ones(WINDOW, bool)
        load = random.lognormal(0, LOAD_SD)
        sides = [draw(random, offsets[kept & (mine == side)], load, side, worse)
                 for side in (True, False)]  # fmt: skip
        num_canary += int(mine.sum())
        keeper.add(*sides)
        if keeper.failed():
            return num_canary
    return None


def alone(seed: int, rate: float, num_before: int, num_windows: int) -> int | None:
    """As `rollout`, where the canary gets everything after `num_before` stable requests."""
    random, keeper = np.random.default_rng(seed), GateKeeper(Gates())
    worse = Worse(errors=(rate, rate))
    none = np.zeros(0)
    keeper.add(draw(random, none, 1.0, True, worse),
               draw(random, np.zeros(num_before), 1.0, False, worse))  # fmt: skip
    for window in range(num_windows):
        keeper.add(draw(random, np.zeros(200), 1.0, True, worse),
                   draw(random, none, 1.0, False, worse))  # fmt: skip
        if keeper.failed():
            return 200 * (window + 1)
    return None


def row(name: str, ends: list[int | None]) -> dict[str, Any]:
    """One line: how many were aborted, and after how many canary requests."""
    aborted = [end for end in ends if end is not None]
    median = statistics.median(aborted) if len(aborted) > len(ends) / 2 else None
    return {"case": name, "rollouts": len(ends), "aborted": len(aborted), "requests_p50": median}


def false_aborts(num: int) -> Iterator[dict[str, Any]]:
    """Canaries that are as good."""
    for sessions in (200, 2000, 20_000, 0):
        name = f"equal, {sessions:,} sessions" if sessions else "equal, without sessions"
        yield row(name, [rollout(seed, sessions, Worse(), 60) for seed in range(num)])
    yield row("equal, alone, 2 % errors", [alone(s, 0.02, 200, 40) for s in range(2 * num)])


def detections(num: int) -> Iterator[dict[str, Any]]:
    """Canaries that are worse."""
    cases = {
        **{f"{d:.0%} slower, SD {sd}": Worse(speed=1 - d, request_sd=sd)
           for sd in (0.1, 0.2, 0.4) for d in (0.05, 0.1, 0.2)},
        "TTFT +10%, heavy tail": Worse(ttft=1.1),
        "acceptance -5%": Worse(acceptance=0.95),
        "errors 0.2 to 2%": Worse(errors=(0.002, 0.02)),
    }  # fmt: skip
    for name, worse in cases.items():
        yield row(name, [rollout(1000 + seed, 0, worse, 200) for seed in range(num)])


def main() -> None:
    """Print both tables."""
    options = arguments("What a rollout's gates promise.", "a tenth of the rollouts")
    table = [*false_aborts(10 if options.short else 100), *detections(3 if options.short else 15)]
    lines = [f"{'canary':<28}{'aborted':>14}{'canary requests, median':>26}"]
    lines += [f"{r['case']:<28}{r['aborted']:>6} of {r['rollouts']:>4}"
              f"{r['requests_p50'] or '-':>26}" for r in table]  # fmt: skip
    print_report(options.json, {"rows": table}, lines)


if __name__ == "__main__":
    main()
