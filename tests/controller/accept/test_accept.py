"""`trt-mtp accept` on the embedded engine, whole: what ran, what is told, and what is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CliResult
from tests.controller.accept.running import SECRET, Ran, accept
from tests.engine_fixtures import ASSET
from trt_mtp.controller.accept.record import read_record
from trt_mtp.controller.accept.verdict import REASONS

Cli = Callable[..., CliResult]
ARGUMENTS = ("--draft-lengths", "0,3", "--budget", "calibrate=8s", "--json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint in a directory whose name is secret, with a secret prompt."""
    folder = tmp_path_factory.mktemp("checkpoints") / SECRET
    shutil.copytree(ASSET, folder)
    prompts = (folder / "prompts.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(prompts[0])
    first["messages"][0]["content"] += f"\n\nPassword: {SECRET}."
    (folder / "prompts.jsonl").write_text(json.dumps(first) + "\n" + "".join(prompts[1:]))
    return folder


@pytest.fixture(scope="module")
def ran(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A whole run."""
    folder = tmp_path_factory.mktemp("acceptance") / SECRET
    result = accept(folder, checkpoint, *ARGUMENTS)
    assert result.code == 0, result.err
    return result


def test_the_whole_chain(ran: Ran) -> None:
    """Every step and every check passes, and the numbers of each are there."""
    record = ran.record
    assert json.loads(ran.out) == record
    assert {one["name"]: one["status"] for one in record["steps"]} == dict.fromkeys(
        ("doctor", "build", "verify", "serve", "smoke", "calibrate"), "passed"
    )
    assert set(ran.checks().values()) == {("passed", "")}
    assert len(record["checks"]) == 8
    assert [one["name"] for one in record["variants"]] == ["k0", "k3"]
    for variant in record["variants"]:
        assert variant["is_passed"]
        assert variant["is_hosted"]
        assert variant["left_at"] == []
        assert [step["batch_size"] for step in variant["steps"]] == [1, 2, 4, 8]
    assert record["versions"]["triton"].startswith("2.")
    assert {cell["draft_length"] for cell in record["cells"]} == {0, 3}
    assert record["machine"]["gpu"] is None
    assert ran.page.startswith("# trt-mtp accept: all steps passed\n")
    assert "Nothing of what was tried." in ran.page
    assert "| k3 | 3 | yes, 768 tokens |" in ran.page


def test_no_secret_leaves(ran: Ran) -> None:
    """Paths, prompts, variables and names of the machine are in its logs at most."""
    assert SECRET in (ran.folder / "verify.log").read_text()
    ran.require_no_secret()
    private = [*ran.folder.glob("*.log"), ran.folder / "journal.jsonl"]
    assert {file.stat().st_mode & 0o077 for file in private} == {0}


def test_again(ran: Ran, checkpoint: Path) -> None:
    """The same command resumes all that takes time; nothing is served for it."""
    again = accept(ran.folder, checkpoint, *ARGUMENTS)
    assert again.code == 0, again.err
    resumed = {one["name"]: one["is_resumed"] for one in again.record["steps"]}
    names = ("verify", "serve", "smoke", "calibrate")
    assert resumed == {"doctor": False, "build": False, **dict.fromkeys(names, True)}
    assert "Triton: " not in again.err
    for key in ("variants", "checks", "cells", "best", "versions"):
        assert again.record[key] == ran.record[key]


def test_show(ran: Ran, cli: Cli) -> None:
    """A record can be read back, as the page or as it is."""
    file = ran.folder / "record.json"
    assert cli("accept", "--show", file).out == ran.page
    assert cli("accept", "--show", file, "--json").out == file.read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema_version": 2}, "is a record of version 2, and this trt-mtp reads version 1"),
        ({"schema_version": None}, "is a record of version None"),
        ({"engines": 1}, "unknown key engines; did you mean engine?"),
        ({"engine": "vlm"}, "engine is 'vlm': Input should be 'cpu', 'tensorrt-llm' or 'vllm'"),
        ({"family": "Ada's model"}, 'family is "Ada\'s model"'),
    ],
)
def test_a_record_that_is_none(
    ran: Ran, tmp_path: Path, cli: Cli, change: dict[str, object], sentence: str
) -> None:
    """Another version, other keys and other words are refused with the reason."""
    file = tmp_path / "record.json"
    file.write_text(json.dumps({**ran.record, **change}))
    result = cli("accept", "--show", file)
    assert result.code == 2
    assert sentence in result.err


def test_skipped_steps(ran: Ran, checkpoint: Path, tmp_path: Path) -> None:
    """Skipped steps are said on top; what needs a server that doesn't run is not run."""
    skips = [word for name in ("build", "serve") for word in ("--skip", name)]
    result = accept(tmp_path, checkpoint, "--engines", str(ran.folder / "engines"), *skips)
    assert result.code == 1, result.err
    top = result.page.partition("\n")[0]
    assert top == (
        "# trt-mtp accept: not run: smoke, calibrate; skipped: build, serve; passed: doctor, verify"
    )
    record = read_record(tmp_path / "record.json")
    assert [(one.name, one.is_passed) for one in record.variants] == [("k0", True), ("k3", True)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--skip", "smok"), "--skip 'smok' is not a step; did you mean smoke?"),
        (("--budget", "smoke"), "--budget 'smoke': expected STEP=TIME, such as verify=20m"),
        (("--budget", "doctr=1m"), "--budget 'doctr' is not a step; did you mean doctor?"),
        (("--budget", "smoke=soon"), "--budget 'soon': expected a time"),
        (("--draft-lengths", "1,3"), "expected 0 and at least one other"),
        (("--draft-lengths", "0"), "expected 0 and at least one other"),
        (("--engine", "tensorrt-llm"), "needs the nvidia extra"),
        (("no-such-checkpoint",), "no-such-checkpoint"),
    ],
)
def test_bad_input(tmp_path: Path, cli: Cli, arguments: tuple[str, ...], sentence: str) -> None:
    """What was typed wrongly is said before anything runs."""
    result = cli("accept", *arguments, "-o", tmp_path / "acceptance")
    assert result.code == 2
    assert sentence in result.err
    assert not (tmp_path / "acceptance").exists()


def test_reasons_are_sentences_without_values() -> None:
    """What a check may say is fixed."""
    assert all(text and "{" not in text for text in REASONS.values())
