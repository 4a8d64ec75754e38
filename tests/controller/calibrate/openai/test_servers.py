"""`bench` and `calibrate` with --openai: our own gateway for real, other servers as doubles."""

import json
import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CliResult
from tests.doubles.openai_server import MODEL, Behavior, openai_double
from tests.gateway_fixtures import running_gateway
from trt_mtp.controller.calibrate.load_client import Answer
from trt_mtp.controller.calibrate.openai.answer import NO_USAGE, SPREAD, RawStream, read_answer
from trt_mtp.controller.calibrate.openai.client import (
    COUNTERS,
    MAX_ANSWER_BYTES,
    NO_STREAM,
    NOTHING,
    POSITIONS,
)
from trt_mtp.controller.calibrate.openai.rig import addresses
from trt_mtp.controller.calibrate.openai.server import OpenAiServer, base_url, read_key
from trt_mtp.controller.profile import Profile, read_profile
from trt_mtp.errors import InputError
from trt_mtp.serve.triton import TritonServer

Cli = Callable[..., CliResult]
TOKENS = 13  # of an answer: the first, and four steps of three at draft length 3


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Eight prompts of a task."""
    rows = [{"task": "qa", "prompt": f"what {n}", "max_tokens": TOKENS} for n in range(8)]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def own_door(small_triton: TritonServer) -> Iterator[str]:
    """OpenAI's API of a real gateway in front of real variants at draft lengths 0, 1 and 3."""
    with running_gateway(small_triton.grpc_url, http_port=0) as thread:
        yield f"http://{thread.gateway.http_address}"


def bench(cli: Cli, url: str, prompts: Path, *more: str) -> Any:
    """The report of a bench."""
    command = ("bench", "--openai", url, "--model", MODEL, "--prompts", prompts, "--json", *more)
    result = cli(*command)
    assert result.code == 0, result.err
    return json.loads(result.out)


KINDS = [
    (Behavior("vllm"), []),
    (Behavior("tensorrt_llm"), []),
    (Behavior("sglang"), []),
    (Behavior("llamacpp"), [SPREAD]),
    (Behavior("llamacpp", counts=True), [POSITIONS]),
    (Behavior("vllm", tells=False, counts=True), [COUNTERS]),
    (Behavior("sglang", tells=False, counts=True), [COUNTERS]),
    (Behavior("mystery", tells=False), [NOTHING]),
    (Behavior("vllm", has_usage=False), [NO_USAGE]),
]


@pytest.mark.parametrize(("behavior", "notes"), KINDS, ids=lambda part: getattr(part, "kind", ""))
def test_each_kind_of_server_is_measured(
    cli: Cli, prompts: Path, behavior: Behavior, notes: list[str]
) -> None:
    """Tokens, times and acceptance are had where the server tells them; what isn't told is said."""
    with openai_double(behavior) as url:
        report = bench(cli, url, prompts, "--concurrency", "3")
    line = report["tasks"][0]
    assert report["notes"] == notes
    assert (line["request_count"], line["error_request_count"]) == (8, 0)
    assert line["time_to_first_token"]["p50"] > 0
    assert line["total_output_tokens"] == 8 * (5 if notes == [NO_USAGE] else TOKENS)
    if POSITIONS in notes:
        assert line["Joint_Acceptance_Rate"]["3"] == pytest.approx(1, abs=0.1)  # nothing decays
    if notes == [NOTHING]:
        assert line["Category_AL"] is report["Average_AL"] is None
        assert line["Joint_Acceptance_Rate"] == {}
    elif notes != [NO_USAGE]:
        assert line["Category_AL"] == pytest.approx(3, rel=0.1)  # two drafts of three, and its own
    asked = behavior.asked[0]
    assert asked["stream_options"]["include_usage"] is True
    assert ("return_meta_info" in asked) == (behavior.kind == "sglang")


