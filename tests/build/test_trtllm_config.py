"""Configurations of TensorRT-LLM variants, held against what is published."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.build.trtllm_golden import CASES, FOLDER, Case, real_checkpoint, render
from trt_mtp.build.gpus import find_gpu
from trt_mtp.build.preflight import preflight, variant_facts
from trt_mtp.build.tensorrt_llm import options_for, plan_variants, write_variants
from trt_mtp.build.trtllm_config import (
    TrtllmOptions,
    draft_len_schedule,
    llm_args,
    max_num_tokens,
    parse_schedule,
)
from trt_mtp.build.trtllm_fields import problems
from trt_mtp.build.trtllm_launch import autotuner_file
from trt_mtp.build.trtllm_version import known_versions, supported_version
from trt_mtp.build.variant import list_variants
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.serve.repository import variant_config


def options(version: str = "1.3.0rc27", **chosen: Any) -> TrtllmOptions:
    """Options for the FP8 27B on one H100."""
    gpu = find_gpu("h100-80gb")
    checkpoint = real_checkpoint("qwen3.8-27b", "fp8")
    return options_for(checkpoint, supported_version(version), gpu, **chosen)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(case: Case) -> None:
    """The configuration of every golden case is what was reviewed."""
    assert render(case) == (FOLDER / f"{case.name}.yaml").read_text()


def test_enough_golden_cases() -> None:
    """At least 60 configurations are golden, and every family is among them."""
    assert sum(len(case.versions) * len(case.lengths) for case in CASES) >= 60
    families = {real_checkpoint(case.model, case.precision).family for case in CASES}
    assert families == {"qwen3.5", "qwen3.5-moe", "qwen3-next", "qwen3.8-flash-next"}


@pytest.mark.parametrize("version", known_versions(), ids=str)
@pytest.mark.parametrize("draft_length", [0, 1, 7])
def test_every_version_accepts_its_own(version: Any, draft_length: int) -> None:
    """No generated configuration has a key or value that the version's fields refuse."""
    chosen = options(str(version), kv_cache_dtype="fp8", state_option="bfloat16")
    args = llm_args(chosen, draft_length)
    assert problems(args, version) == []
    assert problems(yaml.safe_load(yaml.safe_dump(args)), version) == []


def test_no_draft_no_speculation() -> None:
    """K = 0 has no speculative config at all; K > 0 has MTP with max_draft_len = K."""
    assert "speculative_config" not in llm_args(options(), 0)
    speculative = llm_args(options(), 3)["speculative_config"]
    assert speculative == {"decoding_type": "MTP", "max_draft_len": 3}


# examples/configs/curated/qwen3.8-low-latency-mtp3.yaml @7fccbed0 in NVIDIA/TensorRT-LLM
CURATED = {
    "tensor_parallel_size": 16,
    "moe_expert_parallel_size": 1,
    "disable_mm_encoder": True,
    "max_batch_size": 256,
    "max_seq_len": 9472,
    "cuda_graph_config": {"enable_padding": True, "max_batch_size": 256},
    "kv_cache_config": {
        "enable_block_reuse": False,
        "use_kv_cache_manager_v2": False,
        "free_gpu_memory_fraction": 0.78,
        "dtype": "fp8",
        "mamba_ssm_cache_dtype": "bfloat16",
    },
    "moe_config": {"backend": "TRTLLM"},
    "speculative_config": {"decoding_type": "MTP", "max_draft_len": 3},
}


def test_agrees_with_the_curated_file() -> None:
    """With the same choices, the curated YAML of Qwen3.8-2.4T comes out, prefill and vision apart.

    The 2.4T checkpoint has no vision tower, so there is nothing to disable.
    """
    checkpoint = real_checkpoint("qwen3.8-2.4t-a95b", "fp8")
    chosen = options_for(
        checkpoint,
        supported_version("1.3.0rc27"),
        find_gpu("gb300-277gb"),
        tensor_parallel=16,
        max_batch_size=256,
        max_seq_len=9472,
        kv_cache_dtype="fp8",
        state_option="bfloat16",
    )
    args = llm_args(chosen, 3)
    for key, value in CURATED.items():
        if key != "disable_mm_encoder":
            assert args[key] == value, key


# examples/configs/curated/qwen3.8-flash-next.yaml @b744e0a5 in NVIDIA/TensorRT-LLM, without its
# trust_remote_code: who made a checkpoint runs no code here
CURATED_FLASH_NEXT = {
    "max_batch_size": 16,
    "enable_chunked_prefill": True,
    "cuda_graph_config": {"enable_padding": True, "max_batch_size": 16},
    "moe_config": {"backend": "TRTLLM"},
    "speculative_config": {"decoding_type": "MTP", "max_draft_len": 3},
}


