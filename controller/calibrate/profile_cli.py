"""The `profile` commands: show, compare, merge, check and estimate policy files, and use them."""

from pathlib import Path

import click

from trt_mtp.errors import TrtMtpError
from trt_mtp.files import to_json
from trt_mtp.interrupts import run_async
from trt_mtp.options import FILE, FOLDER, json_option, model_option, profile_out, wide_option
from trt_mtp.serve.hosts import require_target
from trt_mtp.terminal import say

READY_TIMEOUT_S = 5.0


@click.group()
def profile() -> None:
    """Show, compare, merge, check and estimate profiles."""


@profile.command()
@click.argument("file", type=FILE)
@wide_option
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON.")
def show(file: Path, wide: bool, as_json: bool) -> None:
    """Show the recommended draft length per task and load.

    Example: trt-mtp profile show profile.json
    """
    from trt_mtp.controller.profile import profile_json, read_profile
    from trt_mtp.controller.profile_text import summary

    read = read_profile(file)
    if as_json:
        click.echo(profile_json(read), nl=False)
    elif wide:
        click.echo(summary(read, wide=True))
    else:
        say(summary(read))


@profile.command()
@click.argument("file", type=FILE)
@click.option(
    "--server",
    required=True,
    metavar="KIND",
    help="Kind of server: tensorrt_llm, vllm, sglang or llamacpp.",
)
@json_option
def settings(file: Path, server: str, as_json: bool) -> None:
    """Print the draft lengths by load as the settings of another server.

    They are those that take the least time per token, all measured tasks alike.

    Example: trt-mtp profile settings profile.json --server vllm
    """
    from trt_mtp.controller.calibrate.server_settings import lengths_by_load, settings_for
    from trt_mtp.controller.profile import read_profile
    from trt_mtp.controller.profile_text import conclusion, is_decided

    read = read_profile(file)
    lines = settings_for(server, read)
    if read.calibration is not None and not is_decided(read.calibration):
        say(f"{file}: {conclusion(read.calibration)}", err=True)
    if as_json:
        lengths = {str(load): length for load, length in lengths_by_load(read).items()}
        value = {"schema_version": 1, "server": server, "draft_lengths": lengths, "settings": lines}
        click.echo(to_json(value), nl=False)
    else:
        click.echo("\n".join(lines))


@profile.command()
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Show what differs between two profiles; exit code 1 when anything does.

    Example: trt-mtp profile diff old.json profile.json
    """
    from trt_mtp.controller.profile import read_profile
    from trt_mtp.controller.profile_diff import diff as compare

    lines = list(compare(read_profile(before), read_profile(after)))
    if as_json:
        click.echo(to_json({"schema_version": 1, "differences": lines}), nl=False)
    else:
        say("\n".join(lines) or "no difference")
    raise SystemExit(1 if lines else 0)


@profile.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    "--output",
    "out",
    type=FILE,
    required=True,
    help="Merged profile to write.",
)
def merge(files: tuple[Path, ...], out: Path) -> None:
    """Merge profiles of the same deployment.

    Where several measured a cell, the latest run's counts. R, the crossovers and the recommendation
    follow from the cells of all.

    Example: trt-mtp profile merge monday.json friday.json -o profile.json
    """
    from trt_mtp.controller.calibrate.profile_merge import merged
    from trt_mtp.controller.profile import read_profile, write_profile

    write_profile(out, merged([read_profile(file) for file in files]))
    click.echo(f"{len(files)} profiles merged into {out}", err=True)


@profile.command()
@click.argument("model")
@click.option("--gpu", required=True, metavar="TYPE", help="GPU type, such as h100-80gb.")
@click.option(
    "--tensor-parallel",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="GPUs per replica.",
)
@click.option(
    "--draft-lengths",
    default="0,1,2,3,5",
    show_default=True,
    help="Draft lengths (K), comma-separated.",
)
@profile_out("Profile to write.", required=True)
def prior(model: str, gpu: str, tensor_parallel: int, draft_lengths: str, out: Path) -> None:
    """Estimate the profile of a released MODEL on a GPU by name, without a measurement.

    Step times are those of a roofline: the data sheet's bandwidth and arithmetic, the model's
    sizes. Acceptance is the published one. A gateway that starts with it corrects both as it
    learns; `trt-mtp calibrate` measures them.

    Example: trt-mtp profile prior qwen3.8-27b-fp8 --gpu h100-80gb -o profile.json
    """
    from trt_mtp.build.draft_lengths import parse_draft_lengths
    from trt_mtp.build.gpus import find_gpu
    from trt_mtp.build.released_models import find_model
    from trt_mtp.controller.position_counts import MAX_POSITIONS
    from trt_mtp.controller.prior_profile import prior_profile
    from trt_mtp.controller.profile import write_profile

    lengths = parse_draft_lengths(draft_lengths, MAX_POSITIONS)
    estimated = prior_profile(find_model(model), find_gpu(gpu), lengths, tensor_parallel)
    write_profile(out, estimated)
    say(f"{out}: {estimated.notes}", err=True)


@profile.command()
@click.argument("file", type=FILE)
@click.option("--url", metavar="HOST:PORT", help="gRPC address of a Triton server to compare with.")
@model_option
@click.option(
    "--engines",
    type=FOLDER,
    help="Directory of variants to compare with.",
)
@json_option
def check(file: Path, url: str | None, model: str, engines: Path | None, as_json: bool) -> None:
    """Check a profile's form and consistency, and whether it matches a deployment.

    Exit code 1 when it contradicts itself, 2 when it has the wrong form or is of another
    deployment.

    Example: trt-mtp profile check profile.json --engines engines
    """
    from trt_mtp.controller.profile import read_profile, require_measured_on
    from trt_mtp.controller.profile_diff import findings

    read = read_profile(file)
    if engines is not None:
        from trt_mtp.build.variant import list_variants

        records = [variant.record for variant in list_variants(engines)]
        built = {record.fingerprint: record.measured_on for record in records}
        require_measured_on(read, str(file), built, f"{engines} holds")
    if url is not None:
        require_target(url, "127.0.0.1:8101")
        require_measured_on(read, str(file), hosted(url, model), f"{url} hosts")
    problems = list(findings(read))
    if as_json:
        click.echo(to_json({"schema_version": 1, "findings": problems}), nl=False)
    else:
        say("\n".join(problems) or "nothing wrong was found")
    if problems:
        raise TrtMtpError(f"{file} contradicts itself in {len(problems)} places")


def hosted(url: str, model: str) -> dict[str, dict[str, str]]:
    """Fingerprints, and the parts behind them, of the variants at a Triton; raises TrtMtpError."""
    from trt_mtp.controller.gateway.servers.pool import Pool

    async def ask() -> dict[str, dict[str, str]]:
        pool = Pool(url, model)
        try:
            await pool.wait_ready(READY_TIMEOUT_S)
            return {v.fingerprint: v.measured_on for v in pool.variants.values()}
        finally:
            await pool.close()

    return run_async(ask())
