"""`trt-mtp doctor`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from trt_mtp.files import to_json
from trt_mtp.options import json_option
from trt_mtp.terminal import say


@click.command()
@click.argument("target", required=False, type=click.Path(path_type=Path))
@json_option
def doctor(target: Path | None, as_json: bool) -> None:
    """Check variants and this machine for known problems.

    TARGET is a variant, a folder of variants, or a rendered model repository; without it only the
    machine is looked at. Exit code 1 when something would not work.

    Example: trt-mtp doctor engines
    """
    from trt_mtp.build.doctor import examine

    machine, subjects = examine(target)
    if as_json:
        click.echo(doctor_json(machine, subjects))
    else:
        say(doctor_text(machine, subjects))
    if any(subject.num_errors for subject in subjects):
        sys.exit(1)


def doctor_json(machine: Mapping[str, Any], subjects: Sequence[Any]) -> str:
    """Facts and findings for scripts."""
    return to_json(
        {
            "schema_version": 1,
            "machine": {name.removeprefix("machine."): fact for name, fact in machine.items()},
            "subjects": [
                {
                    "name": subject.name,
                    "num_errors": subject.num_errors,
                    "findings": [finding.as_json() for finding in subject.findings],
                }
                for subject in subjects
            ],
        }
    ).rstrip()


def doctor_text(machine: Mapping[str, Any], subjects: Sequence[Any]) -> str:
    """Facts and findings for people."""
    gpus = f"{machine['machine.num_gpus']} x {machine['machine.product']}"
    lines = [
        f"system        {machine['machine.system']}, {machine['machine.num_cores']} cores",
        f"GPUs          {gpus if machine['machine.num_gpus'] else 'none'}",
        f"driver        {machine['machine.driver'] or 'none'}",
        f"tensorrt_llm  {machine['machine.tensorrt_llm'] or 'not installed'}",
        f"free disk     {machine['machine.free_bytes'] / 1e9:.0f} GB",
    ]
    for subject in subjects:
        lines += ["", subject.name if subject.findings else f"{subject.name}  ok"]
        for finding in subject.findings:
            lines += [f"  {finding.severity}: {finding.message}", f"    {finding.source}"]
    return "\n".join(lines)
