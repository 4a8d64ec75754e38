"""The whole chain on this machine, measured: build, serve, gateway, and a table per task.

Every held-out prompt goes to each variant and to the gateway, in random order, over one stock
tritonclient stream each. Answers of the CPU engine are drawn at temperature 0.7 with a fixed seed,
so all targets must give the same tokens, and the time of an answer is all that differs. Those of
other engines are greedy, which part at near ties and late; how many did is told.
"""

import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_mtp.controller.calibrate.prompt_sets import read_prompt_set
from trt_mtp.controller.client import Prompt, StreamClient, TimedAnswer
from trt_mtp.controller.demo.reasons import Decisions, choice_reasons, read_decisions
from trt_mtp.controller.demo.report import add_load, one_at_a_time, profile_from, write_report
from trt_mtp.controller.profile import write_profile
from trt_mtp.controller.up import build, child, read_ready_line
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.progress import Meter
from trt_mtp.serve.serving import resolve_variants, serving
from trt_mtp.serve.verify import is_exact

TEMPERATURE = 0.7
SEED = 20261123
RESAMPLES = 1000  # of the bootstrap
PUBLIC_MODEL = "qwen_mtp"

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Size:
    """How much to measure, per task."""

    calibration_prompts: int
    prompts: int
    rounds: int  # each answer is timed this often, the median counts
    load_s: float  # for measuring variants under load


FULL = Size(calibration_prompts=8, prompts=20, rounds=2, load_s=40.0)
SHORT = Size(calibration_prompts=2, prompts=4, rounds=1, load_s=10.0)

Prompts = Mapping[str, Sequence[Prompt]]  # by task
Answers = dict[str, list[list[TimedAnswer]]]  # by target: for each prompt, one a round


def run_demo(
    checkpoint: str,
    draft_lengths: str,
    engines: Path,
    size: Size,
    meter: Meter,
    engine: str = "auto",
    vllm_python: Path | None = None,
) -> dict[str, Any]:
    """Build, serve, measure and stop; the JSON that `trt-mtp demo --json` prints.

    Raises InputError for what the user can set right, TrtMtpError for what failed.
    """
    prompt_set = read_prompt_set(str(Path(checkpoint) / "prompts.jsonl"))
    meter.say(f"building {checkpoint} into {engines}")
    variants = resolve_variants(build(checkpoint, draft_lengths, engines, engine, vllm_python))
    must_agree = is_exact(variants[0].engine)
    temperature = TEMPERATURE if must_agree else 0.0
    prompt_set = prompt_set.drawn(None, temperature, SEED)
    prompts = prompt_set.prompts
    if variants[0].draft_length != 0:
        raise InputError("the demo compares with no speculation: --draft-lengths must include 0")
    lengths = [variant.draft_length for variant in variants]
    with ExitStack() as stack:
        server = stack.enter_context(serving(variants, on_progress=meter.say))
        models = dict(zip(lengths, server.models, strict=True))
        direct = stack.enter_context(StreamClient(server.grpc_url))
        warm_up(direct, models, prompts)
        held = {task: part[: size.calibration_prompts] for task, part in prompts.items()}
        alone = {model: (direct, model) for model in models.values()}
        first = measure(alone, held, 1, lambda _, *done: meter.update("calibrating", *done))
        profile = profile_from(
            one_at_a_time(prompt_set, models, first, 0, SEED), variants[0].record, temperature
        )
        file = server.log.parent / "profile.json"
        write_profile(file, profile)
        stop = size.calibration_prompts + size.prompts
        measured = {task: part[size.calibration_prompts : stop] for task, part in prompts.items()}
        log = file.with_name("decisions.jsonl")
        with ExitStack() as routing:
            gateway = routing.enter_context(
                child(
                    *("gateway", "--triton", server.grpc_url, "--port", "0", "--json"),
                    *("--profile", str(file), "--decision-log", str(log)),
                    log=server.log.with_name("gateway.log"),
                )
            )
            routed = routing.enter_context(StreamClient(gateway_url(gateway)))
            targets = alone | {"routed": (routed, PUBLIC_MODEL)}
            answers = measure(targets, measured, size.rounds, meter.update)
        decisions = read_decisions(log)
        cells = one_at_a_time(prompt_set, models, answers, size.calibration_prompts, SEED)
        add_load(cells, server.grpc_url, size.load_s, meter.update)
    page = write_report(profile_from(cells, variants[0].record, temperature), engines)
    found = report(models, measured, answers, decisions, must_agree)
    return found | {"report": str(page)}


