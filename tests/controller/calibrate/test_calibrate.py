"""`trt-mtp calibrate` against a real Triton with small real variants."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from tests.conftest import CliResult
from tests.gateway_fixtures import running_gateway, wait_until
from tests.json_outputs import check_output
from tests.programs import TIMEOUT_S, within
from tests.variants import build_engines
from trt_mtp.controller.acceptance import AcceptanceKey
from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.calibrate.beside import run_beside
from trt_mtp.controller.calibrate.calibrate import Options, calibrate
from trt_mtp.controller.calibrate.calibrate_cli import numbers, seconds, words
from trt_mtp.controller.calibrate.embedded import run_embedded
from trt_mtp.controller.calibrate.triton_rig import chosen_variants
from trt_mtp.controller.gateway.servers.backend import Backend
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.profile import read_profile
from trt_mtp.controller.profile_text import is_decided
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.processes import children
from trt_mtp.serve.serving import resolve_variants, serving
from trt_mtp.serve.triton import TritonServer

Cli = Callable[..., CliResult]
TASKS = ("coding", "writing")


@pytest.fixture
def url(small_triton: TritonServer) -> str:
    """A Triton with variants at draft lengths 0, 1 and 3."""
    return small_triton.grpc_url


def prompt_file(folder: Path, num_tokens: int = 24) -> str:
    """Eight short prompts for each of two tasks."""
    rows = [
        {"task": task, "prompt": f"{task} {number}", "max_tokens": num_tokens}
        for task in TASKS
        for number in range(8)
    ]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def options(folder: Path, url: str, **changes: Any) -> Options:
    """A run of a few seconds."""
    values = {"out": folder / "profile.json", "concurrencies": (1, 2), "budget_s": 60.0}
    if "prompts" not in changes:
        values["prompts"] = prompt_file(folder)
    return Options(url=url, **{**values, **changes})


def arms(journal: Path) -> list[tuple[int, int]]:
    """Block and draft length of each batch in a journal."""
    found, block = [], -1
    for line in journal.read_text().splitlines():
        value = json.loads(line)
        if "block" in value:
            block = value["block"]["number"]
        elif "answers" in value:
            found.append((block, value["draft_length"]))
    return found


def test_a_profile_comes_out_and_is_believed(tmp_path: Path, url: str) -> None:
    """Every part of the profile is there, a policy starts from it; a second run adds nothing."""
    chosen = options(tmp_path, url, all_cells=True)
    profile = calibrate(chosen, Quiet())
    assert read_profile(chosen.out, profile.fingerprint) == profile
    assert set(profile.step_ratio) == {1, 3}
    assert set(profile.plain_step_s) == {1, 2}
    assert profile.measured_on["engine"] == "cpu"
    calibration = profile.calibration
    assert calibration is not None
    assert calibration.recommendation is not None
    cells = {(c.task, c.draft_length, c.concurrency): c for c in calibration.cells}
    assert len(cells) == 2 * 3 * 2
    for (_, length, _), cell in cells.items():
        assert cell.num_requests == 8
        assert cell.num_output_tokens == 8 * 24
        assert len(cell.accepted_per_position) == length
        assert 1 <= cell.acceptance_length <= length + 1
        assert length > 0 or cell.speedup is None
    # the same drafts whatever the load: acceptance does not depend on it
    assert (
        cells["coding", 3, 1].accepted_per_position == cells["coding", 3, 2].accepted_per_position
    )
    policy = Policy(profile)
    learned = policy.acceptance.estimate(AcceptanceKey("coding", "greedy", False))
    assert learned.weight > 0
    assert learned.lengths[3] == pytest.approx(cells["coding", 3, 1].acceptance_length, rel=0.2)
    before = chosen.journal.read_bytes()
    calibrate(chosen, Quiet())
    assert chosen.journal.read_bytes() == before


def test_killed_it_goes_on_without_repeating(tmp_path: Path, url: str) -> None:
    """After kill -9 the same command ends the run, each batch measured once."""
    prompts, out = prompt_file(tmp_path, 64), tmp_path / "profile.json"
    journal = tmp_path / "profile.json.journal"
    command = [sys.executable, "-m", "trt_mtp", "calibrate", "--url", url, "--prompts", prompts]
    command += ["--concurrency", "1,2", "--all-cells", "--out", str(out)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as run, within(run):
        wait_until(lambda: journal.exists() and len(arms_so_far(journal)) >= 2, 60)
        run.kill()
    first = arms_so_far(journal)
    assert not out.exists() or len(first) == 12
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=TIMEOUT_S)
    after = arms(journal)
    assert after[: len(first)] == first
    assert len(after) == len(set(after))
    profile = read_profile(out)
    assert done.stdout == out.read_text()
    check_output("calibrate", done.stdout)
    assert profile.calibration is not None
    assert profile.calibration.recommendation is not None
    assert done.returncode == (0 if is_decided(profile.calibration) else 3)
    assert "going on with" in done.stderr


def arms_so_far(journal: Path) -> list[tuple[int, int]]:
    """As `arms`, of a file whose last line may be cut off."""
    copy = journal.with_name("copy")
    content = journal.read_bytes()
    copy.write_bytes(content[: content.rfind(b"\n") + 1])
    return arms(copy)


def test_a_lost_server_is_one_sentence(tmp_path: Path, url: str) -> None:
    """A server that goes away for good in mid-run ends it; the journal says how to go on."""
    chosen = options(tmp_path, url, prompts=prompt_file(tmp_path, 512), all_cells=True)
    errors: list[Exception] = []
    with running_gateway(url, grace_s=0.1) as gateway:
        lost = options(
            tmp_path,
            f"127.0.0.1:{gateway.gateway.port}",
            prompts=chosen.prompts,
            all_cells=True,
            wait_s=1.0,
        )

        def run() -> None:
            try:
                calibrate(lost, Quiet())
            except TrtMtpError as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: lost.journal.exists() and bool(arms_so_far(lost.journal)), 60)
    thread.join(60)
    assert len(errors) == 1
    assert "was lost" in str(errors[0])
    assert "run the same command again" in str(errors[0])
    calibrate(chosen, Quiet())  # the server's address may differ
    assert len(arms(chosen.journal)) == len(set(arms(chosen.journal)))


AGAIN = "then the batch is measured again"


class Quiet:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def update(self, label: str, done: float, total: float, num_answers: int | None = None) -> None:
        """Show nothing."""


class Told(Quiet):
    """Keeps what is said; hurts the server when a few batches were measured."""

    def __init__(self, hurt: Callable[[], None], when_lost: Callable[[], None] | None = None):
        self.said = ""
        self._hurt, self._when_lost = hurt, when_lost
        self._num_updates = 0

    def say(self, text: str) -> None:
        self.said += f"{text}\n"
        if AGAIN in text and self._when_lost is not None:
            self._when_lost()

    def update(self, label: str, done: float, total: float, num_answers: int | None = None) -> None:
        self._num_updates += 1
        if self._num_updates == 3:
            self._hurt()


def test_a_server_that_stops_answering_is_waited_for(tmp_path: Path, small_engines: Path) -> None:
    """Stopped in mid-run and replaced, the batch is measured again: every one once, none lost."""
    with serving(resolve_variants([small_engines])) as server:
        meter = Told(
            hurt=lambda: os.kill(server.pid, signal.SIGSTOP),
            when_lost=lambda: os.killpg(server.pid, signal.SIGKILL),
        )
        prompts = prompt_file(tmp_path, 64)
        chosen = options(tmp_path, server.grpc_url, prompts=prompts, all_cells=True)
        profile = calibrate(chosen, meter, partial(run_beside, check=server.check))
    assert meter.said.count(AGAIN) == 1
    assert "waiting 300 s at most until k0, k1, k3 are ready" in meter.said
    assert profile.calibration is not None
    assert [cell.num_requests for cell in profile.calibration.cells] == [8] * 12
    assert len(arms(chosen.journal)) == len(set(arms(chosen.journal)))


def test_an_embedded_server_that_dies_is_started_again(tmp_path: Path) -> None:
    """Killed in mid-run, it is replaced by the run itself, which ends with its profile."""

    def kill_server() -> None:
        [server] = set(children(os.getpid())) - before
        os.killpg(server, signal.SIGKILL)

    before = set(children(os.getpid()))
    build_engines(tmp_path, (0, 1, 3))
    meter = Told(hurt=kill_server)
    chosen = options(tmp_path, "", prompts=prompt_file(tmp_path, 64), all_cells=True)
    profile = run_embedded(
        str(tmp_path / "checkpoint"), "0,1,3", tmp_path / "engines", chosen.prompts, chosen, meter
    )
    assert "starting again" in meter.said
    assert AGAIN in meter.said
    assert profile.calibration is not None
    assert {cell.num_requests for cell in profile.calibration.cells} == {8}


def test_a_task_that_no_variant_takes_is_left_failed(tmp_path: Path, url: str) -> None:
    """Prompts that are too long fail their task's cells; the other task gets its choice."""
    rows = [{"task": "rag", "prompt": "too long " * 4000} for _ in range(8)]
    file = Path(prompt_file(tmp_path))
    file.write_text(file.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    profile = calibrate(options(tmp_path, url, prompts=str(file)), Quiet())
    assert profile.calibration is not None
    assert profile.calibration.recommendation is not None
    assert {best.task for best in profile.calibration.recommendation.best} == set(TASKS)
    with pytest.raises(TrtMtpError, match="nothing was measured of rag: "):
        calibrate(
            options(tmp_path, url, prompts=str(file), tasks=("rag",), out=tmp_path / "r.json"),
            Quiet(),
        )


def hosted(name: str, draft_length: int, fingerprint: str = "f0", device: str = "x") -> Replica:
    """A variant as the gateway finds it."""
    parts = {"device": device}
    return Replica(
        key=name,
        name=name,
        model_name=f"m_{name}",
        draft_length=draft_length,
        max_batch_size=8,
        max_seq_len=512,
        fingerprint=fingerprint,
        measured_on=parts,
        inputs=frozenset(),
        outputs=frozenset(),
        backend=cast(Backend, None),  # nothing is asked of it
    )


def test_what_can_not_be_compared_is_refused() -> None:
    """Different fingerprints, names that aren't hosted, and a lone variant each have a sentence."""
    both = [hosted("k0", 0), hosted("k3", 3)]
    assert sorted(chosen_variants(both, ())) == [0, 3]
    with pytest.raises(InputError, match=r"different fingerprints \(device is y, not x\)"):
        chosen_variants([hosted("k0", 0), hosted("k1", 1, "f1", "y")], ())
    with pytest.raises(InputError, match="'k4' is not hosted"):
        chosen_variants(both, ("k0", "k4"))
    scheduled = replace(hosted("k3", 3), schedule=BatchSchedule.of({4: 3, 8: 1}))
    with pytest.raises(InputError, match="k3 drafts less than 3 where its batch is large"):
        chosen_variants([hosted("k0", 0), scheduled], ())
    with pytest.raises(InputError, match="draft length 0 and at least one other; there are k3"):
        chosen_variants(both, ("k3",))


def test_options_are_checked() -> None:
    """Lists and times are read, and what isn't one is refused with an example."""
    assert numbers("--concurrency", "1, 2,16") == (1, 2, 16)
    assert words("--tasks", "qa,rag") == ("qa", "rag")
    assert [seconds("--budget", text) for text in ("90s", "10m", "2h", "5")] == [90, 600, 7200, 5]
    for wrong in ("0", "1,,2", "a", "1.5"):
        with pytest.raises(InputError, match="--concurrency"):
            numbers("--concurrency", wrong)
    for wrong in ("0m", "m", "1d", "-5m"):
        with pytest.raises(InputError, match="--budget"):
            seconds("--budget", wrong)


def test_a_server_or_embedded_is_named(cli: Cli, tmp_path: Path) -> None:
    """Without --url and --embedded, or with both, there is nothing to measure."""
    assert "name the server with --url" in cli("calibrate").err
    assert cli("calibrate", "--url", "x:1", "--embedded").code == 2
    result = cli("calibrate", "--url", "127.0.0.1:1", "--prompts", tmp_path / "none")
    assert (result.code, "none does not exist" in result.err) == (2, True)
    result = cli("calibrate", "--url", "127.0.0.1:1", "--prior", tmp_path / "no.json")
    assert (result.code, "no.json does not exist" in result.err) == (2, True)
