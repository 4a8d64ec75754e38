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
def report(source: Path, output: Path | None, form: str | None) -> None:
    """Render a profile or a replay as HTML, Markdown, CSV, JSON or PNG.

    SOURCE is what `trt-mtp calibrate` wrote, what `trt-mtp replay --json` printed, or a folder
    with any number of both; several profiles are compared. The page needs no network. csv has a
    row a cell (of a replay alone, a row a task), png has the newest profile's plots. Exit code 2
    when there is nothing to report.

    Example: trt-mtp report profile.json -o report.html
    """
    from trt_mtp.controller.report.report import read_report, render
    from trt_mtp.files import write_atomic

    if output is not None and output.resolve() == source.resolve():
        raise InputError(f"--output is {output}, the file that the report is of: name another")
    report = read_report(source, lambda line: click.echo(line, err=True))
    ending = output.suffix.lstrip(".") if output else ""
    data = render(report, form or (ending if ending in FORMATS else "html"))
    if output is None:
        sys.stdout.buffer.write(data)
    else:
        write_atomic(output, data)
        click.echo(f"wrote {output}", err=True)
