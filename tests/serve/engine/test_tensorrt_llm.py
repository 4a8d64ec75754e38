"""The TensorRT-LLM engine class, driven through a double of tensorrt_llm."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trt_mtp.build.checkpoint import read_checkpoint
from trt_mtp.build.tensorrt_llm import options_for, plan_variants, write_variants
from trt_mtp.build.trtllm_version import supported_version
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.engine import open_engine
from trt_mtp.serve.engine import tensorrt_llm as tensorrt_llm_engine
from trt_mtp.serve.engine.base import Chunk, Engine, Guided, Request, SamplingParams
from trt_mtp.serve.engine.collect import Answer, collect

DOUBLES = Path(__file__).parents[2] / "doubles"
PROMPT = (1, 2, 3)
FAILS, HANGS = 250, 251  # what a prompt begins with for which the double has a fault


@pytest.fixture(scope="module")
def engines(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variants k0, k1 and k3 of the tiny checkpoint, for TensorRT-LLM 1.3.0rc27."""
    folder = tmp_path_factory.mktemp("trtllm") / "engines"
    found = read_checkpoint(checkpoint)
    options = options_for(
        found, supported_version("1.3.0rc27"), None, max_batch_size=4, max_seq_len=256
    )
    write_variants(plan_variants(found, options, (0, 1, 3), folder), found, options, folder)
    return folder


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`import tensorrt_llm` finds the double, and the environment is restored."""
    monkeypatch.syspath_prepend(DOUBLES)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


@pytest.fixture
def engine(engines: Path) -> Iterator[Engine]:
    """The variant that drafts three tokens."""
    opened = open_engine(engines / "k3")
    yield opened
    opened.close()


def ask(engine: Engine, **sampling: object) -> Answer:
    """One answer of 20 tokens to a fixed prompt."""
    wanted = SamplingParams(**{"max_tokens": 20, "ignore_eos": True, **sampling})  # type: ignore[arg-type]
    return collect(engine, [Request(PROMPT, wanted)])[0]


def test_same_answer_at_every_length(engines: Path) -> None:
    """Every draft length gives the same tokens, and the counters say how they came about."""
    answers = {}
    for name in ("k0", "k1", "k3"):
        opened = open_engine(engines / name)
        answers[name] = ask(opened)
        opened.close()
    assert answers["k0"].token_ids == answers["k1"].token_ids == answers["k3"].token_ids
    assert answers["k0"].counters.num_steps == 19  # one token comes from the prompt's iteration
    assert answers["k0"].counters.num_draft_tokens == 0
    counters = answers["k3"].counters
    assert counters.num_draft_tokens == 3 * counters.num_steps
    assert counters.num_accepted_draft_tokens == 19 - counters.num_steps
    # the double's steps accept 2, 3, 0, 1, 2, 3, 0 drafts, and one of which the answer wants none
    assert (counters.num_steps, counters.accepted_per_position) == (8, (5, 4, 2))
    assert [answers[name].counters.cut_after for name in ("k0", "k1", "k3")] == [-1, 0, 0]


def test_positions_are_told_only_where_each_step_comes_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Results that bring several steps give the totals, and no guess at the positions."""
    found = read_checkpoint(checkpoint)
    options = options_for(
        found, supported_version("1.3.0rc27"), None, max_batch_size=4, max_seq_len=256,
        settings=("stream_interval=3",),
    )  # fmt: skip
    write_variants(plan_variants(found, options, (3,), tmp_path), found, options, tmp_path)
    opened = open_engine(tmp_path / "k3")
    counters = ask(opened).counters
    opened.close()
    assert (counters.num_steps, counters.num_accepted_draft_tokens) == (8, 11)
    assert counters.accepted_per_position == ()


@pytest.mark.parametrize(
    ("version", "schedule", "drafted", "positions"),
    [
        ("1.3.0rc27", {2: 3, 4: 1}, 0, ()),  # no totals: who knows what the steps drafted
        ("1.3.0rc29", {2: 3, 4: 1}, 24, (5, 4, 2)),  # each step drafted three
        ("1.3.0rc29", None, 24, (5, 4, 2)),
    ],
)
def test_drafts_under_a_schedule(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    version: str, schedule: dict[int, int] | None, drafted: int, positions: tuple[int, ...],
) -> None:  # fmt: skip
    """With a schedule, drafts are what TensorRT-LLM reports, and nothing where it doesn't."""
    monkeypatch.setenv("TENSORRT_LLM_DOUBLE_VERSION", version)
    found = read_checkpoint(checkpoint)
    options = options_for(
        found, supported_version(version), None, max_batch_size=4, max_seq_len=256,
        schedule=schedule,
    )  # fmt: skip
    write_variants(plan_variants(found, options, (3,), tmp_path), found, options, tmp_path)
    opened = open_engine(tmp_path / "k3")
    counters = ask(opened).counters
    opened.close()
    assert counters.num_steps == 8
    assert (counters.num_draft_tokens, counters.accepted_per_position) == (drafted, positions)