def test_agrees_with_the_curated_file_of_flash_next() -> None:
    """The curated YAML of Flash-Next in FP8 comes out, but for cache keys that it leaves open."""
    checkpoint = real_checkpoint("qwen3.8-flash-next", "fp8")
    version = supported_version("1.3.0rc28")
    chosen = options_for(
        checkpoint, version, find_gpu("b200-180gb"), max_batch_size=16, state_option="bfloat16"
    )
    args = llm_args(chosen, 3)
    assert {key: args[key] for key in CURATED_FLASH_NEXT} == CURATED_FLASH_NEXT
    assert args["kv_cache_config"]["free_gpu_memory_fraction"] == 0.5
    assert "trust_remote_code" not in args
    assert args["kv_cache_config"]["mamba_ssm_cache_dtype"] == "bfloat16"


def test_room_for_a_step() -> None:
    """max_num_tokens covers batch x (K + 1) and a prompt, in whole blocks of 32."""
    assert max_num_tokens(options(max_batch_size=2048), 7) == 2048 * 8
    assert max_num_tokens(options(max_batch_size=1), 3) == 8192
    assert max_num_tokens(options("1.3.0rc18", max_seq_len=20001), 3) == 20032


bounds = st.dictionaries(st.integers(1, 300), st.integers(1, 9), min_size=1, max_size=6)


@given(wanted=bounds, draft_length=st.integers(1, 9), batch=st.integers(1, 300))
def test_schedule_is_always_valid(wanted: dict[int, int], draft_length: int, batch: int) -> None:
    """Any schedule becomes one that starts at K, never rises above K or to 0, and never ends."""
    schedule = draft_len_schedule(wanted, draft_length, batch)
    if schedule is None:
        return
    assert list(schedule) == sorted(schedule)
    assert next(iter(schedule.values())) == draft_length
    assert all(1 <= length <= draft_length for length in schedule.values())
    assert max(schedule) == batch
    args = {
        "max_batch_size": batch,
        "speculative_config": {"max_draft_len": draft_length, "draft_len_schedule": schedule},
    }
    version = supported_version("1.3.0rc27")
    found = preflight(version, variant_facts(version, args, {}, {}))
    assert not [finding for finding in found if finding.id.startswith("schedule")]


@pytest.mark.parametrize("text", ["", "4", "4:", "4:3,", "0:3", "4:0", "a:b"])
def test_bad_schedules_are_refused(text: str) -> None:
    """A schedule that is malformed, or that reaches 0, is refused."""
    with pytest.raises(InputError, match="--draft-len-schedule"):
        parse_schedule(text)


def test_set_goes_through() -> None:
    """--set passes an option on, those of speculative_config to variants that draft only."""
    chosen = options(settings=("stream_interval=10", "speculative_config.enable_penalty=true"))
    assert llm_args(chosen, 0)["stream_interval"] == 10
    assert "speculative_config" not in llm_args(chosen, 0)
    assert llm_args(chosen, 3)["speculative_config"]["enable_penalty"] is True


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("kv_cache_config.enable_blok_reuse=true", "did you mean enable_block_reuse?"),
        ("stream_interval=fast", r"expected int\[1..\]"),
        ("speculative_config.spec_dec_variant=2", "published from 1.4.0rc1 on"),
        ("stream_interval", "expected key=value"),
        ("stream_interval.deep=3", "has no keys below it|without keys below it"),
        ("scheduler_config=5", "expected the keys of SchedulerConfig"),
        ("speculative_config.max_draft_len=5", "use --draft-lengths"),
        ("tensor_parallel_size=2", "use --tp"),
    ],
)
def test_set_is_checked(setting: str, says: str) -> None:
    """An unknown key, a wrong value, a key of a later version: each is refused by name."""
    with pytest.raises(InputError, match=says):
        llm_args(options(settings=(setting,)), 3)


@pytest.mark.parametrize(
    "change",
    [
        {"version": supported_version("1.3.0rc29")},
        {"gpu": find_gpu("h200-141gb")},
        {"checkpoint_digest": "other"},
        {"tensor_parallel": 2},
        {"max_batch_size": 4096},
        {"quantize": "nvfp4"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_autotuner_key(change: dict[str, Any]) -> None:
    """The autotuner's cache has another name whenever something that it depends on differs."""
    chosen = options()
    changed = replace(chosen, **change)
    names = {autotuner_file(chosen, llm_args(chosen, k)) for k in (0, 1, 3)}
    assert len(names) == 3
    assert autotuner_file(changed, llm_args(changed, 3)) not in names


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"tensor_parallel": 3}, "1, 2, 4, 8 GPUs only"),
        ({"expert_parallel": 2}, "has no experts"),
        ({"max_seq_len": 10**6}, "more than the checkpoint's 262144"),
    ],
)
def test_impossible_options(chosen: dict[str, Any], says: str) -> None:
    """Options that can't be combined are refused before anything is written."""
    with pytest.raises(InputError, match=says):
        options(**chosen)


