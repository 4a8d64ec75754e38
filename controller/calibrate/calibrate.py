"""Measure draft lengths until every choice of one is settled."""

import asyncio
import hashlib
import json
import os
import platform
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trt_mtp import __version__
from trt_mtp.build.cpu import cpu_name
from trt_mtp.controller.calibrate.conclusions import RunInfo, profile_of
from trt_mtp.controller.calibrate.journal import Journal
from trt_mtp.controller.calibrate.lost_server import ServerLostError
from trt_mtp.controller.calibrate.openai.rig import found_servers
from trt_mtp.controller.calibrate.plan import next_block
from trt_mtp.controller.calibrate.prompt_sets import PromptSet, read_prompt_set
from trt_mtp.controller.calibrate.results import Arm, Block, Results, Settings
from trt_mtp.controller.calibrate.rig import Rig, RigFacts
from trt_mtp.controller.calibrate.triton_rig import found_variants
from trt_mtp.controller.cost import StepCost
from trt_mtp.controller.profile import Profile, read_profile, write_profile
from trt_mtp.errors import TrtMtpError
from trt_mtp.progress import Meter

DEFAULT_CONCURRENCIES = (1, 2, 4, 8, 16)
DEFAULT_MODEL = "qwen_mtp"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a calibration."""

    url: str  # of Triton; empty with `openai`
    out: Path
    model: str | None = None  # None: the public name of variants, the only model of other servers
    variants: tuple[str, ...] = ()  # names; empty: all
    concurrencies: tuple[int, ...] = ()  # empty: those of the default that fit
    tasks: tuple[str, ...] = ()  # empty: all of the prompt set
    prompts: str = "shipped"
    budget_s: float = 600.0
    seed: int = 0
    max_tokens: int | None = None  # None: as the prompts say
    temperature: float = 0.0
    all_cells: bool = False
    context_tokens: int = 0  # of the prompts of two more cells; 0: what context costs is not asked
    prior: Path | None = None  # profile whose step costs are where to begin
    wait_s: float = 300.0  # for a server that is lost to come back: engines take minutes to load
    openai: Mapping[int, str] = field(default_factory=dict)  # base URLs by draft length
    openai_key: str = field(default="", repr=False)
    openai_restart: str = ""  # a command that restarts the only server, {k} in place of the length

    @property
    def journal(self) -> Path:
        """The file that keeps each batch, also after the profile is written."""
        return self.out.with_name(f"{self.out.name}.journal")


def calibrate(
    options: Options,
    meter: Meter,
    run: Callable[[Coroutine[Any, Any, Profile]], Profile] = asyncio.run,
) -> Profile:
    """Measure, write the profile to `options.out` and return it; `run` runs the measuring.

    Goes on where a run with the same options was interrupted. A batch in which the server is lost
    is measured again when it is back. Raises InputError for what the user can set right,
    TrtMtpError when it doesn't come back or no variant answers; what was measured until then stays
    in the journal.
    """
    prompts = read_prompt_set(options.prompts)
    prior = read_profile(options.prior).step_cost() if options.prior else None
    if options.tasks:
        prompts = prompts.chosen(options.tasks)
    prompts = prompts.drawn(options.max_tokens, options.temperature, options.seed)
    profile = run(_calibrate(options, prompts, prior, meter))
    write_profile(options.out, profile)
    return profile


async def _calibrate(
    options: Options, prompts: PromptSet, prior: StepCost | None, meter: Meter
) -> Profile:
    rig = await _found(options, meter)
    try:
        return await _measured(options, prompts, prior, rig, meter)
    except ServerLostError as error:
        raise TrtMtpError(
            f"{error}; what was measured until then is in {options.journal}: run the same command "
            f"again when it is back"
        ) from None
    finally:
        await rig.close()


async def _found(options: Options, meter: Meter) -> Rig:
    """The servers that the options name."""
    if options.openai:
        return await found_servers(
            options.openai,
            options.model,
            options.openai_key,
            options.wait_s,
            meter.say,
            options.openai_restart,
        )
    model = options.model or DEFAULT_MODEL
    return await found_variants(options.url, model, options.variants, options.wait_s, meter.say)


async def _measured(
    options: Options, prompts: PromptSet, prior: StepCost | None, rig: Rig, meter: Meter
) -> Profile:
    settings = Settings(
        num_prompts=tuple((task, len(part)) for task, part in prompts.prompts.items()),
        draft_lengths=rig.facts.draft_lengths,
        concurrencies=_concurrencies(options, rig.facts.max_concurrency, meter),
        seed=options.seed,
        all_cells=options.all_cells,
        context_tokens=options.context_tokens,
        prior=prior,
    )
    record = _journal_settings(options, settings, rig.facts, prompts)
    with Journal(options.journal, record) as journal:
        if journal.results.arms:
            meter.say(
                f"going on with {options.journal}: {len(journal.results.arms)} batches, "
                f"{journal.results.elapsed_s:.0f} s, were measured before"
            )
        await _measure(options, settings, rig, prompts, journal, meter)
        is_settled = journal.results.elapsed_s < options.budget_s
    results = require_answers(journal.results)
    return profile_of(settings, results, _run_info(options, rig, prompts, is_settled))


def _concurrencies(options: Options, most: int | None, meter: Meter) -> tuple[int, ...]:
    defaults = tuple(c for c in DEFAULT_CONCURRENCIES if most is None or c <= most)
    chosen = options.concurrencies or defaults
    if most is not None and max(chosen) > most:
        meter.say(f"the variants run {most} requests at a time: beyond that, requests wait")
    return tuple(sorted(set(chosen)))


def _journal_settings(
    options: Options, settings: Settings, facts: RigFacts, prompts: PromptSet
) -> dict[str, Any]:
    """What must be equal for a run to continue with a journal; the budget may grow."""
    return {
        **facts.identity,
        "prompts": prompts.digest,
        "tasks": list(settings.tasks),
        "concurrency": list(settings.concurrencies),
        "seed": options.seed,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "all_cells": options.all_cells,
        # older journals have no such lines
        "context": options.context_tokens or None,
        "prior": _digest(settings.prior) if settings.prior else None,
    }


def _digest(prior: StepCost) -> str:
    """The name of a table in a journal."""
    table = [prior.ratio_deviation, sorted(prior.ratios.items())]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()[:12]


async def _measure(
    options: Options,
    settings: Settings,
    rig: Rig,
    prompts: PromptSet,
    journal: Journal,
    meter: Meter,
) -> None:
    """Measure block after block, until no choice is open or the budget is spent."""
    results = journal.results
    is_warm = False
    while True:
        block = _unfinished(journal) or _next(options, settings, journal)
        if block is None:
            return
        if not is_warm:
            meter.say("warming up")
            await _warm_up(rig, settings, prompts)
            is_warm = True
        done = {arm.draft_length for arm in results.all_arms if arm.block == block}
        order = random.Random(f"{settings.seed}/{block.number}")
        for length in order.sample(block.draft_lengths, len(block.draft_lengths)):
            if length not in done:
                _show(meter, options, block, length, results)
                part = prompts.asked(block.task, block.prompts, block.context_tokens)
                batch = await rig.answers(length, part, block.concurrency)
                journal.add(Arm(block, length, batch.answers, batch.elapsed_s))


def _unfinished(journal: Journal) -> Block | None:
    """The block that an interrupted run did not finish."""
    block = journal.open_block
    if block is None:
        return None
    done = {arm.draft_length for arm in journal.results.all_arms if arm.block == block}
    return block if set(block.draft_lengths) - done else None


def _next(options: Options, settings: Settings, journal: Journal) -> Block | None:
    if journal.results.elapsed_s >= options.budget_s:
        return None
    block = next_block(settings, journal.results)
    if block is not None:
        journal.begin(block)
    return block


def _show(meter: Meter, options: Options, block: Block, length: int, results: Results) -> None:
    meter.update(
        f"{block.task} K={length} at {block.concurrency}",
        min(results.elapsed_s, options.budget_s),
        options.budget_s,
        sum(len(arm.answers) for arm in results.arms),
    )


async def _warm_up(rig: Rig, settings: Settings, prompts: PromptSet) -> None:
    """Get answers of each draft length at the highest concurrency, and drop them."""
    part = next(iter(prompts.prompts.values()))[:2]
    for length in rig.facts.draft_lengths:
        await rig.answers(length, part, max(settings.concurrencies))


def require_answers(results: Results) -> Results:
    """`results`; raises TrtMtpError with the first cell's error if no variant answered."""
    if not results.speedups:
        key, error = next(iter(results.errors.items()), (None, "no time was left to measure"))
        raise TrtMtpError(f"nothing was measured{f' of {key.task}' if key else ''}: {error}")
    return results


def _run_info(options: Options, rig: Rig, prompts: PromptSet, is_settled: bool) -> RunInfo:
    facts = rig.facts
    return RunInfo(
        fingerprint=facts.fingerprint,
        measured_on=facts.measured_on,
        environment={
            "client": platform.platform(),
            "client_processor": cpu_name(),
            "client_cores": str(os.cpu_count() or 1),
            "trt_mtp": __version__,
            **facts.environment,
            **({"not_told": "; ".join(rig.notes)} if rig.notes else {}),
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        prompts=prompts.label,
        temperature=options.temperature,
        max_tokens=max(p.max_tokens for part in prompts.prompts.values() for p in part),
        shared_device=facts.shared_device,
        is_settled=is_settled,
    )
