"""The demo's answers, and a few seconds of load, as a calibrated profile with its report."""

import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trt_mtp import __version__
from trt_mtp.build.cpu import cpu_name
from trt_mtp.build.variant import VariantRecord
from trt_mtp.controller.calibrate.conclusions import RunInfo, profile_of
from trt_mtp.controller.calibrate.load_client import Answer, LoadClient, request_bytes
from trt_mtp.controller.calibrate.plan import SMALLEST_BATCH, references
from trt_mtp.controller.calibrate.prompt_sets import PromptSet
from trt_mtp.controller.calibrate.results import Arm, Block, Results, Settings
from trt_mtp.controller.client import TimedAnswer
from trt_mtp.controller.profile import Profile, write_profile
from trt_mtp.controller.report.report import Report, calibrated, render
from trt_mtp.errors import TrtMtpError
from trt_mtp.files import write_atomic
from trt_mtp.interrupts import run_async

LOADS = (2, 4, 8)  # requests at a time
NAME = "demo-report.html"

Advance = Callable[[str, int, int], None]
Timed = Mapping[str, Mapping[str, Sequence[Sequence[TimedAnswer]]]]  # task, model, prompt, round


@dataclass(slots=True)
class Measured:
    """What the demo has measured of variants, for a profile."""

    prompts: PromptSet
    models: Mapping[int, str]  # by draft length
    settings: Settings
    results: Results


def one_at_a_time(
    prompts: PromptSet, models: Mapping[int, str], answers: Timed, first_prompt: int, seed: int
) -> Measured:
    """The demo's timed answers as cells at concurrency 1; of each prompt the median round.

    `first_prompt` is the place of the first that was asked in its task's prompts.
    """
    settings = Settings(
        num_prompts=tuple((task, len(part)) for task, part in prompts.prompts.items()),
        draft_lengths=tuple(sorted(models)),
        concurrencies=(1, *LOADS),
        seed=seed,
    )
    results = Results()
    for number, (task, part) in enumerate(answers.items()):
        places = tuple(range(first_prompt, first_prompt + len(part[models[0]])))
        block = Block(number, task, 1, settings.draft_lengths, places)
        for length, model in sorted(models.items()):
            chosen = [median_round(rounds) for rounds in part[model]]
            wall_s = sum(answer.duration_s for answer in chosen)
            results.add(Arm(block, length, tuple(map(as_answer, chosen)), wall_s))
    return Measured(prompts, models, settings, results)


def median_round(rounds: Sequence[TimedAnswer]) -> TimedAnswer:
    """The answer of median duration; of two, the faster."""
    return sorted(rounds, key=lambda answer: answer.duration_s)[(len(rounds) - 1) // 2]


def as_answer(answer: TimedAnswer) -> Answer:
    """A timed answer as a calibration has it."""
    return Answer(
        ttft_s=answer.ttft_s,
        decode_s=answer.duration_s - answer.ttft_s,
        num_first_tokens=answer.num_first_tokens,
        num_output_tokens=len(answer.token_ids),
        num_steps=answer.num_steps,
        accepted_per_position=answer.accepted_per_position,
        itl_s=answer.itl_s,
    )


def add_load(measured: Measured, url: str, budget_s: float, advance: Advance) -> None:
    """Measure variants under load until `budget_s` is spent, beginning with the extreme tasks.

    Tasks of the highest and the lowest acceptance come first: they teach what a step costs at each
    load, from which the speedups of tasks that there was no time for are predicted. Raises
    TrtMtpError when the server is lost.
    """
    run_async(_add_load(measured, url, budget_s, advance))


async def _add_load(measured: Measured, url: str, budget_s: float, advance: Advance) -> None:
    settings, client = measured.settings, LoadClient(url)
    first = references(settings, measured.results)
    tasks = [*first, *(task for task in settings.tasks if task not in first)]
    jobs = [(task, load) for task in tasks for load in LOADS]
    started = time.monotonic()
    try:
        await _warm_up(measured, client)
        for done, (task, load) in enumerate(jobs, 1):
            if time.monotonic() - started > budget_s:
                break
            await _add_block(measured, client, task, load)
            advance("under load", done, len(jobs))
    finally:
        await client.close()


async def _warm_up(measured: Measured, client: LoadClient) -> None:
    part = next(iter(measured.prompts.prompts.values()))[:2]
    for model in measured.models.values():
        await _answers(client, [request_bytes(model, prompt) for prompt in part], LOADS[-1])


async def _answers(client: LoadClient, requests: Sequence[bytes], load: int) -> tuple[Answer, ...]:
    batch = await client.answers(requests, load)
    if batch.lost:
        raise TrtMtpError(f"Triton was lost while variants were measured under load: {batch.lost}")
    return batch.answers


async def _add_block(measured: Measured, client: LoadClient, task: str, load: int) -> None:
    """All draft lengths on the same prompts, in random order."""
    settings, results = measured.settings, measured.results
    prompts = measured.prompts.prompts[task][: max(SMALLEST_BATCH, 2 * load)]
    number, places = results.num_blocks, tuple(range(len(prompts)))
    block = Block(number, task, load, settings.draft_lengths, places)
    order = random.Random(f"{settings.seed}/{number}")
    for length in order.sample(block.draft_lengths, len(block.draft_lengths)):
        requests = [request_bytes(measured.models[length], prompt) for prompt in prompts]
        start = time.monotonic()
        answers = await _answers(client, requests, load)
        results.add(Arm(block, length, answers, time.monotonic() - start))


def profile_from(measured: Measured, record: VariantRecord, temperature: float) -> Profile:
    """The profile of what was measured, for variants like that of `record`."""
    prompts = measured.prompts
    return profile_of(
        measured.settings,
        measured.results,
        RunInfo(
            fingerprint=record.fingerprint,
            measured_on=record.measured_on,
            environment={
                "machine": platform.platform(),
                "processor": cpu_name(),
                "cores": str(os.cpu_count() or 1),
                "trt_mtp": __version__,
            },
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            prompts=prompts.label,
            temperature=temperature,
            max_tokens=max(p.max_tokens for part in prompts.prompts.values() for p in part),
            shared_device=True,
            is_settled=False,
        ),
    )


def write_report(profile: Profile, folder: Path) -> Path:
    """The page, and the profile beside it; the page's path. Raises TrtMtpError on a full disk."""
    page = folder / NAME
    write_profile(page.with_name("demo-profile.json"), profile)
    write_atomic(page, render(Report((calibrated(profile, "demo-profile.json"),), ()), "html"))
    return page