def test_our_own_gateway_is_measured(cli: Cli, own_door: str, prompts: Path) -> None:
    """Through OpenAI's API as many tokens come as over gRPC, and the acceptance is told."""
    command = ("bench", "--openai", own_door, "--model", "qwen_mtp:k3", "--prompts", prompts)
    report = json.loads(cli(*command, "--json").out)
    assert report["all"]["total_output_tokens"] == 8 * TOKENS
    assert list(report["all"]["Joint_Acceptance_Rate"]) == ["1", "2", "3", "4"]
    assert report["notes"] == []
    text = cli("bench", "--openai", own_door, "--model", "qwen_mtp:k0", "--prompts", prompts).out
    assert f"the server {NOTHING}" in text
    assert text.splitlines()[1].split()[-2:] == ["-", "-"]


def test_our_own_gateway_is_calibrated(
    cli: Cli, own_door: str, prompts: Path, tmp_path: Path
) -> None:
    """One gateway, its models by draft length: answers of both, with their steps and drafts.

    Whether times of so small a model say anything is left open: pieces of its answers pile up.
    """
    out = tmp_path / "profile.json"
    servers = ("--openai", f"0={own_door}", "--openai", f"3={own_door}", "--model", "qwen_mtp:k{k}")
    result = cli("calibrate", *servers, "--prompts", prompts, "--concurrency", "2", "-o", out)
    assert result.code in (0, 3) or "nothing was measured" in result.err, result.err
    rows = map(json.loads, out.with_name("profile.json.journal").read_text().splitlines())
    answers: dict[int, list[Answer]] = {0: [], 3: []}
    for row in rows:
        if "answers" in row:  # of a batch; a cell may have several
            answers[row["draft_length"]] += [Answer(*one) for one in row["answers"]]
    for length, part in answers.items():
        assert {answer.num_output_tokens for answer in part} == {TOKENS}
        assert all(len(answer.accepted_per_position) == length for answer in part)
        assert all(
            TOKENS - 1 <= answer.num_steps + sum(answer.accepted_per_position) <= TOKENS + 2
            for answer in part
        )


def calibrated(cli: Cli, folder: Path, prompts: Path, **behavior: Any) -> tuple[Profile, CliResult]:
    """The profile of two doubles."""
    out = folder / "profile.json"
    with (
        openai_double(Behavior(draft_length=0, step_s=0.01, **behavior)) as plain,
        openai_double(Behavior(draft_length=3, step_s=0.01, **behavior)) as drafting,
    ):
        servers = ("--openai", f"3={drafting}", "--openai", f"0={plain}")
        result = cli("calibrate", *servers, "--prompts", prompts, "--concurrency", "2", "-o", out)
    assert result.code in (0, 3), result.err
    return read_profile(out), result


def test_a_server_that_tells_acceptance_is_modeled(cli: Cli, tmp_path: Path, prompts: Path) -> None:
    """Its settings are printed with the verdict, and the key is nowhere."""
    profile, result = calibrated(cli, tmp_path, prompts, kind="vllm", key="")
    assert profile.calibration is not None
    assert profile.acceptance["qa"] > 0.9
    assert set(profile.step_ratio) == {3}
    assert "settings of vllm, for all tasks alike:" in result.out
    for kind in ("vllm", "sglang", "llamacpp", "tensorrt_llm"):
        settings = cli("profile", "settings", tmp_path / "profile.json", "--server", kind)
        assert settings.code == 0
        assert settings.out
    assert cli("profile", "check", tmp_path / "profile.json").code == 0


def test_where_acceptance_is_not_told_speedups_are_measured(
    cli: Cli, tmp_path: Path, prompts: Path
) -> None:
    """No factor is made up: speedups are the cells' own, and the profile says what is missing."""
    profile, result = calibrated(cli, tmp_path, prompts, kind="mystery", tells=False)
    calibration = profile.calibration
    assert calibration is not None
    assert calibration.recommendation is not None
    assert "step_ratio" not in profile.model_fields_set
    assert not profile.posteriors
    [cell] = [cell for cell in calibration.cells if cell.draft_length]
    assert cell.speedup is not None
    best = calibration.recommendation.best[0]
    assert best.draft_length == 3  # three tokens in the time of one
    assert math.isclose(best.speedup.value, cell.speedup.value, rel_tol=1e-3)
    assert f"not told: the server at K=3 {NOTHING}" in result.out
    assert "speedups are as measured" in result.out
    assert cli("profile", "show", tmp_path / "profile.json").code == 0
    cells = json.loads(cli("report", tmp_path / "profile.json", "--format", "json").out)
    assert '"acceptance_rate": null' in json.dumps(cells)


