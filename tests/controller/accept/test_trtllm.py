"""`trt-mtp accept` with the double of TensorRT-LLM."""

import os
from pathlib import Path

import pytest

from tests.controller.accept.running import Ran, accept
from tests.engine_fixtures import ASSET

DOUBLES = Path(__file__).parents[2] / "doubles"
VERSION = "1.3.0rc29"
ENGINE = ("--engine", "tensorrt-llm", "--draft-lengths", "0,3")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the double's version is said to be installed."""
    site = tmp_path_factory.mktemp("site")
    info = site / f"tensorrt_llm-{VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {VERSION}\n"
    )
    return site


def run(installed: Path, folder: Path, *arguments: str, **variables: str) -> Ran:
    """Accept the small checkpoint on the double."""
    paths = (DOUBLES, installed)
    variables["TENSORRT_LLM_DOUBLE_VERSION"] = VERSION
    return accept(folder, ASSET, *ENGINE, *arguments, paths=paths, **variables)


def test_the_whole_chain(installed: Path, tmp_path: Path) -> None:
    """Late drift is told and is no failure; what the log lacks is told as a difference."""
    ran = run(installed, tmp_path / "a", "--budget", "calibrate=8s")
    assert ran.code == 0, ran.err
    ran.require_no_secret()
    record = ran.record
    assert record["engine"] == "tensorrt-llm"
    assert record["versions"]["tensorrt_llm"] == VERSION
    assert {name: status for name, (status, _) in ran.checks().items()} == dict.fromkeys(
        ran.checks(), "passed"
    )
    k0, k3 = record["variants"]
    assert k0["left_at"] == []
    assert k3["is_passed"]
    assert min(k3["left_at"]) >= 50
    assert k3["p_value"] >= 0.001
    assert {cell["draft_length"] for cell in record["cells"]} == {0, 3}
    rules = {(one["subject"], one["rule"]) for one in record["findings"]}
    assert ("k3", "logprobs-refused") in rules
    differs = ran.page.partition("## What differs from the docs\n\n")[2].partition("\n##")[0]
    assert differs == (
        "- TRTLLM_USE_GDN_REPLAY=1 was set, and the end of the log has no line "
        "`GDN MTP replay is requested`\n"
    )


def test_early_drift(installed: Path, tmp_path: Path) -> None:
    """A variant that leaves too early fails, and the place is told."""
    skipped = ("--skip", "calibrate", "--skip", "serve")
    ran = run(installed, tmp_path / "a", *skipped, TENSORRT_LLM_DOUBLE_DRIFTS_AT="49")
    assert ran.code == 1
    assert ran.status("verify") == "failed"
    assert "k3 answered otherwise than they must" in ran.err
    assert "- k3: a greedy answer leaves at token 49, before the 50th" in ran.page
    assert ran.page.startswith("# trt-mtp accept: failed: verify; not run: smoke; skipped: serve, ")


def test_few_gpus(installed: Path, tmp_path: Path) -> None:
    """On one GPU one variant is hosted; what takes two is not tried, and that is said on top."""
    programs = tmp_path / "bin"
    programs.mkdir()
    smi = programs / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\ncase $1 in *memory.used*) echo 512;; *driver*) "
        "echo 'NVIDIA H100 80GB HBM3, 580.65.06';; *) echo 'NVIDIA H100 80GB HBM3';; esac\n"
    )
    smi.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    ran = run(installed, tmp_path / "a", "--skip", "verify", PATH=path)
    assert ran.code == 0, ran.err
    assert ran.record["machine"]["gpu"] == "NVIDIA H100 80GB HBM3"
    assert ran.record["machine"]["driver"] == "580.65.06"
    assert [one["name"] for one in ran.record["variants"] if one["is_hosted"]] == ["k3"]
    checks = ran.checks()
    assert checks["failover"] == ("not tried", "one-variant")
    assert checks["concurrency"][0] == "passed"
    assert ran.page.startswith("# trt-mtp accept: skipped: verify, calibrate; passed: doctor, ")