def test_streaming_is_whole(engine: Engine) -> None:
    """Chunks arrive in order, the last alone has a finish reason, and together they are all."""
    chunks: list[Chunk] = []
    done = threading.Event()

    def on_chunk(chunk: Chunk) -> None:
        chunks.append(chunk)
        if chunk.finish_reason:
            done.set()

    engine.submit(Request(PROMPT, SamplingParams(max_tokens=20, ignore_eos=True)), on_chunk)
    assert done.wait(30)
    assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    counts = [c.num_output_tokens for c in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == sum(len(c.token_ids) for c in chunks) == 20


def test_sampling_is_passed_on(engine: Engine) -> None:
    """A seed gives its own answer, again and again; greedy decoding ignores it."""
    sampled = [ask(engine, temperature=0.8, seed=seed).token_ids for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert ask(engine, seed=1).token_ids == ask(engine, seed=2).token_ids


def test_a_least_number_of_tokens_is_passed_on(engines: Path, engine: Engine) -> None:
    """min_tokens goes to a variant without drafts, less what was emitted; not where eos is ignored.

    TensorRT-LLM refuses it while it drafts, so that with ignore_eos it isn't even asked for.
    """
    least = SamplingParams(max_tokens=20, min_tokens=15)
    assert tensorrt_llm_engine.sampling_params(least, 4)["min_tokens"] == 11
    assert "min_tokens" not in tensorrt_llm_engine.sampling_params(least, 15)
    assert len(ask(engine, min_tokens=20).token_ids) == 20
    plain = open_engine(engines / "k0")
    assert collect(plain, [Request(PROMPT, least)])[0].finish_reason == "length"
    plain.close()


def test_stop_text_cuts_the_answer(engine: Engine) -> None:
    """An answer ends before its stop text, with the tokens up to it."""
    whole = ask(engine)
    stop = whole.text[6:9]
    cut = ask(engine, stop=(stop,))
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert len(cut.token_ids) < 20


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 5}])
def test_another_variant_goes_on(
    engines: Path, engine: Engine, sampling: dict[str, object]
) -> None:
    """After the tokens of a broken answer come the rest of it, counted as one answer.

    Greedily they are the same tokens; sampled ones depend on the draft length.
    """
    whole = ask(engine, **sampling)
    wanted = SamplingParams(max_tokens=20, ignore_eos=True, **sampling)  # type: ignore[arg-type]
    other = open_engine(engines / "k1")
    for seam in (1, 7, 19):
        chunks: list[Chunk] = []
        done = threading.Event()

        def on_chunk(
            chunk: Chunk, chunks: list[Chunk] = chunks, done: threading.Event = done
        ) -> None:
            chunks.append(chunk)
            if chunk.finish_reason:
                done.set()

        other.submit(Request(PROMPT, wanted, whole.token_ids[:seam]), on_chunk)
        assert done.wait(30)
        tokens = [token for chunk in chunks for token in chunk.token_ids]
        assert len(tokens) == 20 - seam
        if not sampling:
            assert tokens == list(whole.token_ids[seam:])
            assert whole.text.endswith("".join(chunk.text for chunk in chunks))
        assert (chunks[-1].num_output_tokens, chunks[-1].finish_reason) == (20, "length")
        counters = chunks[-1].counters
        assert len(tokens) == 1 + counters.num_steps + counters.num_accepted_draft_tokens
    assert other.statistics().num_output_tokens == 19 + 13 + 1
    other.close()


def test_cancel(engine: Engine) -> None:
    """A cancelled request ends as cancelled, and others go on."""
    reasons: list[str] = []
    done = threading.Event()

    def on_chunk(chunk: Chunk) -> None:
        if chunk.finish_reason:
            reasons.append(chunk.finish_reason)
            done.set()

    wanted = SamplingParams(max_tokens=250, ignore_eos=True)
    engine.submit(Request(PROMPT, wanted), on_chunk).cancel()
    assert done.wait(30)
    assert reasons == ["cancelled"]
    assert ask(engine).finish_reason == "length"


