"""Measure the variants behind a Triton server until every choice of a draft length is settled."""

import asyncio
import os
import platform
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from trt_mtp import __version__
from trt_mtp.build.cpu import cpu_name
from trt_mtp.controller.gateway.backend import CALL_TIMEOUT_S, Hosted
from trt_mtp.controller.gateway.pool import Pool
from trt_mtp.controller.measure.conclusions import About, profile_of
from trt_mtp.controller.measure.journal import Journal
from trt_mtp.controller.measure.load_client import LoadClient, request_bytes
from trt_mtp.controller.measure.meter import Meter
from trt_mtp.controller.measure.plan import next_block
from trt_mtp.controller.measure.prompt_sets import PromptSet, read_prompt_set
from trt_mtp.controller.measure.results import Arm, Block, Results, Settings
from trt_mtp.controller.profile import Profile, differing_parts, write_profile
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import nearest

DEFAULT_CONCURRENCIES = (1, 2, 4, 8, 16)
READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and where the profile goes."""

    url: str
    out: Path
    model: str = "qwen_mtp"  # the public name of the variants
    variants: tuple[str, ...] = ()  # names; empty: all
    concurrencies: tuple[int, ...] = ()  # empty: those of the default that fit
    tasks: tuple[str, ...] = ()  # empty: all of the prompt set
    prompts: str = "shipped"
    budget_s: float = 600.0
    seed: int = 0
    max_tokens: int | None = None  # None: as the prompts say
    temperature: float = 0.0
    all_cells: bool = False

    @property
    def journal(self) -> Path:
        """Where each batch is kept until the profile is written, and after."""
        return self.out.with_name(f"{self.out.name}.journal")


def calibrate(options: Options, meter: Meter) -> Profile:
    """Measure, write the profile to `options.out` and return it.

    Goes on where a run with the same options was interrupted. Raises InputError for what the user
    can set right, TrtMtpError when the server is lost or no variant answers; what was measured
    until then stays in the journal.
    """
    prompts = read_prompt_set(options.prompts)
    if options.tasks:
        prompts = prompts.chosen(options.tasks)
    prompts = prompts.drawn(options.max_tokens, options.temperature, options.seed)
    profile = asyncio.run(_calibrate(options, prompts, meter))
    write_profile(options.out, profile)
    return profile


async def _calibrate(options: Options, prompts: PromptSet, meter: Meter) -> Profile:
    pool = Pool(options.url, options.model)
    try:
        await pool.wait_ready(READY_TIMEOUT_S)
        variants = chosen_variants(list(pool.variants.values()), options.variants)
        triton = await _triton_version(pool)
    finally:
        await pool.close()
    settings = Settings(
        num_prompts=tuple((task, len(part)) for task, part in prompts.prompts.items()),
        draft_lengths=tuple(sorted(variants)),
        concurrencies=_concurrencies(options, variants, meter),
        seed=options.seed,
        all_cells=options.all_cells,
    )
    record = journal_settings(options, settings, variants, prompts)
    with Journal(options.journal, record) as journal:
        if journal.results.arms:
            meter.say(
                f"going on with {options.journal}: {len(journal.results.arms)} batches, "
                f"{journal.results.elapsed_s:.0f} s, were measured before"
            )
        await _measure(options, settings, variants, prompts, journal, meter)
        is_settled = journal.results.elapsed_s < options.budget_s
    about = _about(options, variants, prompts, triton, is_settled)
    return profile_of(settings, require_answers(journal.results), about)


def chosen_variants(hosted: Sequence[Hosted], names: Sequence[str]) -> dict[int, Hosted]:
    """The variants to measure, by draft length.

    Raises InputError for a name that isn't hosted, for variants of different models or with a
    schedule, and when there is nothing to compare.
    """
    by_name = {variant.name: variant for variant in hosted}
    for name in names:
        if name not in by_name:
            raise InputError(
                f"--variants: {name!r} is not hosted{nearest(name, by_name)}; hosted are "
                f"{', '.join(by_name)}"
            )
    chosen = [variant for variant in hosted if not names or variant.name in names]
    for other in chosen[1:]:
        if other.fingerprint != chosen[0].fingerprint:
            parts = differing_parts(chosen[0].measured_on, other.measured_on)
            raise InputError(
                f"{chosen[0].name} and {other.name} have different fingerprints{parts}: their "
                f"numbers can't be compared; choose one kind with --variants"
            )
    for variant in chosen:
        if variant.schedule is not None:
            raise InputError(
                f"{variant.name} drafts less than {variant.draft_length} where its batch is large "
                f"(draft_len_schedule), so its times under load would be another length's: build "
                f"it without --draft-len-schedule and --profile to calibrate"
            )
    variants = {variant.draft_length: variant for variant in chosen}
    if 0 not in variants or len(variants) < 2:
        raise InputError(
            "a calibration compares draft lengths with no speculation: it needs the variant at "
            f"draft length 0 and at least one other; there are {', '.join(v.name for v in chosen)}"
        )
    return variants


def _concurrencies(
    options: Options, variants: Mapping[int, Hosted], meter: Meter
) -> tuple[int, ...]:
    most = min(variant.max_batch_size for variant in variants.values())
    chosen = options.concurrencies or tuple(c for c in DEFAULT_CONCURRENCIES if c <= most)
    if max(chosen) > most:
        meter.say(f"the variants run {most} requests at a time: beyond that, requests wait")
    return tuple(sorted(set(chosen)))


def journal_settings(
    options: Options, settings: Settings, variants: Mapping[int, Hosted], prompts: PromptSet
) -> dict[str, Any]:
    """What has to be equal for a run to go on with a journal; the budget may grow."""
    return {
        "fingerprint": variants[0].fingerprint,
        "variants": [variant.name for variant in variants.values()],
        "prompts": prompts.digest,
        "tasks": list(settings.tasks),
        "concurrency": list(settings.concurrencies),
        "seed": options.seed,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "all_cells": options.all_cells,
    }


async def _measure(
    options: Options,
    settings: Settings,
    variants: Mapping[int, Hosted],
    prompts: PromptSet,
    journal: Journal,
    meter: Meter,
) -> None:
    """Block after block, until nothing is open or the budget is spent."""
    client, results = LoadClient(options.url), journal.results
    try:
        is_warm = False
        while True:
            block = _unfinished(journal) or _next(options, settings, journal)
            if block is None:
                return
            if not is_warm:
                meter.say("warming up")
                await _warm_up(client, settings, variants, prompts)
                is_warm = True
            done = {arm.draft_length for arm in results.arms if arm.block == block}
            order = random.Random(f"{settings.seed}/{block.number}")
            for length in order.sample(block.draft_lengths, len(block.draft_lengths)):
                if length not in done:
                    _show(meter, options, block, length, results)
                    journal.add(await _arm(client, block, length, variants, prompts, options))
    finally:
        await client.close()


def _unfinished(journal: Journal) -> Block | None:
    """The block that a run was killed in."""
    block = journal.open_block
    if block is None:
        return None
    done = {arm.draft_length for arm in journal.results.arms if arm.block == block}
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


async def _warm_up(
    client: LoadClient,
    settings: Settings,
    variants: Mapping[int, Hosted],
    prompts: PromptSet,
) -> None:
    """As many answers at a time as will be, from each variant, thrown away."""
    for variant in variants.values():
        part = next(iter(prompts.prompts.values()))
        requests = [request_bytes(variant.model_name, prompt) for prompt in part[:2]]
        await client.answers(requests, max(settings.concurrencies))


async def _arm(
    client: LoadClient,
    block: Block,
    length: int,
    variants: Mapping[int, Hosted],
    prompts: PromptSet,
    options: Options,
) -> Arm:
    """One variant's answers to a block; raises TrtMtpError when the server is lost."""
    part = prompts.prompts[block.task]
    requests = [request_bytes(variants[length].model_name, part[at]) for at in block.prompts]
    start = time.monotonic()
    answers = await client.answers(requests, block.concurrency)
    lost = next((answer for answer in answers if answer.is_lost), None)
    if lost is not None:
        raise TrtMtpError(
            f"the server at {options.url} was lost ({lost.error}); what was measured until then "
            f"is in {options.journal}: run the same command again when it is back"
        )
    return Arm(block, length, tuple(answers), time.monotonic() - start)