def gateway_url(process: Any) -> str:
    """host:port of a gateway that was just started."""
    return str(read_ready_line(process)["gateway"])


def warm_up(client: StreamClient, models: Mapping[int, str], prompts: Prompts) -> None:
    """Answer one prompt with each variant, untimed."""
    for model in models.values():
        client.ask(model, next(iter(prompts.values()))[0])


def measure(
    targets: Mapping[str, tuple[StreamClient, str]],
    prompts: Prompts,
    rounds: int,
    advance: Advance,
) -> dict[str, Answers]:
    """Every prompt at every target, `rounds` times, in random order; by task."""
    order = random.Random(SEED)
    answers: dict[str, Answers] = {
        task: {name: [[] for _ in part] for name in targets} for task, part in prompts.items()
    }
    jobs = [(task, index) for task, part in prompts.items() for index in range(len(part))]
    done, total = 0, len(jobs) * rounds * len(targets)
    for _ in range(rounds):
        order.shuffle(jobs)
        for task, index in jobs:
            for name in order.sample(sorted(targets), len(targets)):
                client, model = targets[name]
                answers[task][name][index].append(client.ask(model, prompts[task][index]))
                done += 1
                advance("measuring", done, total)
    return answers


def report(
    models: Mapping[int, str],
    prompts: Prompts,
    answers: Mapping[str, Answers],
    decisions: Decisions,
    must_agree: bool = True,
) -> dict[str, Any]:
    """All tasks and the overall line; see `task_report`."""
    together: Answers = {}
    for part in answers.values():
        for name, values in part.items():
            together.setdefault(name, []).extend(values)
    best = max(models, key=lambda k: tokens_per_s(together[models[k]]))
    tasks = [
        {"task": task} | task_report(models, best, answers[task], decisions)
        for task in sorted(prompts)
    ]
    return {
        "schema_version": 1,
        "must_agree": must_agree,
        "tasks": tasks,
        "overall": task_report(models, best, together, decisions),
    }


def task_report(
    models: Mapping[int, str], best: int, answers: Answers, decisions: Decisions
) -> dict[str, Any]:
    """One line of the table."""
    none = answers[models[0]]
    routed = answers["routed"]
    chosen = Counter(answer.variant for part in routed for answer in part)
    guessed = Counter(answer.task for part in routed for answer in part)
    names = {f"k{k}": str(k) for k in models}
    deepest = answers[models[max(models)]]
    return {
        "requests": len(none),
        "acceptance_rate": acceptance_rate(deepest),
        "acceptance_length": {
            str(k): acceptance_length(answers[model]) for k, model in models.items() if k > 0
        },
        "chosen": {names[name]: round(chosen[name] / chosen.total(), 3) for name in sorted(chosen)},
        "guessed": dict(guessed.most_common()),
        **choice_reasons(
            [
                decisions[answer.decision_id]
                for part in routed
                for answer in part
                if answer.decision_id in decisions  # a full disk costs log lines, no answers
            ]
        ),
        "tok_s": {
            "none": tokens_per_s(none),
            "best_static": tokens_per_s(answers[models[best]]),
            "routed": tokens_per_s(routed),
        },
        "best_static_k": best,
        "speedup_routed": interval(ratios(durations(none), durations(routed))),
        "speedup_routed_decode": interval(ratios(decode_times(none), decode_times(routed))),
        "gateway_share": interval(gateway_shares(models, answers)),
        "lossless": num_same(answers) == len(none),
        "num_same": num_same(answers),
    }


def durations(answers: Sequence[Sequence[TimedAnswer]]) -> list[float]:
    """For each prompt the seconds per token, the median over the rounds.

    Per token, because answers that part at a near tie are of different length.
    """
    return [
        statistics.median(answer.duration_s / max(1, len(answer.token_ids)) for answer in part)
        for part in answers
    ]


def decode_times(answers: Sequence[Sequence[TimedAnswer]]) -> list[float]:
    """Like `durations`, from the first message on: what speculation works on."""
    return [
        statistics.median(
            (answer.duration_s - answer.ttft_s)
            / max(1, len(answer.token_ids) - answer.num_first_tokens)
            for answer in part
        )
        for part in answers
    ]


