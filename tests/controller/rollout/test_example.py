"""examples/rollout, for real: the script on the embedded engine, the job's file as YAML."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.programs import TIMEOUT_S, join
from tests.rollout_fixtures import FAST_GATES, FAST_STEPS, Place, gateway
from trt_mtp.controller.client import Prompt, StreamClient
from trt_mtp.controller.rollout.spec import read_spec
from trt_mtp.controller.up import TINY_CHECKPOINT, build
from trt_mtp.serve.grpc_access import GrpcAccess
from trt_mtp.serve.serving import admin_key_in, resolve_variants, serving

EXAMPLE = Path(__file__).parents[3] / "examples" / "rollout"
PROMPT = Prompt([{"role": "user", "content": "Name three colours."}], max_tokens=16)


@contextmanager
def a_user(address: str) -> Iterator[list[str]]:
    """Somebody who asks one thing after the other; the answers."""
    answers: list[str] = []
    ended = threading.Event()

    def ask() -> None:
        with StreamClient(address) as client:
            while not ended.wait(0.1):  # the script needs the cores as well
                answers.append(client.ask("qwen_mtp", PROMPT).text)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        ended.set()
        join(thread)


def test_the_script_rolls_out_unattended(tmp_path: Path) -> None:
    """Build, verify, calibrate, roll out and report end with 0, and the new length is served."""
    out = tmp_path / "out"
    build(str(TINY_CHECKPOINT), "0,3", tmp_path / "engines")
    access = GrpcAccess(admin_key=admin_key_in(tmp_path / "admin.key"))
    environment = os.environ | {
        "TRT_MTP": f"{sys.executable} -m trt_mtp",
        "OUT": str(out),
        "ENGINES": str(out / "engines"),
        "BUILD_OPTIONS": "--no-verify --max-batch-size 2",  # `verify` follows
        "CALIBRATE": f"--embedded {TINY_CHECKPOINT} --engines {out}/engines --budget 10s "
        "--concurrency 1 --tasks coding",
    }
    variants = resolve_variants([tmp_path / "engines"])
    with (
        serving(variants, repository=tmp_path / "repository", access=access) as server,
        gateway(tmp_path, server.grpc_url) as address,
        a_user(address) as answers,
    ):
        here = Place(tmp_path, (server,), address)
        gates = {**FAST_GATES, "tolerance": 0.9, "probe_timeout_s": 60.0}  # nothing is timed here
        file = here.spec(out / "engines" / "k1", "k3", gates=gates, steps=FAST_STEPS)
        command = [str(EXAMPLE / "rollout.sh"), str(TINY_CHECKPOINT), "1", str(file)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        server.check()
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "rollout.json").read_text())["phase"] == "Successful"
    assert here.traffic()["stable"]["variants"][0] == "k0"
    assert here.traffic()["stable"]["variants"][1].startswith("k1_")
    assert len(set(answers)) == 1  # the same greedy answer before, meanwhile and after
    written = {file.name for file in out.iterdir()}
    assert {"build.json", "verify.json", "profile.json", "report.html", "plan.json"} <= written


def test_the_example_files_are_valid() -> None:
    """The rollout is one, and the job calls the script with it."""
    spec = read_spec(EXAMPLE / "k5.yaml")
    assert [step.name for step in spec.how.steps][-1] == "set_weight 100"
    checkout = EXAMPLE.parents[1]  # where docs/rollout.md has its commands run
    assert spec.what.variant is not None
    assert spec.what.variant.resolve() == checkout / "engines" / "k5"
    places = (spec.where.state, spec.where.gateways[0].traffic)
    assert {path.parent.resolve() for path in places} == {checkout / "run"}
    job = yaml.safe_load((EXAMPLE / "github-actions.yml").read_text())
    (step,) = [step for step in job["jobs"]["rollout"]["steps"] if step.get("id") == "rollout"]
    assert "examples/rollout/rollout.sh" in step["run"]
    assert "examples/rollout/k5.yaml" in step["run"]