def test_one_server_is_restarted_at_each_draft_length(
    cli: Cli, prompts: Path, tmp_path: Path
) -> None:
    """A command sets its draft length before each batch that needs another; a failure is said."""
    file, out = tmp_path / "length", tmp_path / "profile.json"
    with openai_double(Behavior(length_file=file, step_s=0.01)) as url:
        servers = ("--openai", f"0={url}", "--openai", f"3={url}")
        command = ("calibrate", *servers, "--prompts", prompts, "--concurrency", "2", "-o", out)
        result = cli(*command, "--openai-restart", f"echo {{k}} | tee {file}")
        assert result.code in (0, 3), result.err
        failed = cli(*command, "--openai-restart", "exit 7")
    calibration = read_profile(out).calibration
    assert calibration is not None
    by_length = {cell.draft_length: cell.num_steps for cell in calibration.cells}
    assert by_length == {0: 8 * (TOKENS - 1), 3: 8 * 4}
    assert result.out.startswith(("DECIDED", "UNDECIDED"))  # and nothing of the command's
    assert (failed.code, "'exit 7' ended with exit code 7" in failed.err) == (1, True)
    assert (
        "for the server of --openai"
        in cli("calibrate", "--url", "x:1", "--openai-restart", "x").err
    )


def test_a_server_at_another_draft_length_is_named(cli: Cli, prompts: Path, tmp_path: Path) -> None:
    """Servers in the wrong order would give a profile that is wrong: nothing is measured."""
    with (
        openai_double(Behavior(draft_length=3)) as plain,
        openai_double(Behavior(draft_length=0)) as drafting,
    ):
        servers = ("--openai", f"3={drafting}", "--openai", f"0={plain}")
        out = tmp_path / "profile.json"
        result = cli("calibrate", *servers, "--prompts", prompts, "--concurrency", "2", "-o", out)
    assert result.code == 1
    assert "the server drafts 3 tokens, and is given as draft length 0" in result.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("error", "qwen answered nothing: the engine broke"),
        ("cut", "qwen answered nothing: the stream ended before the answer did"),
        ("drop", "was lost: "),
        ("endless", f"qwen answered nothing: the answer has more than {MAX_ANSWER_BYTES} bytes"),
    ],
)
def test_faults_are_sentences(cli: Cli, prompts: Path, fault: str, said: str) -> None:
    """An error in mid-stream, a stream that ends early or never, a connection that breaks."""
    with openai_double(Behavior(fault=fault)) as url:
        result = cli("bench", "--openai", url, "--model", MODEL, "--prompts", prompts)
    assert (result.code, said in result.err) == (1, True), result.err


def test_a_server_that_does_not_stream_is_named(cli: Cli, prompts: Path) -> None:
    """Without a stream there are no times of tokens."""
    with openai_double(Behavior(streams=False)) as url:
        result = cli("bench", "--openai", url, "--model", MODEL, "--prompts", prompts)
    assert (result.code, NO_STREAM in result.err) == (1, True)