def gateway_shares(models: Mapping[int, str], answers: Answers) -> list[float]:
    """Of each prompt's routed time, the share that its draft length took less, asked directly."""
    direct = {f"k{k}": durations(answers[model]) for k, model in models.items()}
    shares = []
    for index, routed in enumerate(durations(answers["routed"])):
        chosen = [direct[answer.variant][index] for answer in answers["routed"][index]]
        if routed > 0:
            shares.append(1 - statistics.mean(chosen) / routed)
    return shares


def ratios(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Speed-ups, prompt by prompt; answers of one token take no time to decode and are left out."""
    return [a / b for a, b in zip(before, after, strict=True) if a > 0 and b > 0]


def tokens_per_s(answers: Sequence[Sequence[TimedAnswer]]) -> float:
    """Output tokens a second of whole answers, first token included."""
    tokens = [len(part[0].token_ids) for part in answers]
    seconds = sum(n * each for n, each in zip(tokens, durations(answers), strict=True))
    return round(sum(tokens) / seconds, 1)


def acceptance_length(answers: Sequence[Sequence[TimedAnswer]]) -> float:
    """Mean tokens a verify step."""
    flat = [part[0] for part in answers]
    steps = sum(answer.num_steps for answer in flat)
    accepted = sum(sum(answer.accepted_per_position) for answer in flat)
    return round(1 + accepted / steps, 3) if steps else 1.0


def acceptance_rate(answers: Sequence[Sequence[TimedAnswer]]) -> float:
    """Accepted of the drafted tokens."""
    flat = [part[0] for part in answers]
    drafted = sum(answer.num_steps * len(answer.accepted_per_position) for answer in flat)
    accepted = sum(sum(answer.accepted_per_position) for answer in flat)
    return round(accepted / drafted, 3) if drafted else 0.0


def num_same(answers: Answers) -> int:
    """The prompts for which every target gave the same tokens in every round."""
    return sum(
        len({answer.token_ids for part in prompt for answer in part}) == 1
        for prompt in zip(*answers.values(), strict=True)
    )


def interval(values: Sequence[float]) -> dict[str, float]:
    """The median, and the 95% bootstrap interval of it."""
    draw = random.Random(SEED)
    medians = sorted(
        statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    return {
        "median": round(statistics.median(values), 3),
        "low": round(medians[int(0.025 * RESAMPLES)], 3),
        "high": round(medians[int(0.975 * RESAMPLES)], 3),
    }


def require_lossless(result: Mapping[str, Any]) -> None:
    """Raise TrtMtpError if an answer differed that may not."""
    if not result["must_agree"]:
        return
    changed = [line["task"] for line in result["tasks"] if not line["lossless"]]
    if changed:
        raise TrtMtpError(f"answers differ between draft lengths in: {', '.join(changed)}")


def same_share(line: Mapping[str, Any], must_agree: bool) -> str:
    """How many answers agree, where not all do."""
    return "NO" if must_agree else f"{line['num_same']} of {line['requests']}"


def speed_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """How fast each task was, line by line; the first is the head, the last the overall line."""
    yield "task", "none", "best K", "routed", "speed-up", "after 1st token", "gateway"
    for line in _lines(result):
        yield (
            line["task"],
            *[f"{line['tok_s'][name]:.0f}" for name in ("none", "best_static", "routed")],
            *[
                "{median:.2f} ({low:.2f}-{high:.2f})".format(**line[name])
                for name in ("speedup_routed", "speedup_routed_decode")
            ],
            "{median:.0%} ({low:.0%} to {high:.0%})".format(**line["gateway_share"]),
        )


def draft_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """What drafts did to each task, in the same form."""
    lengths = list(result["overall"]["acceptance_length"])
    lengths_head = f"AL at K={','.join(lengths)}"
    yield "task", "answers", "accepted", lengths_head, "chosen K (from 5%)", "same tokens"
    for line in _lines(result):
        yield (
            line["task"],
            str(line["requests"]),
            f"{line['acceptance_rate']:.0%}",
            " ".join(f"{line['acceptance_length'][k]:.2f}" for k in lengths),
            " ".join(f"{k}:{s:.0%}" for k, s in line["chosen"].items() if s >= 0.05),
            "yes" if line["lossless"] else same_share(line, result["must_agree"]),
        )


def _lines(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*result["tasks"], {"task": "all"} | result["overall"]]
