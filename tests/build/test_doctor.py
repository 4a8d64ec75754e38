"""`trt-mtp doctor` on variants, on a rendered repository, and on machines with and without GPUs."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from trt_mtp.build import doctor
from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.cpu import build_cpu
from trt_mtp.build.doctor import examine, machine_facts
from trt_mtp.build.doctor_cli import doctor as command
from trt_mtp.build.tensorrt_llm import options_for, plan_variants, write_variants
from trt_mtp.build.trtllm_version import supported_version
from trt_mtp.errors import InputError
from trt_mtp.files import write_atomic
from trt_mtp.serve.repository import render_repository

Smi = Callable[[str], None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Put an nvidia-smi on the PATH that prints the given lines."""

    def install(lines: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        script = folder / "nvidia-smi"
        script.write_text(f"#!{sys.executable}\nprint({lines!r})\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    return install


@pytest.fixture
def engines(checkpoint: Path, tmp_path: Path) -> Path:
    """Variants k0 and k3 of the tiny checkpoint for TensorRT-LLM 1.3.0rc27."""
    folder = tmp_path / "engines"
    found = read_checkpoint(checkpoint)
    version = supported_version("1.3.0rc27")
    options = options_for(found, version, None, max_batch_size=4, max_seq_len=256)
    write_variants(plan_variants(found, options, (0, 3), folder), found, options, folder)
    return folder


def ids(target: Path, subject: str) -> dict[str, str]:
    """Severity by id of what is found on one subject, notes left out."""
    _, subjects = examine(target)
    (found,) = [entry for entry in subjects if entry.name == subject]
    return {f.id: f.severity for f in found.findings if f.severity != "info"}


def test_a_machine_without_gpus(engines: Path) -> None:
    """Without a GPU and tensorrt_llm the variants can't run here, and that is all."""
    assert ids(engines, "k3") == {"no-gpu": "error", "no-tensorrt-llm": "error"}


def test_a_sound_machine(engines: Path, smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an H100 with the right version and driver nothing is found."""
    smi("NVIDIA H100 80GB HBM3, 590.44.01")
    monkeypatch.setattr(doctor, "installed", lambda package: "1.3.0rc27")
    assert ids(engines, "k0") == {}
    assert ids(engines, "k3") == {}
    facts = machine_facts(engines)
    assert facts["machine.gpu"] == "h100-80gb"
    assert facts["machine.driver_major"] == 590


@pytest.mark.parametrize(
    ("lines", "version", "expected"),
    [
        ("NVIDIA H100 80GB HBM3, 570.86.15", "1.3.0rc27", {"driver-old": "error"}),
        (
            "NVIDIA H100 80GB HBM3, 575.57.08",
            "1.3.0rc27",
            {"driver-needs-compatibility": "warning"},
        ),
        ("NVIDIA H100 80GB HBM3, 590.44.01", "1.3.0rc28", {"version-differs": "error"}),
        ("NVIDIA H100 80GB HBM3, 590.44.01", None, {"no-tensorrt-llm": "error"}),
    ],
)
def test_a_machine_that_does_not_match(
    engines: Path,
    smi: Smi,
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
    version: str | None,
    expected: dict[str, str],
) -> None:
    """An old driver, another version and none at all are each named."""
    smi(lines)
    monkeypatch.setattr(doctor, "installed", lambda package: version)
    assert ids(engines, "k3") == expected


def change_args(engines: Path, **changes: Any) -> None:
    """Edit k3's configuration as a person would."""
    file = engines / "k3" / "llm_args.yaml"
    args = yaml.safe_load(file.read_text()) | changes
    write_atomic(file, yaml.safe_dump(args))


def test_a_disk_cache(engines: Path) -> None:
    """Its directory must exist on this machine, as TensorRT-LLM asks at start."""
    args = yaml.safe_load((engines / "k3" / "llm_args.yaml").read_text())
    for path, expected in ((engines, None), (engines / "none", "error")):
        cache = args["kv_cache_config"] | {"disk_cache_path": str(path), "disk_cache_size": 1}
        change_args(engines, kv_cache_config=cache)
        assert ids(engines, "k3").get("no-disk-cache") == expected


def test_several_gpus(
    checkpoint: Path, tmp_path: Path, smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps several GPUs from working together is found before the start."""
    folder, found = tmp_path / "two", read_checkpoint(checkpoint)
    options = options_for(
        found, supported_version("1.3.0rc27"), None, max_batch_size=4, max_seq_len=256,
        tensor_parallel=2,
    )  # fmt: skip
    write_variants(plan_variants(found, options, (3,), folder), found, options, folder)
    smi("\n".join(["NVIDIA H100 80GB HBM3, 590.44.01"] * 2))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    wrong = ids(folder, "k3")
    assert (wrong["mpi-as-root"], wrong["devices-hidden"]) == ("warning", "error")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert not {"mpi-as-root", "devices-hidden"} & set(ids(folder, "k3"))


def test_devices_that_are_not_there(checkpoint: Path, tmp_path: Path, smi: Smi) -> None:
    """A variant that was built for a GPU that this machine lacks is told which one."""
    folder, found = tmp_path / "own", read_checkpoint(checkpoint)
    options = options_for(
        found, supported_version("1.3.0rc27"), None, max_batch_size=4, max_seq_len=256,
        devices=(1, 2),
    )  # fmt: skip
    write_variants(plan_variants(found, options, (0, 3), folder), found, options, folder)
    smi("\n".join(["NVIDIA H100 80GB HBM3, 590.44.01"] * 2))
    assert "devices-missing" not in ids(folder, "k0")
    assert ids(folder, "k3")["devices-missing"] == "error"


def test_an_edited_configuration(engines: Path) -> None:
    """A key that the version doesn't know and a known hazard are found in the file itself."""
    change_args(engines, stream_intervall=4, pipeline_parallel_size=2)
    found = ids(engines, "k3")
    assert found["configuration"] == "error"
    assert found["pipeline-parallel"] == "error"


def test_damaged_files(engines: Path) -> None:
    """A configuration that is no YAML, or not there, is named."""
    (engines / "k3" / "llm_args.yaml").write_text("a: [")
    (engines / "k0" / "llm_args.yaml").unlink()
    assert ids(engines, "k3")["unreadable"] == "error"
    assert ids(engines, "k0")["unreadable"] == "error"


def test_another_checkpoint(engines: Path) -> None:
    """A record that names a checkpoint which is gone, or is another one, is found out."""
    record = json.loads((engines / "k3" / "variant.json").read_text())
    record["checkpoint"]["sha256"] = "0" * 64
    (engines / "k3" / "variant.json").write_text(json.dumps(record))
    assert ids(engines, "k3")["checkpoint-changed"] == "error"
    record["checkpoint"]["path"] = str(engines / "gone")
    (engines / "k3" / "variant.json").write_text(json.dumps(record))
    assert ids(engines, "k3")["checkpoint-missing"] == "error"


def test_a_repository(engines: Path, tmp_path: Path) -> None:
    """A rendered repository is examined with the variants that it serves."""
    from trt_mtp.build.variant import list_variants

    repository = tmp_path / "model_repository"
    render_repository(list_variants(engines), repository)
    _, subjects = examine(repository)
    assert {subject.name for subject in subjects} == {
        "qwen_mtp_k0", "qwen_mtp_k3", "k0", "k3", "machine",
    }  # fmt: skip
    assert ids(repository, "qwen_mtp_k3") == {}
    (repository / "qwen_mtp_k3" / "1" / "model.py").unlink()
    config = repository / "qwen_mtp_k3" / "config.pbtxt"
    config.write_text(config.read_text().replace("decoupled: true", ""))
    found = ids(repository, "qwen_mtp_k3")
    assert found == {"not-decoupled": "error", "model-py-missing": "error"}
    (engines / "k3" / "variant.json").unlink()
    assert "variant-missing" in ids(repository, "qwen_mtp_k3")


def test_ports_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that Triton wants and somebody has is a warning."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(doctor, "TRITON_PORTS", (taken.getsockname()[1],))
        _, (machine,) = examine(None)
    assert "port-in-use" in {finding.id for finding in machine.findings}


def test_not_a_folder(tmp_path: Path) -> None:
    """What is not a folder of variants is refused."""
    with pytest.raises(InputError, match="is not a folder"):
        examine(tmp_path / "nothing")
    with pytest.raises(InputError, match="has no variants"):
        examine(tmp_path)


def test_command(engines: Path) -> None:
    """The command prints JSON for scripts and ends with 1 when something would not work."""
    result = CliRunner().invoke(command, [str(engines), "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["schema_version"] == 1
    assert report["machine"]["num_gpus"] == 0
    assert {subject["name"] for subject in report["subjects"]} == {"k0", "k3", "machine"}
    text = CliRunner().invoke(command, [str(engines)])
    assert "error: it needs 1 NVIDIA GPU(s)" in text.stdout


def test_embedded_variants(checkpoint: Path, tmp_path: Path) -> None:
    """Variants of the CPU engine are well anywhere, as long as their shared files are there."""
    built = tmp_path / "cpu"
    build_cpu(
        read_checkpoint(checkpoint),
        (0, 1),
        built,
        max_batch_size=1,
        max_seq_len=64,
        progress=lambda what, done, total: None,
    )
    assert ids(built, "k0") == ids(built, "k1") == {}
    (built / ".shared").rename(tmp_path / "moved")
    assert ids(built, "k1") == {"shared-missing": "error"}
