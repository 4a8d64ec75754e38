"""A calibration with its own server: built, started, measured and stopped on this machine."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from trt_mtp.controller.calibrate.beside import run_beside
from trt_mtp.controller.calibrate.calibrate import Options, calibrate
from trt_mtp.controller.calibrate.prompt_sets import SHIPPED, read_prompt_set
from trt_mtp.controller.profile import Profile, read_profile
from trt_mtp.controller.up import build, default_checkpoint, require_builder
from trt_mtp.progress import Meter
from trt_mtp.serve.serving import resolve_variants, serving


def run_embedded(
    checkpoint: str | None,
    draft_lengths: str,
    engines: Path,
    prompts: str | None,
    options: Options,
    meter: Meter,
) -> Profile:
    """The profile of `checkpoint` on this machine; `options.url` is ignored.

    The prompts are by default those in the checkpoint's folder, because a small checkpoint
    answers only what it was trained for. A server that dies is started again and asked again.
    Raises as `calibrate` and `trt-mtp build` do.
    """
    require_builder()
    checkpoint = checkpoint or default_checkpoint()
    own = Path(checkpoint) / "prompts.jsonl"
    source = prompts or (str(own) if own.is_file() else SHIPPED)
    if options.tasks:  # before minutes are spent
        read_prompt_set(source).chosen(options.tasks)
    if options.prior:
        read_profile(options.prior)
    meter.say(f"building {checkpoint} into {engines}")
    variants = resolve_variants(build(checkpoint, draft_lengths, engines))
    with serving(variants, on_progress=meter.say) as server:
        here = replace(options, url=server.grpc_url, prompts=source)
        return calibrate(here, meter, partial(run_beside, check=partial(server.check, meter.say)))