def test_many_at_once(engine: Engine) -> None:
    """Concurrent requests each get their own answer, and are counted."""
    wanted = SamplingParams(max_tokens=12, ignore_eos=True)
    requests = [Request((n, n + 1), wanted) for n in range(16)]
    answers = collect(engine, requests)
    alone = [collect(engine, [request])[0] for request in requests]
    assert [a.token_ids for a in answers] == [a.token_ids for a in alone]
    totals = engine.statistics()
    assert totals.num_requests == 32
    assert totals.num_output_tokens == 32 * 12
    assert totals.num_running == 0


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(()), "the prompt is empty"),
        (Request((10**6,)), "input_ids must lie between"),
        (Request((1,), SamplingParams(max_tokens=300)), "may be at most 256"),
        (Request((1,), SamplingParams(top_p=0.0)), "top_p is 0.0"),
        (Request((1,), SamplingParams(temperature=-1.0)), "temperature is -1.0"),
        (Request((1,), SamplingParams(stop=("",))), "a stop text is empty"),
        (Request((1,), SamplingParams(max_tokens=0)), "max_tokens is 0"),
        (Request((1,), SamplingParams(min_tokens=-1)), "min_tokens is -1; expected 0 to max_tok"),
        (Request((1,), SamplingParams(9, min_tokens=10)), r"expected 0 to max_tokens \(9\)"),
        (Request((1,), SamplingParams(min_tokens=3)), "can't hold an end token back while it dra"),
        (Request((1,), SamplingParams(top_k=-1)), "top_k is -1"),
        (Request((1,), guided=Guided("regex", "a")), "guided_decoding is not supported by variant"),
        (Request((1,), SamplingParams(seed=-1)), "seed is -1"),
        (Request((1,), SamplingParams(max_tokens=2), (5, 5)), "the answer is complete"),
        (Request((1,), SamplingParams(), (5, 2)), "ended with token 2 of emitted_ids"),
    ],
)
def test_impossible_requests(engine: Engine, request_: Request, says: str) -> None:
    """A request that can't be run is refused at once, by name."""
    with pytest.raises(InputError, match=says):
        engine.submit(request_, lambda chunk: None)


def test_failure_is_told(engine: Engine) -> None:
    """One error of TensorRT-LLM is one request's, told in its own words."""
    with pytest.raises(TrtMtpError, match="illegal memory access"):
        collect(engine, [Request((FAILS, 1))])
    assert engine.failure == ""
    assert ask(engine).finish_reason == "length"


def test_an_engine_that_shut_down_is_dead(engine: Engine) -> None:
    """After errors that TensorRT-LLM shuts down for, the engine says so and takes no request."""
    for _ in range(3):
        with pytest.raises(TrtMtpError):
            collect(engine, [Request((FAILS, 1))])
    assert "TensorRT-LLM has shut down after an error: CUDA error" in engine.failure
    with pytest.raises(TrtMtpError, match="has shut down"):
        ask(engine)


def test_an_engine_that_hangs_is_dead(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any result for long while a request runs, it is dead; without requests it is not."""
    monkeypatch.setattr(engine, "hang_s", 0.05)
    assert ask(engine).finish_reason == "length"
    time.sleep(0.1)
    assert engine.failure == ""
    generation = engine.submit(Request((HANGS, 1)), lambda chunk: None)
    deadline = time.monotonic() + 30
    while "gave no result for" not in engine.failure and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "gave no result for" in engine.failure
    generation.cancel()


def test_environment_before_import(engines: Path) -> None:
    """The variant's environment is there when tensorrt_llm is imported, which is when it counts."""
    opened = open_engine(engines / "k3")
    opened.close()
    import tensorrt_llm

    assert tensorrt_llm.ENVIRONMENT["TLLM_USE_FLASHINFER_GDN_PREFILL"] == "0"
    assert "k3" not in tensorrt_llm.ENVIRONMENT["TLLM_AUTOTUNER_CACHE_PATH"]


def test_refused_configuration(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorRT-LLM refuses at start is reported with its own words."""
    monkeypatch.setenv("TENSORRT_LLM_DOUBLE_VERSION", "1.3.0rc18")
    with pytest.raises(TrtMtpError, match=r"can't start k3: .*published from 1\.3\.0rc24 on"):
        open_engine(engines / "k3")


def test_close_ends_answers(engines: Path) -> None:
    """Closing ends what is running as cancelled, and shuts TensorRT-LLM down once."""
    opened = open_engine(engines / "k3")
    reasons: list[str | None] = []
    wanted = SamplingParams(max_tokens=250, ignore_eos=True)
    for _ in range(3):
        opened.submit(Request(PROMPT, wanted), lambda chunk: reasons.append(chunk.finish_reason))
    opened.close()
    opened.close()
    assert [reason for reason in reasons if reason] == ["cancelled"] * 3
    assert opened._llm.is_shut_down  # type: ignore[attr-defined]
    with pytest.raises(TrtMtpError, match="is closed"):
        opened.submit(Request(PROMPT), lambda chunk: None)