def test_the_api_key_is_sent_and_never_shown(
    cli: Cli, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file, or from the environment; one that is refused is a sentence without it."""
    file = tmp_path / "key"
    file.write_text("sk-secret\n")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with openai_double(Behavior(key="sk-secret")) as url:
        command = ("bench", "--openai", url, "--model", MODEL, "--prompts", prompts)
        assert cli(*command, "--openai-key-file", file).code == 0
        refused = cli(*command)
        assert (refused.code, "refuses the API key (401)" in refused.err) == (2, True)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
        refused = cli(*command)
        assert "sk-wrong" not in refused.err
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        result = cli(*command)
    assert result.code == 0
    assert "sk-secret" not in result.out + result.err
    assert "sk-secret" not in repr(OpenAiServer("http://x/v1", "m", key="sk-secret"))


def test_wrong_servers_are_sentences(cli: Cli, prompts: Path) -> None:
    """What isn't there, a model that isn't there, and both kinds of server at once."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        result = cli("bench", "--openai", url, "--model", MODEL, "--prompts", prompts)
    assert (result.code, "can't reach an OpenAI API at" in result.err) == (1, True)
    with openai_double(Behavior()) as url:
        result = cli("bench", "--openai", url, "--model", "qwem", "--prompts", prompts)
        assert result.code == 2
        assert "did you mean qwen?" in result.err
        result = cli("bench", "--openai", f"{url}/v2", "--model", MODEL, "--prompts", prompts)
        assert (result.code, "answers no list of models (404" in result.err) == (1, True)
        same = ("--openai", f"0={url}", "--openai", f"3={url}")
        assert "are the same model 'qwen'" in cli("calibrate", *same).err
    assert cli("bench", "--url", "x:1", "--openai", "http://x", "--model", "m").code == 2
    assert cli("calibrate", "--url", "x:1", "--openai", "0=http://x").code == 2


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["0=http://x", "0=http://y"], "draft length 0 is given twice"),
        (["1=http://x", "3=http://y"], "give 0=URL and at least one other; there are 1=, 3="),
        (["0=http://x"], "at least one other"),
        (["http://x"], "expected a draft length and its server"),
        (["k3=http://x"], "expected a draft length and its server"),
        (["0=x:8000", "3=http://y"], "expected the base URL of an OpenAI API"),
        (["9=http://x", "0=http://y"], "draft lengths go up to 8"),
    ],
)
def test_lists_of_servers_are_checked(texts: list[str], said: str) -> None:
    """Each mistake has its sentence."""
    with pytest.raises(InputError, match=said):
        addresses("--openai", texts)


def test_base_urls_are_completed() -> None:
    """The usual path is added, another one is kept; secrets don't belong into an address."""
    assert base_url("-o", "http://h:1") == base_url("-o", "http://h:1/v1/") == "http://h:1/v1"
    assert base_url("-o", "https://h/api/v2") == "https://h/api/v2"
    for wrong in ("h:8000", "ftp://h", "http://", "http://h:x", "http://u:p@h", "http://h/v1?k=1"):
        with pytest.raises(InputError, match="expected the base URL"):
            base_url("-o", wrong)
    assert addresses("-o", ["3=http://b", "0=http://a"]) == {0: "http://a/v1", 3: "http://b/v1"}


def test_keys_are_checked(tmp_path: Path) -> None:
    """A key is one word of a file or of the environment."""
    assert read_key(None, None) == ""
    assert read_key(None, " sk ") == "sk"
    file = tmp_path / "key"
    file.write_text("two words")
    with pytest.raises(InputError, match="has no API key"):
        read_key(file, "sk")
    file.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_key(file, None)
    with pytest.raises(InputError, match="OPENAI_API_KEY has no API key"):
        read_key(None, "s k")


def test_usage_in_each_chunk_counts_the_first_tokens() -> None:
    """vLLM's continuous usage says how many tokens the first text had; else those of one moment."""
    first = b'data: {"choices":[{"delta":{"content":"a b"}}],"usage":{"completion_tokens":2}}\n\n'
    second = b'data: {"choices":[{"delta":{"reasoning":"c"}}],"usage":{"completion_tokens":4}}\n\n'
    end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    answer = read_answer(RawStream(0.0, [(1.0, first), (2.0, second + end)])).answer
    assert (answer.num_first_tokens, answer.num_output_tokens, answer.tpot_s) == (2, 4, 0.5)
    plain = first.replace(b'{"completion_tokens":2}', b"null")
    answer = read_answer(RawStream(0.0, [(1.0, plain + plain), (2.0, second + end)])).answer
    assert (answer.num_first_tokens, answer.num_output_tokens) == (3, 4)
    for piece, said in ((b"data: {\n\n", "not JSON"), (b"data: []\n\n", "not a JSON object")):
        assert said in read_answer(RawStream(0.0, [(1.0, piece)])).answer.error
    assert read_answer(RawStream(0.0, [(1.0, end)])).answer.error == "the answer has no text"
