"""The `trt-mtp` command: a table of commands, each imported when it is used."""

import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from trt_mtp import __version__
from trt_mtp.errors import OUT_OF_PROCESSES, InputError, TrtMtpError, is_out_of_processes
from trt_mtp.files import nearest
from trt_mtp.interrupts import EXIT_CODE, ending_in_time, is_interrupted
from trt_mtp.terminal import say

PROGRAM = "trt-mtp"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# name -> (where it is, its one-line help). The line is repeated here so that
# `trt-mtp --help` imports nothing; tests/test_cli.py holds the two equal.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "trt_mtp.controller.demo.cli:demo",
        "Run the whole stack on this machine and print the speedup per task.",
    ),
    "up": (
        "trt_mtp.controller.up_cli:up",
        "Build, serve and route in one foreground process, for local use.",
    ),
    "ask": (
        "trt_mtp.controller.ask_cli:ask",
        "Ask a running gateway one question and show the answer as it comes.",
    ),
    "inspect": (
        "trt_mtp.build.cli:inspect",
        "Show a checkpoint's model family, size, quantization and MTP head.",
    ),
    "build": (
        "trt_mtp.build.cli:build",
        "Build one engine variant per draft length from a checkpoint.",
    ),
    "serve": ("trt_mtp.serve.cli:serve", "Serve variants with Triton Inference Server."),
    "verify": (
        "trt_mtp.serve.verify_cli:verify",
        "Check that each variant answers as no speculation does; record it and its speed.",
    ),
    "doctor": (
        "trt_mtp.build.doctor_cli:doctor",
        "Check variants and this machine for known problems.",
    ),
    "accept": (
        "trt_mtp.controller.accept.cli:accept",
        "Try the whole stack on this machine and write one record of the result.",
    ),
    "gateway": (
        "trt_mtp.controller.gateway.cli:gateway",
        "Send each request to the variant expected to finish it first.",
    ),
    "top": (
        "trt_mtp.controller.top_cli:top",
        "Watch a gateway: variants, load, health, and what is chosen for which task.",
    ),
    "explain": (
        "trt_mtp.controller.policy_cli:explain",
        "Show which variant a request would go to, and why.",
    ),
    "calibrate": (
        "trt_mtp.controller.calibrate.calibrate_cli:calibrate",
        "Measure variants per task and load, and write a profile for the gateway.",
    ),
    "bench": (
        "trt_mtp.controller.calibrate.bench_cli:bench",
        "Benchmark one model, a variant or the gateway, per task.",
    ),
    "profile": (
        "trt_mtp.controller.calibrate.profile_cli:profile",
        "Show, compare, merge, check and estimate profiles.",
    ),
    "replay": (
        "trt_mtp.controller.policy_cli:replay",
        "Replay a decision log against the best possible, the best fixed and no draft length.",
    ),
    "report": (
        "trt_mtp.controller.report.cli:report",
        "Render a profile or a replay as HTML, Markdown, CSV, JSON or PNG.",
    ),
    "simulate": (
        "trt_mtp.controller.simulate.cli:simulate",
        "Simulate a fleet under different routing policies.",
    ),
    "plan": (
        "trt_mtp.controller.plan.cli:plan",
        "Plan a fleet: how many replicas of which draft length, and whether a router pays.",
    ),
    "rollout": (
        "trt_mtp.controller.rollout.cli:rollout",
        "Roll out a variant, draft length or profile in steps, with automatic rollback.",
    ),
    "repo": ("trt_mtp.serve.cli:repo", "Work with Triton model repositories."),
    "completion": (
        "trt_mtp.completion_cli:completion",
        "Print a completion script for bash, zsh or fish.",
    ),
}

GROUPS = {
    "Try": ("demo", "up", "ask", "accept"),
    "Build and serve": ("inspect", "build", "verify", "doctor", "serve", "repo"),
    "Measure": ("bench", "calibrate", "profile", "report"),
    "Route and operate": ("gateway", "top", "rollout", "explain", "replay"),
    "Plan": ("simulate", "plan"),
    "Shell": ("completion",),
}