def require_answers(results: Results) -> Results:
    """`results`, or TrtMtpError with the first cell's error where no variant answered."""
    if not results.batches:
        key, error = next(iter(results.errors.items()), (None, "no time was left to measure"))
        raise TrtMtpError(f"nothing was measured{f' of {key.task}' if key else ''}: {error}")
    return results


def _about(
    options: Options,
    variants: Mapping[int, Hosted],
    prompts: PromptSet,
    triton: str,
    is_settled: bool,
) -> About:
    measured_on = variants[0].measured_on
    return About(
        fingerprint=variants[0].fingerprint,
        measured_on=measured_on,
        environment={
            "client": platform.platform(),
            "client_processor": cpu_name(),
            "client_cores": str(os.cpu_count() or 1),
            "server": options.url,
            "triton": triton,
            "trt_mtp": __version__,
            **{key: measured_on[key] for key in ("engine", "device") if key in measured_on},
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        prompts=prompts.label,
        temperature=options.temperature,
        max_tokens=max(p.max_tokens for part in prompts.prompts.values() for p in part),
        shared_device=True,  # one Triton hosts them all
        is_settled=is_settled,
    )


async def _triton_version(pool: Pool) -> str:
    raw = await pool.call("ServerMetadata", b"", CALL_TIMEOUT_S)
    return str(pb.ServerMetadataResponse.FromString(raw).version)
