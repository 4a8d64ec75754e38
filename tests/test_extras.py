"""The base is what a gateway and a rollout need; who needs an extra that is missing says so.

Environments here are real ones: a fresh one that holds links to our distributions, and of them only
those that pip would install.
"""

import ast
import importlib.metadata
import json
import os
import pty
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tests.calibration_fixtures import simulated_profile
from tests.gateway_fixtures import is_last, raw_stream, script_request
from tests.programs import TIMEOUT_S, read_line
from tests.variants import make_variant
from trt_mtp.build.variant import write_variant
from trt_mtp.cli import COMMANDS
from trt_mtp.controller.profile import write_profile
from trt_mtp.extras import EXTRAS
from trt_mtp.serve.triton import TritonServer

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOTS = ("trt_mtp.controller.gateway.cli", "trt_mtp.controller.rollout.cli")
CPU = "the cpu engine needs the cpu extra: pip install 'trt-mtp[cpu]'"
NVIDIA = "the tensorrt-llm engine needs the nvidia extra: pip install 'trt-mtp[nvidia]'"


def requirements(extra: str = "") -> list[Requirement]:
    """What pyproject.toml asks for, of an extra or without one."""
    found = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return [Requirement(text) for text in found]


def names(wanted: Iterable[Requirement]) -> set[NormalizedName]:
    """The distributions' names, without our own."""
    return {canonicalize_name(requirement.name) for requirement in wanted} - {"trt-mtp"}


def installed_by_pip(*extras: str) -> set[NormalizedName]:
    """The distributions that `pip install 'trt-mtp[EXTRAS]'` brings."""
    pending, seen = [Requirement(f"trt-mtp[{','.join(extras)}]")], set()
    while pending:
        wanted = pending.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        if key[0] == "trt-mtp":
            pending += [r for extra in ("", *wanted.extras) for r in requirements(extra)]
            continue
        asked = map(Requirement, importlib.metadata.requires(wanted.name) or ())
        kinds = ("", *wanted.extras)
        pending += [
            r for r in asked if not r.marker or any(r.marker.evaluate({"extra": k}) for k in kinds)
        ]
    return {name for name, _ in seen} - {"trt-mtp"}


def environment(folder: Path, *extras: str) -> Path:
    """The Python of a new environment with this checkout and what pip would install with it."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/*/site-packages")
    for name in installed_by_pip(*extras):
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or ()}
        for top in tops - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    (site / "checkout.pth").write_text(f"{ROOT}\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment without any extra."""
    return environment(tmp_path_factory.mktemp("base") / "venv")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of variants of both engines, without engines behind them."""
    folder = tmp_path_factory.mktemp("engines")
    make_variant(folder / "cpu", 0)
    trtllm = make_variant(folder / "trtllm", 0)
    write_variant(trtllm.folder, replace(trtllm.record, engine="tensorrt-llm"))
    return folder


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated profile."""
    file = tmp_path_factory.mktemp("profile") / "profile.json"
    write_profile(file, simulated_profile())
    return file


