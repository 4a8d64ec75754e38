"""The `top` command."""

import click

from trt_mtp.errors import InputError
from trt_mtp.live_screen import draw
from trt_mtp.options import json_option
from trt_mtp.printable import printable

ADMIN = "127.0.0.1:9001"


@click.command()
@click.option(
    "--admin",
    metavar="HOST:PORT",
    default=ADMIN,
    show_default=True,
    help="The gateway's admin address, its --admin-port.",
)
@click.option(
    "--every-s",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two screens.",
)
@click.option("--once", is_flag=True, help="Print one screen of totals and exit.")
@json_option
def top(admin: str, every_s: float, once: bool, as_json: bool) -> None:
    """Watch a gateway: variants, load, health, and what is chosen for which task.

    The admin port is open on the gateway's own machine alone (`trt-mtp gateway --admin-port 9001`);
    from elsewhere, forward it. Acceptance is the share of drafts that were kept since the gateway
    started, DRIFT how often a task's acceptance shifted and was learned anew. --json prints the
    statistics as they are, a line for each look. Ctrl-C stops.

    Example: trt-mtp top --admin 127.0.0.1:9001
    """
    import json
    import shutil
    import sys
    import time

    from trt_mtp.controller.admin_client import read_statistics
    from trt_mtp.controller.top import WIDTH, Look, screen

    before: Look | None = None
    while True:
        now = Look(time.monotonic(), read_statistics(admin))
        if as_json:
            click.echo(json.dumps(now.statistics))
        else:
            height = shutil.get_terminal_size((WIDTH, 24)).lines
            show = draw if sys.stdout.isatty() and not once else click.echo
            try:
                shown = screen(before, now, height)
            except (LookupError, TypeError, ValueError, AttributeError):  # somebody else's port
                raise InputError(
                    f"--admin {admin} is not a gateway's admin port (see --admin-port)"
                ) from None
            show(printable(shown))
        if once:
            return
        before = now
        time.sleep(every_s)