EPILOG = (
    "Exit codes: 0 success, 1 failure, 2 usage error or invalid input, 130 interrupted; "
    "`calibrate` also uses 3, `rollout` 3 to 5. Results go to stdout; logs and progress go to "
    "stderr. Options can also be environment variables: TRT_MTP_GATEWAY_PORT is --port of "
    "`trt-mtp gateway`."
)


PREFIX = "TRT_MTP"  # TRT_MTP_GATEWAY_PORT is --port of `trt-mtp gateway`


def name_variables(command: click.Command, prefix: str) -> None:
    """Call every option's variable after the option; click calls it after our own argument."""
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            name_variables(each, f"{prefix}_{name}")
    for option in command.params:
        if isinstance(option, click.Option) and option.envvar is None:
            option.envvar = f"{prefix}_{option.opts[-1].lstrip('-')}".upper().replace("-", "_")


class LazyGroup(click.Group):
    """A click group whose commands are imported only when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the help."""
        return [name for names in GROUPS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called `cmd_name`, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        name_variables(command, f"{PREFIX}_{cmd_name}")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest command named when there is none."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's own lines, without importing any command."""
        width = max(map(len, COMMANDS))
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), COMMANDS[name][1]) for name in names])


SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "auto_envvar_prefix": PREFIX,
}


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings=SETTINGS)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Build, serve and route Qwen MTP engine variants on TensorRT-LLM and Triton."""
    from trt_mtp.build.hooks import Hooks

    ctx.obj = Hooks(verify, schedules)


def verify(reference: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What `build` checks its variants with; joined here, because build/ never imports serve/."""
    from trt_mtp.serve.verify import verify_variants

    return [result.to_json() for result in verify_variants(reference, folders)]


def schedules(
    profile: Path,
    draft_lengths: Sequence[int],
    max_batch_size: int,
    mix: str | None,
) -> dict[int, dict[int, int]]:
    """Where `build` has draft lengths by load from; joined here for the same reason."""
    from trt_mtp.controller.calibrate.measured_schedule import schedules

    return schedules(profile, draft_lengths, max_batch_size, mix)


def prepare_outputs() -> None:
    """What is written never fails for the stream that it goes to.

    Stdout and stderr that whoever started us closed (`>&-`) go nowhere; what stdout's encoding has
    no letters for is written as stderr does it, `\\u6a21`.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (to the end)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line; what a user can cause ends in one line on stderr."""
    # for processes that we start: a secrets.py in the working folder is no module of ours
    os.environ["PYTHONSAFEPATH"] = "1"
    # where whoever started us ignores it, every child would seem to have ended with 0
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    prepare_outputs()
    try:
        with ending_in_time():
            code = cli.main(prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        say(shown.getvalue().rstrip("\n"), err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = EXIT_CODE
    except BrokenPipeError:
        # the reader went away (`| head`); point stdout elsewhere so that exit can't fail on it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except TrtMtpError as error:
        say(f"trt-mtp: {error}", err=True)
        code = error.exit_code
    except BaseException as error:  # what Rust raises is no Exception
        if is_out_of_processes(error):
            say(f"trt-mtp: {OUT_OF_PROCESSES}", err=True)
            code = 1
        elif isinstance(error, OSError) and error.errno in DISK_FULL:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            click.echo(f"trt-mtp: the output can't be written: {error.strerror}", err=True)
            code = 1
        elif isinstance(error, PermissionError) and error.filename is not None:
            say(f"trt-mtp: {os.fsdecode(error.filename)} can't be used: {error.strerror}", err=True)
            code = InputError.exit_code
        elif isinstance(error, Exception) and not isinstance(error, OSError) and is_interrupted():
            code = EXIT_CODE
        else:
            raise
    sys.exit(code if isinstance(code, int) else 0)