def run(python: Path, *command: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """`python` with these arguments; no Triton is named."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [python, *command], capture_output=True, text=True, cwd=cwd, env=kept, timeout=TIMEOUT_S
    )


def imports(module: str) -> Iterator[str]:
    """What a module of trt_mtp imports, at its top and inside functions."""
    file = ROOT / Path(*module.split(".")).with_suffix(".py")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_ours(name: str) -> bool:
    """Whether a module of that name is a file of trt_mtp."""
    is_inside = name.startswith("trt_mtp.")
    return is_inside and (ROOT / Path(*name.split(".")).with_suffix(".py")).is_file()


def reachable(roots: Sequence[str]) -> tuple[set[str], set[str]]:
    """Our modules that `roots` lead to, and the other top-level modules that these import."""
    ours, others, pending = set(roots), set(), list(roots)
    while pending:
        for name in imports(pending.pop()):
            if is_ours(name) and name not in ours:
                ours.add(name)
                pending.append(name)
            elif not name.startswith("trt_mtp"):
                others.add(name.partition(".")[0])
    return ours, others - sys.stdlib_module_names


def owners(modules: Iterable[str]) -> set[NormalizedName]:
    """The distributions of top-level modules, those that pyproject.toml names."""
    extras = PROJECT["optional-dependencies"]
    named = names(requirements()).union(*(names(requirements(extra)) for extra in extras))
    packages, found = importlib.metadata.packages_distributions(), set()
    for module in modules:
        owner = {canonicalize_name(name) for name in packages.get(module, ())} & named
        assert owner, f"pyproject.toml names no distribution that has {module}"
        found |= owner
    return found


def test_the_base_is_what_a_gateway_and_a_rollout_import() -> None:
    """Nothing is installed with trt-mtp that neither imports; only --shared needs an extra."""
    _, others = reachable(ROOTS)
    assert owners(others) == names([*requirements(), *requirements("redis")])


@pytest.mark.parametrize("extra", ["cpu", "plan", "redis", "report"])
def test_an_extra_is_what_is_asked_for(extra: str) -> None:
    """What decides whether an extra is there is all that it brings and that is imported."""
    assert owners(EXTRAS[extra]) == names(requirements(extra))


def test_all_is_for_the_demo() -> None:
    """`all` has every extra but those of GPUs, and requirements.lock holds it."""
    every = set(PROJECT["optional-dependencies"]) - {"nvidia", "vllm", "all"}
    assert installed_by_pip("all") == installed_by_pip(*every)
    lock = (ROOT / "requirements.lock").read_text()
    locked = set(map(canonicalize_name, re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)))
    assert installed_by_pip("all") <= locked


def test_modules_of_gateway_and_rollout_need_no_extra(base: Path, tmp_path: Path) -> None:
    """In the base, each module that they lead to and each command can be imported."""
    ours, _ = reachable(ROOTS)
    modules = sorted(ours | {place.partition(":")[0] for place, _ in COMMANDS.values()})
    script = f"import importlib\nfor name in {modules}: importlib.import_module(name)"
    ended = run(base, "-c", script, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_gateway_needs_no_extra(base: Path, doubles: TritonServer, tmp_path: Path) -> None:
    """In the base, `trt-mtp gateway` routes."""
    command = f"-m trt_mtp gateway --triton {doubles.grpc_url} --port 0 --json".split()
    with subprocess.Popen([base, *command], stdout=subprocess.PIPE, cwd=tmp_path) as process:
        try:
            address = json.loads(read_line(process))["gateway"]
            with raw_stream(address) as stream:
                stream.send(script_request(tokens=1, streaming=False))
                assert is_last(stream.receive())
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("build CHECKPOINT -o out", CPU),
        ("verify ENGINES/cpu", CPU),
        ("verify ENGINES/trtllm", NVIDIA),
        ("serve ENGINES/cpu", CPU),
        ("serve ENGINES/trtllm --repository out", NVIDIA),
        ("up CHECKPOINT -o out", CPU),
        ("calibrate --embedded CHECKPOINT -o out", CPU),
        (
            "demo -o out",
            "trt-mtp demo needs the cpu and report extras: pip install 'trt-mtp[cpu,report]'",
        ),
        (
            "gateway --triton localhost:1 --shared redis://localhost",
            "--shared needs the redis extra: pip install 'trt-mtp[redis]'",
        ),
        (
            "plan published --traffic PROFILE --gpus 4",
            "trt-mtp plan needs the plan extra: pip install 'trt-mtp[plan]'",
        ),
        (
            "report PROFILE",
            "a report as html needs the report extra: pip install 'trt-mtp[report]'",
        ),
        (
            "report PROFILE -o out.png",
            "a report as png needs the report extra: pip install 'trt-mtp[report]'",
        ),
    ],
)
def test_a_missing_extra_is_said(
    command: str,
    sentence: str,
    base: Path,
    checkpoint: Path,
    engines: Path,
    profile: Path,
    tmp_path: Path,
) -> None:
    """One sentence with the pip command, exit code 2, and nothing has been done."""
    ended = run(base, "-m", "trt_mtp", *words(command, checkpoint, engines, profile), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"trt-mtp: {sentence}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        "inspect CHECKPOINT",
        "build CHECKPOINT --gpu h100-80gb --trtllm-version 1.3.0rc27 --dry-run",
        "repo render ENGINES/cpu -o models",
        "explain Hello",
        "profile show PROFILE",
        "report PROFILE --format md",
        "report PROFILE --format json",
        "simulate --requests 200 --policy learned",
    ],
)
def test_what_needs_no_extra(
    command: str, base: Path, checkpoint: Path, engines: Path, profile: Path, tmp_path: Path
) -> None:
    """These commands work in the base."""
    ended = run(base, "-m", "trt_mtp", *words(command, checkpoint, engines, profile), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def words(command: str, checkpoint: Path, engines: Path, profile: Path) -> list[str]:
    """The arguments of a command, with the places' names put in."""
    places = {"CHECKPOINT": checkpoint, "ENGINES": engines, "PROFILE": profile}
    for name, place in places.items():
        command = command.replace(name, str(place))
    return command.split()


def test_no_triton_is_said(base: Path, tmp_path: Path) -> None:
    """A server that can't be found is named with both ways to have one."""
    script = "from trt_mtp.serve.triton_install import find_triton; find_triton()"
    ended = run(base, "-c", script, cwd=tmp_path)
    assert ended.stderr.rstrip().endswith("or pip install 'trt-mtp[triton]'")


def test_an_engine_that_is_not_installed_says_so(base: Path, engines: Path, tmp_path: Path) -> None:
    """Inside a Triton of its own, too, a variant is refused with the sentence."""
    script = "import sys; from pathlib import Path; from trt_mtp.serve.engine import open_engine\n"
    script += "open_engine(Path(sys.argv[1]))"
    for name, sentence in (("cpu", CPU), ("trtllm", NVIDIA)):
        ended = run(base, "-c", script, engines / name / "k0", cwd=tmp_path)
        assert ended.stderr.rstrip().endswith(f"InputError: {sentence}")


def test_progress_needs_no_extra(base: Path, tmp_path: Path) -> None:
    """On a terminal, too, progress is told in lines where nothing draws bars."""
    script = """
from trt_mtp.progress import shown
with shown("MB", scale=1e6) as meter:
    meter.update("packing", 0, 2_000_000)
    meter.say("warming up")
    meter.update("packing", 1_000_000, 2_000_000)
"""
    with terminal() as (master, slave):
        subprocess.run(
            [base, "-c", script], stderr=slave, check=True, cwd=tmp_path, timeout=TIMEOUT_S
        )
        told = os.read(master, 1000).decode()
    assert told.splitlines() == ["packing: 0 of 2 MB", "warming up"]


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal."""
    ends = pty.openpty()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def test_a_report_needs_its_extra_alone(profile: Path, tmp_path: Path) -> None:
    """With `report`, pages and pictures are drawn."""
    python = environment(tmp_path / "venv", "report")
    for name in ("page.html", "plots.png"):
        command = ("-m", "trt_mtp", "report", profile, "-o", name)
        ended = run(python, *command, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert (tmp_path / name).stat().st_size > 1000


def test_an_engine_needs_its_extra_alone(tmp_path: Path) -> None:
    """With `cpu`, everything that the engine and its server need is there."""
    python = environment(tmp_path / "venv", "cpu")
    script = "import trt_mtp.serve.engine.cpu as cpu, trt_mtp.serve.triton_install as install\n"
    script += "from trt_mtp.extras import require_engine\n"
    script += "require_engine('cpu'); print(install._wheel_install().server)"
    ended = run(python, "-c", script, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(str(tmp_path))
