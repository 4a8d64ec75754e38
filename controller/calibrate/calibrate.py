"""Measure the variants behind a Triton server until every choice of a draft length is settled."""

import asyncio
import os
import platform
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from trt_mtp import __version__
from trt_mtp.build.cpu import cpu_name
from trt_mtp.controller.calibrate.conclusions import RunInfo, profile_of
from trt_mtp.controller.calibrate.journal import Journal
from trt_mtp.controller.calibrate.load_client import LoadClient, request_bytes
from trt_mtp.controller.calibrate.lost_server import Deployment, ServerLostError
from trt_mtp.controller.calibrate.plan import next_block
from trt_mtp.controller.calibrate.prompt_sets import PromptSet, read_prompt_set
from trt_mtp.controller.calibrate.results import Arm, Block, Results, Settings
from trt_mtp.controller.gateway.servers.backend import CALL_TIMEOUT_S, Replica
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.profile import Profile, differing_parts, write_profile
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import nearest
from trt_mtp.progress import Meter

DEFAULT_CONCURRENCIES = (1, 2, 4, 8, 16)
READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a calibration."""

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
    wait_s: float = 300.0  # for a server that is lost to come back: engines take minutes to load

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
    if options.tasks:
        prompts = prompts.chosen(options.tasks)
    prompts = prompts.drawn(options.max_tokens, options.temperature, options.seed)
    profile = run(_calibrate(options, prompts, meter))
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
    run_info = _run_info(options, variants, prompts, triton, is_settled)
    return profile_of(settings, require_answers(journal.results), run_info)


def chosen_variants(hosted: Sequence[Replica], names: Sequence[str]) -> dict[int, Replica]:
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
    options: Options, variants: Mapping[int, Replica], meter: Meter
) -> tuple[int, ...]:
    most = min(variant.max_batch_size for variant in variants.values())
    chosen = options.concurrencies or tuple(c for c in DEFAULT_CONCURRENCIES if c <= most)
    if max(chosen) > most:
        meter.say(f"the variants run {most} requests at a time: beyond that, requests wait")
    return tuple(sorted(set(chosen)))


def journal_settings(
    options: Options, settings: Settings, variants: Mapping[int, Replica], prompts: PromptSet
) -> dict[str, Any]:
    """What must be equal for a run to continue with a journal; the budget may grow."""
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
    variants: Mapping[int, Replica],
    prompts: PromptSet,
    journal: Journal,
    meter: Meter,
) -> None:
    """Measure block after block, until no choice is open or the budget is spent."""
    client, results = LoadClient(options.url), journal.results
    hosted = tuple(variants.values())
    deployment = Deployment(options.url, options.model, hosted, options.wait_s, meter.say)
    try:
        is_warm = False
        while True:
            block = _unfinished(journal) or _next(options, settings, journal)
            if block is None:
                return
            if not is_warm:
                meter.say("warming up")
                await _warm_up(client, deployment, settings, prompts)
                is_warm = True
            done = {arm.draft_length for arm in results.arms if arm.block == block}
            order = random.Random(f"{settings.seed}/{block.number}")
            for length in order.sample(block.draft_lengths, len(block.draft_lengths)):
                if length not in done:
                    _show(meter, options, block, length, results)
                    part = [prompts.prompts[block.task][at] for at in block.prompts]
                    requests = [request_bytes(variants[length].model_name, one) for one in part]
                    journal.add(await _arm(client, deployment, block, length, requests))
    except ServerLostError as error:
        raise TrtMtpError(
            f"{error}; what was measured until then is in {options.journal}: run the same command "
            f"again when it is back"
        ) from None
    finally:
        await client.close()


def _unfinished(journal: Journal) -> Block | None:
    """The block that an interrupted run did not finish."""
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
    client: LoadClient, deployment: Deployment, settings: Settings, prompts: PromptSet
) -> None:
    """Get answers of each variant at the highest concurrency, and drop them."""
    for variant in deployment.variants:
        part = next(iter(prompts.prompts.values()))
        requests = [request_bytes(variant.model_name, prompt) for prompt in part[:2]]
        await deployment.answers(client, requests, max(settings.concurrencies))


async def _arm(
    client: LoadClient,
    deployment: Deployment,
    block: Block,
    length: int,
    requests: Sequence[bytes],
) -> Arm:
    """One variant's answers to a block; raises ServerLostError if the server is lost for good."""
    batch = await deployment.answers(client, requests, block.concurrency)
    return Arm(block, length, batch.answers, batch.elapsed_s)


def require_answers(results: Results) -> Results:
    """`results`; raises TrtMtpError with the first cell's error if no variant answered."""
    if not results.batches:
        key, error = next(iter(results.errors.items()), (None, "no time was left to measure"))
        raise TrtMtpError(f"nothing was measured{f' of {key.task}' if key else ''}: {error}")
    return results


def _run_info(
    options: Options,
    variants: Mapping[int, Replica],
    prompts: PromptSet,
    triton: str,
    is_settled: bool,
) -> RunInfo:
    measured_on = variants[0].measured_on
    return RunInfo(
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
