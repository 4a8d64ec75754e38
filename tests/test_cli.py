"""The command line as a whole: help, exit codes, and how failures are shown."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from tests.conftest import CliResult
from tests.programs import TIMEOUT_S, read_line, within
from tests.tiny_model import make_checkpoint
from trt_mtp.cli import COMMANDS, LazyGroup
from trt_mtp.cli import cli as root
from trt_mtp.options import SectionedCommand

Cli = Callable[..., CliResult]


def test_help_imports_no_command() -> None:
    """`trt-mtp --help` imports nothing but click and our own root, so it stays quick."""
    script = (
        "import sys\nfrom trt_mtp.cli import main\nsys.argv = ['trt-mtp', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'numba', 'torch', 'grpc', 'pydantic', 'rich', 'trt_mtp.build.cli'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert run.stderr == "[]\n"
    assert all(f"  {name} " in run.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name: str) -> None:
    """The summary in the table is the first line of the command's own help; it has an example."""
    assert isinstance(root, LazyGroup)
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert command.help is not None
    assert command.help.partition("\n")[0] == COMMANDS[name][1]
    assert "Example: trt-mtp" in command.help or isinstance(command, click.Group)


def leaves(
    group: click.Group, context: click.Context, path: str
) -> Iterator[tuple[str, click.Command]]:
    """Every command below `group`, by how it is called."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, context, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_option_is_explained_within_80_columns() -> None:
    """Each option is in its command's help, with words of its own."""
    assert isinstance(root, click.Group)
    for path, command in leaves(root, click.Context(root), "trt-mtp"):
        context = click.Context(command, info_name=path, terminal_width=80)
        text = command.get_help(context)
        assert max(map(len, text.splitlines())) <= 80, path
        options = [p for p in command.get_params(context) if isinstance(p, click.Option)]
        for option in options:
            assert option.help, (path, option.opts)
            names = re.escape(", ".join(sorted(option.opts, key=len)))
            assert re.search(rf"(?m)^  {names}(?![\w-])", text), (path, option)
        if isinstance(command, SectionedCommand):
            named = [name for names in command.sections.values() for name in names]
            assert len(set(named)) == len(named)
            assert set(named) <= {option.opts[-1] for option in options}, path


def test_an_unknown_command_names_the_nearest(cli: Cli) -> None:
    """A typing error ends with 2 and a suggestion."""
    result = cli("biuld")
    assert result.code == 2
    assert "No such command 'biuld'; did you mean build?" in result.err


def test_module_and_script_are_one() -> None:
    """`python -m trt_mtp` is the command."""
    run = subprocess.run(
        [sys.executable, "-m", "trt_mtp", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert run.stdout.startswith("trt-mtp, version ")


def test_a_reader_that_goes_away_is_no_error(checkpoint: Path) -> None:
    """Output into a closed pipe ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "trt_mtp", "inspect", str(checkpoint), "--json"]
    run = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S
    )
    os.close(writer)
    assert run.stderr == ""
    assert run.returncode != 0


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    """An interrupted command leaves no traceback."""
    engines = tmp_path / "engines"
    engines.mkdir()
    # a build that waits for another one is certainly still there when the signal comes
    holder = (
        "import fcntl, sys\nf = open(sys.argv[1], 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(engines / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as held:
        assert read_line(held) == "held\n"
        source = make_checkpoint(tmp_path / "c")
        command = [sys.executable, "-m", "trt_mtp", "build", str(source), "-o", str(engines)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            with within(waiting):
                assert waiting.stderr.readline() == "waiting for another build\n"
                waiting.send_signal(signal.SIGINT)
                rest = waiting.stderr.read()
        held.communicate("", timeout=TIMEOUT_S)
    assert waiting.returncode == 130
    assert "Traceback" not in rest


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_options(cli: Cli, shell: str) -> None:
    """The script asks the command itself, which answers with what fits."""
    script = cli("completion", shell)
    assert (script.code, script.err) == (0, "")
    assert "_TRT_MTP_COMPLETE=" in script.out.replace("env ", "")
    for words, found in {
        "trt-mtp cal": "calibrate",
        "trt-mtp gateway --max-w": "--max-waiting",
    }.items():
        last = words.split()[-1]
        place = {
            "COMP_WORDS": words,
            "COMP_CWORD": last if shell == "fish" else str(words.count(" ")),
        }
        run = subprocess.run(
            [sys.executable, "-m", "trt_mtp"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=os.environ | place | {"_TRT_MTP_COMPLETE": f"{shell}_complete"},
        )
        assert found in run.stdout, run.stderr


@pytest.mark.parametrize(
    ("shell", "code", "says"),
    [
        ("exec {} > /dev/full", 1, "the output can't be written: No space left on device"),
        ("exec {} >&-", 0, ""),
        ("exec {} 2>&-", 0, ""),
    ],
    ids=["full disk", "closed stdout", "closed stderr"],
)
def test_an_output_that_takes_nothing_is_no_traceback(shell: str, code: int, says: str) -> None:
    """A disk that is full is one sentence; a stream that was closed takes what is written."""
    command = f"{sys.executable} -m trt_mtp --help"
    run = subprocess.run(
        ["bash", "-c", shell.format(command)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == code
    assert says in run.stderr
    assert "Traceback" not in run.stderr


def test_a_file_of_another_user_is_one_sentence(
    cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a command does with it, as where an umask of 077 kept a folder to who made it."""

    def glob(folder: Path, pattern: str) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder / pattern))

    monkeypatch.setattr(Path, "glob", glob)
    result = cli("inspect", checkpoint)
    assert (result.code, result.out) == (2, "")
    file = checkpoint / "*.safetensors"
    assert result.err == f"trt-mtp: {file} can't be used: Permission denied\n"


def test_letters_that_stdout_has_not_are_escaped(tmp_path: Path) -> None:
    """Where the terminal's encoding is an old one, a path in another script is no traceback."""
    folder = make_checkpoint(tmp_path / "模型")
    run = subprocess.run(
        [sys.executable, "-m", "trt_mtp", "inspect", str(folder)],
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert f"{tmp_path}/\\u6a21\\u578b" in run.stdout


@pytest.mark.parametrize("value", ["cpp", "nonsense"])
def test_a_variable_for_old_versions_of_protobuf_changes_nothing(value: str) -> None:
    """Shells export it; every import of protobuf would fail."""
    run = subprocess.run(
        [sys.executable, "-m", "trt_mtp", "ask", "--url", "127.0.0.1:9", "hello"],
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": value},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("trt-mtp: no gateway answers at 127.0.0.1:9")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        BaseException('Os { code: 11, message: "Resource temporarily unavailable" }'),
    ],
    ids=["Python", "fork", "Rust"],
)
def test_a_limit_of_processes_is_named(
    cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Containers allow few: one sentence says which limit to raise."""

    def read(folder: Path) -> None:
        raise error

    monkeypatch.setattr("trt_mtp.build.cli.read_checkpoint", read)
    result = cli("inspect", checkpoint)
    assert (result.code, result.out) == (1, "")
    assert "raise the limit (`ulimit -u`" in result.err
    assert result.err.count("\n") == 1
