"""The `report` command."""

import sys
from pathlib import Path

import click

from trt_mtp.errors import InputError
from trt_mtp.options import FILE

FORMATS = ("html", "md", "csv", "json", "png")


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="Output file.  [default: stdout]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Output format.  [default: from the extension of --output, else html]",
)
@click.option(
    "--mix",
    metavar="TASK=SHARE,…|FILE",
    help="Your traffic, for its gain: shares of output tokens such as coding=3,qa=1, or a "
    "gateway's decision log.",
)
@click.option(
    "--ttft-p95-ms",
    type=click.FloatRange(0, min_open=True),
    help="Limit for the 95th percentile of the time to first token; shows up to which load it "
    "holds.",
)
@click.option(
    "--tpot-p95-ms",
    type=click.FloatRange(0, min_open=True),
    help="Limit for the 95th percentile of the time per output token.",
)
def report(
    source: Path, output: Path | None, form: str | None, mix: str | None,
    ttft_p95_ms: float | None, tpot_p95_ms: float | None,
) -> None:  # fmt: skip
    """Render a profile or a replay as HTML, Markdown, CSV, JSON or PNG.

    SOURCE is what `trt-mtp calibrate` wrote, what `trt-mtp replay --json` printed, or a folder
    with any number of both; several profiles are compared. The page needs no network. csv has a
    row per cell (of a replay alone, per task), png has the newest profile's plots. Exit code 2
    when there is nothing to report.

    Example: trt-mtp report profile.json -o report.html
    """
    from trt_mtp.controller.report.report import read_report, render
    from trt_mtp.controller.report.wishes import Wishes, read_mix
    from trt_mtp.files import write_atomic

    if output is not None and output.resolve() == source.resolve():
        raise InputError(f"--output is {output}, the file that the report is of: name another")
    ending = output.suffix.lstrip(".") if output else ""
    if form is None and ending and ending not in FORMATS:
        raise InputError(
            f"--output {output}: no report can be written as .{ending}; expected one of "
            f"{', '.join(f'.{known}' for known in FORMATS)}, or give --format"
        )
    wishes = Wishes(read_mix(mix) if mix else {}, ttft_p95_ms, tpot_p95_ms)
    report = read_report(source, lambda line: click.echo(line, err=True))._replace(wishes=wishes)
    data = render(report, form or ending or "html")
    if output is None:
        sys.stdout.buffer.write(data)
    else:
        write_atomic(output, data)
        click.echo(f"wrote {output}", err=True)
