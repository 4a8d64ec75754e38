"""`trt-mtp build` for the CPU engine: what it writes, leaves alone, and leaves when it fails."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import CliResult
from tests.programs import TIMEOUT_S, within
from tests.tiny_model import (
    make_checkpoint,
    random_tensors,
    text_config_of,
    write_json,
    write_safetensors,
)
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.cpu import build_cpu
from trt_mtp.build.store import SHARED, TEMPORARY, locked
from trt_mtp.build.variant import fingerprint_of, list_variants, read_variant
from trt_mtp.errors import InputError

Cli = Callable[..., CliResult]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint of one test's own."""
    return make_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def build(cli: Cli, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that builds into tmp_path/engines, unverified, and returns what is printed."""

    def run(source: Path, lengths: str = "0,1,3", *options: str) -> dict[str, Any]:
        where = ["-o", tmp_path / "engines", "--draft-lengths", lengths]
        result = cli("build", source, "--engine", "cpu", *where, "--no-verify", "--json", *options)
        assert result.code == 0, result.err
        printed = json.loads(result.out)
        assert isinstance(printed, dict)
        return printed

    return run


def statuses(printed: dict[str, Any]) -> dict[str, str]:
    """Name -> built or unchanged."""
    return {variant["name"]: variant["status"] for variant in printed["variants"]}


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of everything below `folder`."""
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def test_one_folder_for_each_draft_length(
    build: Callable[..., dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    """Variants are named by draft length, share one folder of weights and say what they are of."""
    assert statuses(build(source)) == {"k0": "built", "k1": "built", "k3": "built"}
    variants = list_variants(tmp_path / "engines")
    assert [(v.name, v.draft_length, v.engine) for v in variants] == [
        ("k0", 0, "cpu"),
        ("k1", 1, "cpu"),
        ("k3", 3, "cpu"),
    ]
    assert len({v.record.fingerprint for v in variants}) == 1
    assert variants[0].record.fingerprint == fingerprint_of(variants[0].record.measured_on)
    (shared,) = {(v.folder / str(v.record.shared)).resolve() for v in variants}
    assert {"weights.bin", "weights.json", "config.json", "tokenizer.json"} <= set(
        os.listdir(shared)
    )
    assert variants[0].record.checkpoint["family"] == "qwen3.5"
    assert variants[0].record.max_seq_len == 512


def test_building_again_does_nothing(
    build: Callable[..., dict[str, Any]], source: Path, tmp_path: Path, cli: Cli
) -> None:
    """The second build changes no file and says so."""
    build(source)
    before = files_of(tmp_path / "engines")
    assert set(statuses(build(source)).values()) == {"unchanged"}
    assert files_of(tmp_path / "engines") == before
    lengths = ["--draft-lengths", "0,1,3", "--no-verify"]
    result = cli("build", source, "--engine", "cpu", "-o", tmp_path / "engines", *lengths)
    assert "nothing to do" in result.out


def test_a_further_length_adds_only_itself(
    build: Callable[..., dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    """Another draft length is one more record; weights and other variants are left alone."""
    build(source)
    before = files_of(tmp_path / "engines")
    assert statuses(build(source, "1,2")) == {"k1": "unchanged", "k2": "built"}
    after = files_of(tmp_path / "engines")
    assert after.keys() - before.keys() == {"k2/variant.json"}
    assert {name: after[name] for name in before} == before


def test_another_size_rewrites_records_only(
    build: Callable[..., dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    """The batch size is in the record, not in the weights."""
    build(source)
    before = files_of(tmp_path / "engines" / SHARED)
    assert set(statuses(build(source, "0,1,3", "--max-batch-size", "4")).values()) == {"built"}
    assert files_of(tmp_path / "engines" / SHARED) == before


def test_a_changed_checkpoint_replaces_everything(
    build: Callable[..., dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    """Other weights are another model: its variants go, those not asked for too."""
    build(source, "0,1,3")
    make_checkpoint(source, seed=1)
    printed = build(source, "0,1")
    assert statuses(printed) == {"k0": "built", "k1": "built"}
    assert printed["removed"] == ["k3"]
    assert [v.name for v in list_variants(tmp_path / "engines")] == ["k0", "k1"]
    assert len(list((tmp_path / "engines" / SHARED).iterdir())) == 1


def test_a_moved_checkpoint_changes_nothing(
    build: Callable[..., dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    """Content counts, not the place."""
    build(source)
    source.rename(tmp_path / "elsewhere")
    assert set(statuses(build(tmp_path / "elsewhere")).values()) == {"unchanged"}


def test_another_version_is_built_again(
    build: Callable[..., dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    """A record of another version is refused when read and replaced when built."""
    build(source, "1")
    file = tmp_path / "engines" / "k1" / "variant.json"
    record = json.loads(file.read_text())
    record["versions"]["trt_mtp"] = "0.0.3"
    write_json(file, record)
    with pytest.raises(InputError, match=r"was built by trt-mtp 0\.0\.3"):
        read_variant(file.parent)
    assert statuses(build(source, "1")) == {"k1": "built"}
    assert read_variant(file.parent).name == "k1"


def test_named_chat_templates_are_built_in(
    build: Callable[..., dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    """A folder in the checkpoint, as transformers saves them; a changed one is built again."""
    own = source / "additional_chat_templates" / "tool_use.jinja"
    own.parent.mkdir()
    built = []
    for text in ("tools: {{ tools | length }}", "{{ tools | length }} tools"):
        own.write_text(text)
        assert statuses(build(source, "0")) == {"k0": "built"}
        shared = next((tmp_path / "engines" / SHARED).iterdir())
        built.append((shared / "additional_chat_templates" / "tool_use.jinja").read_text())
    assert built == ["tools: {{ tools | length }}", "{{ tools | length }} tools"]


def test_verification_is_done_once_and_kept(cli: Cli, source: Path, tmp_path: Path) -> None:
    """Each variant answers as no speculation does, the record says so, and a rebuild keeps it."""
    command = ["build", source, "--engine", "cpu", "-o", tmp_path / "engines", "--json"]
    first = cli(*command, "--draft-lengths", "2")
    assert first.code == 0, first.err
    assert "verifying k2" in first.err
    (variant,) = list_variants(tmp_path / "engines")  # the reference for it is not listed
    assert variant.record.verification["is_identical"] is True
    assert variant.record.verification["num_tokens"] > 0
    again = cli(*command, "--draft-lengths", "2")
    assert "verifying" not in again.err
    assert json.loads(again.out)["variants"][0]["verification"] == variant.record.verification


def test_variants_of_another_engine_are_not_touched(
    build: Callable[..., dict[str, Any]], cli: Cli, source: Path, tmp_path: Path
) -> None:
    """A folder with variants for NVIDIA servers is refused, not emptied."""
    build(source, "1")
    file = tmp_path / "engines" / "k1" / "variant.json"
    write_json(file, json.loads(file.read_text()) | {"engine": "tensorrt-llm"})
    result = cli("build", source, "--engine", "cpu", "-o", tmp_path / "engines")
    assert result.code == 2
    assert "holds tensorrt-llm variants (k1)" in result.err
    assert file.exists()


def run_build(source: Path, engines: Path, **options: Any) -> subprocess.Popen[str]:
    """A build in a process of its own."""
    command = [sys.executable, "-m", "trt_mtp", "build", str(source), "--engine", "cpu"]
    command += ["-o", str(engines), "--draft-lengths", "0,1,3", "--no-verify"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_full_disk_is_one_sentence(source: Path, tmp_path: Path) -> None:
    """When the weights can't be written, nothing of them is left and the exit code is 1."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    with run_build(source, tmp_path / "engines", preexec_fn=limit) as process:
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert re.search(r"^trt-mtp: can't write .*: File too large$", err, re.MULTILINE)
    assert "Traceback" not in err
    assert not list((tmp_path / "engines" / SHARED).iterdir())
    assert not list((tmp_path / "engines").glob("k*"))


def test_a_record_that_cannot_be_written_leaves_no_folder(source: Path, tmp_path: Path) -> None:
    """What is there stays, and is whole; the variant that didn't fit has not even a folder."""
    engines = tmp_path / "engines"
    with run_build(source, engines) as process:
        process.communicate(timeout=TIMEOUT_S)
    for length in (1, 3):
        shutil.rmtree(engines / f"k{length}")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    with run_build(source, engines, preexec_fn=limit) as process:
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert re.search(
        r"^trt-mtp: can't write .*/k1/variant.json: File too large$", err, re.MULTILINE
    )
    assert [folder.name for folder in engines.glob("k*")] == ["k0"]


def test_too_little_space_is_seen_before_writing(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of the packed weights is known and compared with what is free."""
    nearly_full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nearly_full)
    result = cli("build", source, "--engine", "cpu", "-o", tmp_path / "engines")
    assert result.code == 1
    assert "0.00 GB free" in result.err


def test_a_folder_that_cannot_be_written(cli: Cli, source: Path, tmp_path: Path) -> None:
    """An output folder below a file is one sentence."""
    (tmp_path / "file").write_text("")
    result = cli("build", source, "--engine", "cpu", "-o", tmp_path / "file" / "engines")
    assert result.code == 1
    assert result.err.startswith(f"trt-mtp: can't write to {tmp_path / 'file' / 'engines'}")


@pytest.mark.parametrize("at", ["hashing the checkpoint", "packing the weights"])
def test_a_killed_build_leaves_no_half_variant(
    build: Callable[..., dict[str, Any]], tmp_path: Path, at: str
) -> None:
    """After SIGKILL there is no variant that can't be read, and the next build finishes."""
    source = make_checkpoint(tmp_path / "checkpoint", intermediate_size=8192)
    with run_build(source, tmp_path / "engines") as process:
        assert process.stderr is not None
        with within(process):
            next(line for line in process.stderr if line.startswith(at))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_S)
    for file in (tmp_path / "engines").glob("k*/variant.json"):
        read_variant(file.parent)
    assert set(statuses(build(source))) == {"k0", "k1", "k3"}
    assert len(list_variants(tmp_path / "engines")) == 3
    assert not list((tmp_path / "engines" / SHARED).glob(f"{TEMPORARY}*"))


def test_ctrl_c_cleans_up(source: Path, tmp_path: Path) -> None:
    """An interrupted build takes its unfinished files with it."""
    engines = tmp_path / "engines"

    def interrupt(label: str, done: int, total: int) -> None:
        if label == "packing the weights" and done > total // 2:
            assert list((engines / SHARED).glob(f"{TEMPORARY}*/weights.bin"))
            raise KeyboardInterrupt

    found = read_checkpoint(source)
    with locked(engines, lambda: None), pytest.raises(KeyboardInterrupt):
        build_cpu(found, (0, 1), engines, max_batch_size=8, max_seq_len=None, progress=interrupt)
    assert not list((engines / SHARED).iterdir())
    assert not list(engines.glob("k*"))


def test_no_other_user_can_hold_the_lock(tmp_path: Path) -> None:
    """Who may open the file could keep every build waiting."""
    with locked(tmp_path, lambda: None):
        assert (tmp_path / ".lock").stat().st_mode & 0o007 == 0


def test_two_builds_at_once_take_turns(source: Path, tmp_path: Path) -> None:
    """Of two builds of one checkpoint, one packs; both end well."""
    engines = tmp_path / "engines"
    with run_build(source, engines) as one, run_build(source, engines) as two:
        ends = [process.communicate(timeout=TIMEOUT_S) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0]
    assert sum("packing the weights" in err for _, err in ends) == 1
    assert sum("nothing to do" in out for out, _ in ends) == 1
    assert len(list_variants(engines)) == 3


def test_plain_progress_says_what_and_how_much(source: Path, tmp_path: Path) -> None:
    """Without a terminal, each stage is one line on stderr."""
    with run_build(source, tmp_path / "engines") as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "hashing the checkpoint",
        "packing the weights",
    ]
    assert len(out.splitlines()) == 3


def test_weights_that_overflow_are_not_verified(cli: Cli, source: Path, tmp_path: Path) -> None:
    """Each is a number, and what the model computes with them is none: no answer would be right."""
    tensors = random_tensors(text_config_of("float32"), np.random.default_rng(0))
    for name in ("up_proj", "down_proj"):
        tensors[f"model.layers.1.mlp.{name}.weight"] *= np.float32(1e30)
    write_safetensors(source / "model.safetensors", tensors)
    engines = tmp_path / "engines"
    result = cli("build", source, "--engine", "cpu", "-o", engines, "--draft-lengths", "0,1")
    assert result.code == 1
    assert "computed values that are infinite or not a number" in result.err.splitlines()[-1]
    assert not read_variant(engines / "k1").record.verification