def test_gms_needs_a_version() -> None:
    """Weight sharing is written for versions whose reference has it, and refused before."""
    assert llm_args(options(share_weights="gms"), 3)["load_format"] == "gms"
    with pytest.raises(InputError, match=r"from 1\.3\.0rc27 on"):
        options("1.3.0rc24", share_weights="gms")


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("1.2.1", "12646.*use 1.3.0rc27"),
        ("1.0.0", "use 1.3.0rc27"),
        ("1.3.0rc15", "announces MTP for Qwen3.5 is 1.3.0rc16"),
        ("1.2", "its MTP knows no Qwen model"),
        ("1.4.0rc9", "is not known here"),
        ("2.0.0", "is not known here"),
        ("latest", "is not a TensorRT-LLM version"),
    ],
)
def test_versions_without_qwen_mtp(version: str, says: str) -> None:
    """A version that can't serve Qwen MTP is refused with the reason and the one to use."""
    with pytest.raises(InputError, match=says):
        supported_version(version)


def test_written_variant(tmp_path: Path) -> None:
    """A written variant has its configuration, environment, command and record."""
    checkpoint = real_checkpoint("qwen3.8-27b", "fp8")
    chosen = replace(options(), checkpoint=tmp_path)
    plans = plan_variants(checkpoint, chosen, (0, 3), tmp_path / "engines")
    empty = replace(checkpoint, path=tmp_path, tensors={})
    first = write_variants(plans, empty, chosen, tmp_path / "engines")
    again = write_variants(plans, empty, chosen, tmp_path / "engines")
    assert (first.built, again.built, again.unchanged) == (("k0", "k3"), (), ("k0", "k3"))
    k0, k3 = list_variants(tmp_path / "engines")
    assert (k0.draft_length, k3.draft_length) == (0, 3)
    assert k0.record.fingerprint == k3.record.fingerprint
    written = yaml.safe_load((k3.folder / "llm_args.yaml").read_text())
    assert written == plans[1].llm_args
    assert "TLLM_USE_FLASHINFER_GDN_PREFILL=0\n" in (k3.folder / "environment").read_text()
    assert (k3.folder / "launch.sh").stat().st_mode & 0o111
    assert k3.record.versions["tensorrt_llm"] == "1.3.0rc27"


@pytest.mark.parametrize(
    ("version", "finding"),
    [("1.3.0rc23", ("gdn-prefill", "error")), ("1.3.0rc27", ("gdn-prefill-later", "warning"))],
)
def test_flashinfer_prefill(tmp_path: Path, version: str, finding: tuple[str, str]) -> None:
    """Who leaves it on while drafting is warned, and refused where a source says it must be off."""
    checkpoint = real_checkpoint("qwen3.8-27b", "fp8")
    chosen = replace(options(), version=supported_version(version), flashinfer_prefill=True)
    (plan,) = plan_variants(checkpoint, chosen, (3,), tmp_path / "engines")
    assert "TLLM_USE_FLASHINFER_GDN_PREFILL" not in plan.environment
    assert finding in [(found.id, found.severity) for found in plan.findings]
    off = replace(chosen, flashinfer_prefill=False)
    (plan,) = plan_variants(checkpoint, off, (3,), tmp_path / "engines")
    assert not {"gdn-prefill", "gdn-prefill-later"} & {found.id for found in plan.findings}


def test_a_schedule_is_in_the_record_and_for_the_gateway(tmp_path: Path) -> None:
    """Who routes reads it from the Triton model; building the same again changes nothing."""
    checkpoint = real_checkpoint("qwen3.8-27b", "fp8")
    chosen = replace(options(schedule={4: 3, 16: 2}), checkpoint=tmp_path)
    plans = plan_variants(checkpoint, chosen, (0, 1, 3), tmp_path / "engines")
    empty = replace(checkpoint, path=tmp_path, tensors={})
    write_variants(plans, empty, chosen, tmp_path / "engines")
    assert write_variants(plans, empty, chosen, tmp_path / "engines").built == ()
    found = [variant_config(v).parameters for v in list_variants(tmp_path / "engines")]
    assert [p.get("draft_len_schedule") for p in found] == [
        None, None, '{"4": 3, "16": 2, "32": 1}',
    ]  # fmt: skip


def test_errors_are_not_written(tmp_path: Path) -> None:
    """A variant with an error among its findings is refused, and nothing is written."""
    checkpoint = real_checkpoint("qwen3.8-27b", "fp8")
    chosen = options(settings=("pipeline_parallel_size=2",))
    plans = plan_variants(checkpoint, chosen, (3,), tmp_path / "engines")
    with pytest.raises(TrtMtpError, match="pipeline parallelism"):
        write_variants(plans, checkpoint, chosen, tmp_path / "engines")
    assert not (tmp_path / "engines").exists()
