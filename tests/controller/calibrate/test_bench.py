"""`trt-mtp bench`: the numbers of one model per task, and their names."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CliResult
from tests.gateway_fixtures import running_gateway
from tests.pseudo_terminal import on_terminal
from trt_mtp.controller.calibrate.bench import TaskAnswers, result_of
from trt_mtp.controller.calibrate.bench_files import to_csv, to_records
from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.serve.triton import TritonServer

Cli = Callable[..., CliResult]


@pytest.fixture
def url(small_triton: TritonServer) -> str:
    """A Triton with small real variants."""
    return small_triton.grpc_url


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three prompts of each of two tasks."""
    rows = [
        {"task": task, "prompt": f"{task} {n}", "max_tokens": 16}
        for task in ("qa", "coding")
        for n in range(3)
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_numbers_follow_from_the_answers() -> None:
    """Rates, acceptance and errors are those of the answers, as NVIDIA's tools define them."""
    answers = [
        Answer(0.1, 1.0, 1, 11, 5, 5, (3, 2), (0.1,) * 10),
        Answer(0.1, 2.0, 1, 21, 5, 10, (7, 3), (0.1,) * 20),
        Answer(error="it broke"),
    ]
    line = result_of("qa", answers, 2.0)
    assert (line.request_count, line.error_request_count, line.error) == (2, 1, "it broke")
    assert line.output_token_throughput == 16.0  # 32 tokens in 2 s
    assert line.category_al == 2.0  # of requests, each alike
    assert line.acceptance_rate == 0.5  # 15 of 30 drafts
    assert line.joint == (1.0, 0.66667, 0.33333)
    assert line.conditional == pytest.approx((1.0, 0.66667, 0.5), abs=1e-3)
    assert line.latencies["inter_token_latency"].p50 == 100.0
    assert line.latencies["time_to_first_token"] == (100.0, 100.0, 100.0)
    assert line.as_json()["Joint_Acceptance_Rate"]["1"] == 1.0


def test_a_task_without_an_answer_is_a_line() -> None:
    """Where every request failed the numbers are 0, and the table can still be written."""
    line = result_of("qa", [Answer(error="x")], 1.0)
    assert (line.request_count, line.joint, line.category_al) == (0, (), 1.0)
    assert to_csv([line]).count("\n") == 2


def test_a_record_is_one_request() -> None:
    """Records have AIPerf's names and units; one of a failed request has its error only."""
    answers = (Answer(0.1, 1.0, 1, 11, 5, 5, (3, 2), (0.1,) * 10), Answer(error="it broke"))
    lines = to_records("m", 4, [TaskAnswers("qa", answers, 1.0), TaskAnswers("rag", answers, 1.0)])
    good, failed, *_ = records = [json.loads(line) for line in lines.splitlines()]
    assert [record["metadata"]["session_num"] for record in records] == [0, 1, 2, 3]
    assert good["metadata"]["task"] == "qa"
    assert good["error"] is None
    assert good["metrics"]["request_latency"] == {"value": 1100.0, "unit": "ms"}
    assert good["metrics"]["inter_token_latency"]["value"] == 100.0
    assert good["metrics"]["inter_chunk_latency"]["value"] == [100.0] * 10
    assert good["metrics"]["Request_AL"]["value"] == 2.0
    assert (failed["metrics"], failed["error"]) == ({}, {"message": "it broke"})


def test_a_variant_is_measured(cli: Cli, url: str, prompts: Path, tmp_path: Path) -> None:
    """JSON and CSV have a line for each task and one for all; the tokens are those asked for."""
    table, records = tmp_path / "t.csv", tmp_path / "r.jsonl"
    command = ("bench", "--url", url, "--model", "qwen_mtp_k3", "--prompts", prompts)
    result = cli(*command, "--json", "--csv", table, "--records", records)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [line["task"] for line in report["tasks"]] == ["coding", "qa"]
    assert report["all"]["request_count"] == 6
    assert report["all"]["total_output_tokens"] == 6 * 16
    assert set(report["Category_AL"]) == {"coding", "qa"}
    assert list(report["all"]["Joint_Acceptance_Rate"]) == ["1", "2", "3", "4"]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["task"] for row in rows] == ["coding", "qa", "all"]
    assert float(rows[2]["Joint_Acceptance_Rate_2"]) == report["all"]["Joint_Acceptance_Rate"]["2"]
    lengths = [json.loads(line)["metrics"] for line in records.read_text().splitlines()]
    assert [metrics["output_sequence_length"]["value"] for metrics in lengths] == [16] * 6
    text = cli(*command, "--tasks", "qa").out
    assert "coding" not in text
    assert text.splitlines()[1].startswith("qa")


@pytest.mark.parametrize("option", ["--csv", "--records"])
def test_results_are_printed_where_a_file_can_not_be_written(
    cli: Cli, url: str, prompts: Path, tmp_path: Path, option: str
) -> None:
    """An hour of measuring isn't lost to a full disk, for which a pipe without a reader stands."""
    os.mkfifo(tmp_path / "pipe")
    result = cli(
        "bench", "--url", url, "--model", "qwen_mtp_k3", "--prompts", prompts, "--json",
        "--tasks", "qa", option, tmp_path / "pipe",
    )  # fmt: skip
    assert result.code == 1
    assert "can't write " in result.err
    assert [line["task"] for line in json.loads(result.out)["tasks"]] == ["qa"]


def test_on_a_terminal_each_row_comes_once(url: str, prompts: Path) -> None:
    """Rows as tasks end, then the one for all, in 80 columns; --wide has more columns."""
    command = ("bench", "--url", url, "--model", "qwen_mtp_k3", "--prompts", str(prompts))
    code, lines = on_terminal(80, *command)
    assert code == 0
    assert max(map(len, lines)) <= 80
    firsts = [line.split()[0] for line in lines if line.endswith("%")]
    assert sorted(firsts[:2]) == ["coding", "qa"]
    assert firsts[2:] == ["all"]
    _, wide = on_terminal(160, *command, "--wide")
    assert any("p99" in line and max(map(len, lines)) < len(line) <= 160 for line in wide)


def test_the_gateway_is_measured_like_a_variant(cli: Cli, url: str, prompts: Path) -> None:
    """Through the gateway the same prompts give as many tokens."""
    with running_gateway(url) as gateway:
        target = f"127.0.0.1:{gateway.gateway.port}"
        result = cli(
            "bench", "--url", target, "--model", "qwen_mtp", "--prompts", prompts, "--json"
        )
    assert json.loads(result.out)["all"]["total_output_tokens"] == 6 * 16


def test_failures_are_sentences(cli: Cli, url: str, prompts: Path) -> None:
    """A model that isn't there, and a server that isn't, end with 1 and say so."""
    result = cli("bench", "--url", url, "--model", "none", "--prompts", prompts)
    assert (result.code, "none answered nothing: " in result.err) == (1, True)
    result = cli("bench", "--url", "127.0.0.1:1", "--model", "x", "--prompts", prompts)
    assert (result.code, "the server at 127.0.0.1:1 was lost" in result.err) == (1, True)
