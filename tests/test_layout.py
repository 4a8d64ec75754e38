"""The rules of the layout: code in build/, serve/ and controller/, imported as trt_mtp.*."""

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import trt_mtp.build.variant
import trt_mtp.errors
from tests.programs import TIMEOUT_S
from trt_mtp.build.variant import EngineVariant

ROOT = Path(__file__).parents[1]
PARTS = ("build", "serve", "controller")
# what each part may import of the others
BELOW = {"build": (), "serve": ("build",), "controller": ("serve", "build")}


def test_one_identity_for_each_class() -> None:
    """A class is known by its trt_mtp name, and by no second one."""
    assert EngineVariant.__module__ == trt_mtp.build.variant.__name__ == "trt_mtp.build.variant"
    assert "build.variant" not in sys.modules


@pytest.mark.parametrize("part", PARTS)
def test_links(part: str) -> None:
    """In a checkout, trt_mtp/<part> is a link to the folder at the top."""
    assert (ROOT / "trt_mtp" / part).readlink() == Path("..", part)


@pytest.mark.parametrize("part", PARTS)
def test_no_init_file(part: str) -> None:
    """build/__init__.py would hide PyPA's build, and the others are alike."""
    assert not (ROOT / part / "__init__.py").exists()


def test_pypas_build_is_found_at_the_root() -> None:
    """`python -m build` works in the checkout although there is a folder of that name."""
    spec = find_spec("build")
    assert spec is not None
    assert spec.origin is not None
    assert ROOT not in Path(spec.origin).parents or ".venv" in spec.origin


def test_make_clean_leaves_the_sources() -> None:
    """`make clean` removes what was made, and build/ is source."""
    run = subprocess.run(
        ["make", "-n", "clean"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    removed = [word for line in run.stdout.splitlines() for word in line.split()]
    assert "engines" in removed
    assert not {part.rstrip("/") for part in removed} & {*PARTS, "trt_mtp", "tests", "assets"}


@pytest.mark.parametrize("part", PARTS)
def test_imports_go_one_way(part: str) -> None:
    """controller -> serve -> build -> trt_mtp; nothing imports upward."""
    allowed = (part, *BELOW[part])
    for file in (ROOT / part).rglob("*.py"):
        for other in re.findall(r"(?:from|import) trt_mtp\.(\w+)", file.read_text()):
            assert other not in PARTS or other in allowed, f"{file} imports trt_mtp.{other}"


def test_the_tree_of_errors_is_whole() -> None:
    """Every error that a user can cause ends in Error and stands in the tree, with its file."""
    tree = trt_mtp.errors.__doc__ or ""
    subclass = re.compile(r"^class (\w+)\((?:TrtMtpError|InputError)\)", re.MULTILINE)
    for file in (file for part in PARTS for file in (ROOT / part).rglob("*.py")):
        for name in subclass.findall(file.read_text()):
            assert re.search(rf"\b{name}\b", tree), f"{file}: {name}"
            assert str(file.relative_to(ROOT)) in tree, f"{file}: {name}"
            assert name.endswith("Error"), f"{file}: {name}"


# the rooms of controller/, and which of the others each may import
ROOMS: dict[str, tuple[str, ...]] = {
    "": (),
    "gateway": ("",),
    "report": ("",),
    "simulate": ("",),
    "calibrate": ("", "gateway", "report"),
    "plan": ("", "calibrate", "report", "simulate"),
    "rollout": ("", "gateway"),
    "demo": ("", "calibrate", "report"),
    "accept": ("", "calibrate"),
}


def test_rooms_of_the_controller_import_one_way() -> None:
    """What decides and learns knows nothing of the doors and tools around it; no circles."""
    for file in (ROOT / "controller").rglob("*.py"):
        room = "/".join(file.relative_to(ROOT / "controller").parts[:-1]).partition("/")[0]
        for path in re.findall(r"from trt_mtp\.controller\.([\w.]+) import", file.read_text()):
            other = path.partition(".")[0] if path.partition(".")[0] in ROOMS else ""
            assert other == room or other in ROOMS[room], f"{file} imports controller.{path}"


def test_tests_lie_where_their_code_does() -> None:
    """A folder of tests of build/, serve/ or controller/ has the name of a folder of the source."""
    for part in PARTS:
        for file in (ROOT / "tests" / part).rglob("test_*.py"):
            assert (ROOT / file.parent.relative_to(ROOT / "tests")).is_dir(), file


def test_no_test_imports_a_test() -> None:
    """What several tests need is a plain module, or a fixture in a conftest.py."""
    for folder in ("tests", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            found = re.search(r"^\s*from tests\.(?:\w+\.)*test_\w+ import", file.read_text(), re.M)
            assert not found, f"{file}: {found}"


def source_names() -> set[str]:
    """Every module and data file of the package, as a wheel names it."""
    names = {f"trt_mtp/{file.name}" for file in (ROOT / "trt_mtp").glob("*.py")}
    for part in PARTS:
        names |= {
            f"trt_mtp/{part}/{file.relative_to(ROOT / part)}"
            for file in (ROOT / part).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
    return names | {"trt_mtp/py.typed"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, timeout=TIMEOUT_S)
    return folder


def test_the_wheel_has_every_module(built: Path) -> None:
    """The wheel that is built from the sdist has what trt_mtp runs on, and nothing at the top."""
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert packaged == source_names()


def test_the_sdist_mirrors_the_repository(built: Path) -> None:
    """The sdist has the folders where they lie in the repository, tests included."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"build/variant.py", "pyproject.toml", "tests/test_layout.py", "Makefile"} <= names


def test_the_installed_wheel_runs(built: Path, tmp_path: Path) -> None:
    """In a fresh environment, outside the checkout, the installed command shows its help."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "v", symlinks=True)
    python = tmp_path / "v" / "bin" / "python"
    # our own environment's packages stand in for the dependencies, so nothing is downloaded
    (site,) = (tmp_path / "v" / "lib").glob("*/site-packages")
    own = next(path for path in sys.path if path.endswith("site-packages"))
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        timeout=TIMEOUT_S,
    )
    (site / "dependencies.pth").write_text(own)
    for command in (["--help"], ["build", "--help"], ["--version"]):
        run = subprocess.run(
            [tmp_path / "v" / "bin" / "trt-mtp", *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
            timeout=TIMEOUT_S,
        )
        assert run.returncode == 0, run.stderr
    where = subprocess.run(
        [python, "-c", "import trt_mtp.build.variant as v; print(v.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        check=True,
        timeout=TIMEOUT_S,
    )
    assert where.stdout.startswith(str(site))
