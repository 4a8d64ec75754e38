"""The memory estimate, held against published sizes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.build.trtllm_golden import real_checkpoint
from trt_mtp.build.gdn_replay import Replay, fitting_plan, replay_of
from trt_mtp.build.gpus import find_gpu, gpu_by_product_name, gpu_types
from trt_mtp.build.memory import (
    DoesNotFitError,
    MemoryPlan,
    estimate,
    kv_cache_per_token,
    largest_batch,
    require_fit,
    rollback_scratch,
    state_per_request,
)
from trt_mtp.build.model_shape import ModelShape, shape_of
from trt_mtp.build.trtllm_version import parse_version
from trt_mtp.errors import InputError

KIB, MB, GB = 1024, 1e6, 1e9
H100 = find_gpu("h100-80gb")


def shape(model: str, precision: str = "bf16") -> ModelShape:
    """The sizes of a released model."""
    return shape_of(real_checkpoint(model, precision))


def plan(model: str, precision: str = "bf16", draft_length: int = 3, **chosen: Any) -> MemoryPlan:
    """32 requests of up to 8,192 tokens."""
    sizes = {"max_batch_size": 32, "max_seq_len": 8192, "max_num_tokens": 8192, **chosen}
    return MemoryPlan(shape(model, precision), draft_length, **sizes)


@pytest.mark.parametrize(
    ("model", "state_fp32_mb", "cache_kib", "mtp_cache_kib", "mtp_gb"),
    [
        ("qwen3.8-27b", 151.0, 64, 4, 0.85),
        ("qwen3.6-35b-a3b", 62.9, 20, 2, 1.69),
        ("qwen3.5-122b-a10b", 151.0, 24, 2, 5.05),
        ("qwen3.5-397b-a17b", 188.7, 30, 2, 13.2),
    ],
)
def test_known_sizes(
    model: str, state_fp32_mb: float, cache_kib: int, mtp_cache_kib: int, mtp_gb: float
) -> None:
    """States, cache per token and MTP head are what follows from the published configs.

    Configs: ai-dynamo/aiconfigurator 095f58a5, model_configs.
    """
    sizes = shape(model)
    assert state_per_request(sizes, "float32") / MB == pytest.approx(state_fp32_mb, abs=0.1)
    assert state_per_request(sizes, "bfloat16") * 2 == state_per_request(sizes, "float32")
    assert kv_cache_per_token(sizes, 0, "bfloat16") == cache_kib * KIB
    assert kv_cache_per_token(sizes, 3, "bfloat16") == (cache_kib + mtp_cache_kib) * KIB
    assert sizes.mtp_bytes / GB == pytest.approx(mtp_gb, rel=0.01)


@pytest.mark.parametrize(
    ("model", "precision", "size_gb"),
    [
        ("qwen3.8-27b", "bf16", 55.6),  # vllm-project/recipes 8959cf64
        ("qwen3.8-27b", "fp8", 30.9),  # the same
        ("qwen3.8-2.4t-a95b", "bf16", 4890),  # https://unsloth.ai/docs/models/qwen3.8
        ("qwen3.8-2.4t-a95b", "fp8", 2496),  # vllm-project/recipes 8959cf64
    ],
)
def test_sizes_on_disk(model: str, precision: str, size_gb: float) -> None:
    """The fixtures are as large as the released checkpoints are published to be."""
    assert real_checkpoint(model, precision).num_bytes / GB == pytest.approx(size_gb, rel=0.012)


def test_rollback_of_the_27b() -> None:
    """32 requests at K = 3 with states in fp32 take some 19 GB of scratch, K = 0 takes none."""
    wanted = plan("qwen3.8-27b")
    assert rollback_scratch(wanted.shape, wanted) / GB == pytest.approx(19.3, rel=0.03)
    none = replace(wanted, draft_length=0)
    assert rollback_scratch(none.shape, none) == 0


# minimum GPUs of the guides: docs/source/deployment-guide/deployment-guide-for-qwen3.8-qwen3.5-
# on-trtllm.md @904707ff and …-qwen3.8-flash-next-… @866679de in NVIDIA/TensorRT-LLM
@pytest.mark.parametrize("gpu", ["b200-180gb", "b300-288gb", "gb200-186gb", "gb300-277gb"])
def test_2t_needs_sixteen_gpus(gpu: str) -> None:
    """The FP8 2.4T fits on 16 GPUs of each kind and not on 8, as its deployment guide says."""
    wide = plan("qwen3.8-2.4t-a95b", "fp8", state_dtype="bfloat16", tensor_parallel=16)
    assert estimate(wide, find_gpu(gpu)).fits
    assert not estimate(replace(wide, tensor_parallel=8), find_gpu(gpu)).fits
    assert max(wide.shape.parallel_sizes) == 16


def test_397b_nvfp4_needs_four_gpus() -> None:
    """The NVFP4 397B fits on 4 B200, its guide's minimum, and not on 1."""
    gpu = find_gpu("b200-180gb")
    four = plan("qwen3.5-397b-a17b", "nvfp4", tensor_parallel=4)
    assert estimate(four, gpu).fits
    assert not estimate(replace(four, tensor_parallel=1), gpu).fits


def test_flash_next_in_bf16_needs_two_gpus() -> None:
    """The BF16 Flash-Next fits on 2 GPUs of 142 GB, its guide's minimum, and not on 1."""
    gpu = replace(find_gpu("h200-141gb"), memory_bytes=142 * 10**9)
    two = plan(
        "qwen3.8-flash-next", state_dtype="bfloat16", tensor_parallel=2, max_batch_size=4,
        pool_fraction=0.5,
    )  # fmt: skip
    assert estimate(two, gpu).fits
    assert not estimate(replace(two, tensor_parallel=1), gpu).fits


def test_refusal_names_what_would_fit() -> None:
    """What doesn't fit is refused with each change that would make it fit, and they do."""
    wanted = plan("qwen3.6-35b-a3b")
    with pytest.raises(DoesNotFitError) as refused:
        require_fit(wanted, H100)
    assert "needs about 86" in str(refused.value)
    assert "--max-batch-size 15, --quantize fp8, --tp 2" in str(refused.value)
    assert estimate(replace(wanted, max_batch_size=15), H100).fits
    assert not estimate(replace(wanted, max_batch_size=16), H100).fits
    assert estimate(replace(wanted, tensor_parallel=2), H100).fits


def test_refusal_of_what_fits_nowhere() -> None:
    """Where no change helps, the message says so."""
    with pytest.raises(DoesNotFitError, match="use one with more memory"):
        require_fit(plan("qwen3.8-2.4t-a95b"), H100)


def test_refusal_with_several_changes() -> None:
    """Where one change is not enough, several together are proposed."""
    gpu = find_gpu("l4-24gb")
    with pytest.raises(DoesNotFitError, match="this would fit: --tp 4 --state-dtype bfloat16"):
        require_fit(plan("qwen3.8-27b", "bf16", 7, max_batch_size=128), gpu)


def test_host_table_is_not_on_the_gpu() -> None:
    """Flash-Next's n-gram table of some 100 GB is counted apart from what the GPU holds."""
    sizes = shape("qwen3.8-flash-next")
    assert sizes.host_bytes / GB == pytest.approx(102.4, rel=0.01)
    assert sizes.weight_bytes + sizes.host_bytes + sizes.mtp_bytes < 360 * GB


@given(
    batch=st.integers(1, 128),
    draft_length=st.integers(0, 8),
    parallel=st.sampled_from([1, 2, 4, 8]),
    state=st.sampled_from(["float32", "bfloat16"]),
)
def test_more_never_needs_less(batch: int, draft_length: int, parallel: int, state: str) -> None:
    """A larger batch or K never leaves more cache; more GPUs and smaller states never less."""
    one = MemoryPlan(
        shape("qwen3.8-27b", "fp8"), draft_length, batch, 4096, 8192, parallel, "bfloat16", state
    )
    left = estimate(one, H100).kv_cache_tokens
    assert estimate(replace(one, max_batch_size=batch + 1), H100).kv_cache_tokens <= left
    assert estimate(replace(one, draft_length=draft_length + 1), H100).kv_cache_tokens <= left
    assert estimate(replace(one, state_dtype="bfloat16"), H100).kv_cache_tokens >= left
    if parallel < 8:
        wider = replace(one, tensor_parallel=2 * parallel)
        assert estimate(wider, H100).kv_cache_tokens >= left


def test_largest_batch_is_the_largest() -> None:
    """The reported batch fits and one more does not; full length never allows more."""
    wanted = plan("qwen3.8-27b", "fp8")
    most = largest_batch(wanted, H100)
    assert estimate(replace(wanted, max_batch_size=most), H100).fits
    assert not estimate(replace(wanted, max_batch_size=most + 1), H100).fits
    assert largest_batch(wanted, H100, full_length=True) <= most


def test_gpu_data() -> None:
    """Every GPU type has a plausible size, speed and source, and is found by its driver's name."""
    for name, gpu in gpu_types().items():
        assert name.endswith(f"{round(gpu.memory_bytes / GB)}gb")
        assert 1e11 < gpu.bandwidth_bytes_s < 1e13
        assert 1e14 < gpu.bf16_flops < 1e16
        assert gpu.source.startswith("https://www.nvidia.com/")
    for product, name in [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA B200", "b200-180gb"),
        ("NVIDIA L4", "l4-24gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("NVIDIA GeForce RTX 5090", "rtx-5090-32gb"),
    ]:
        found = gpu_by_product_name(product)
        assert found is not None
        assert found.name == name
    assert gpu_by_product_name("Tesla K80") is None


def test_unknown_gpu() -> None:
    """An unknown GPU is refused with the nearest name."""
    with pytest.raises(InputError, match="did you mean h100-80gb"):
        find_gpu("h100-80g")


def test_replay_of_the_27b() -> None:
    """32 requests at K = 3 take 1.2 GB where drafts are undone by replay, and 19.7 GB where not."""
    wanted = plan("qwen3.8-27b", has_replay=True)
    assert rollback_scratch(wanted.shape, wanted) / 32 / MB == pytest.approx(37.6, abs=0.5)
    assert rollback_scratch(wanted.shape, wanted) / GB == pytest.approx(1.2, abs=0.05)
    without = replace(wanted, has_replay=False)
    assert rollback_scratch(without.shape, without) / GB == pytest.approx(19.7, abs=0.1)


@pytest.mark.parametrize(
    ("version", "draft_length", "args", "dtype", "family", "sm", "planned", "possible"),
    [
        ("1.3.0rc27", 3, {}, "float32", "qwen3.5", 90, True, True),
        ("1.4.0rc1", 7, {}, "bfloat16", "qwen3.5-moe", None, True, True),
        ("1.3.0rc27", 8, {}, "float32", "qwen3.5", 90, False, False),
        ("1.3.0rc27", 0, {}, "float32", "qwen3.5", 90, False, False),
        ("1.3.0rc27", 3, {"use_dynamic_tree": True}, "float32", "qwen3.5", 90, False, False),
        ("1.3.0rc27", 3, {}, "fp8", "qwen3.5", 90, False, False),
        ("1.3.0rc27", 3, {}, "float32", "qwen3.5", 75, False, False),
        ("1.3.0rc26", 3, {}, "float32", "qwen3.5", 90, False, True),
        ("1.3.0rc20", 3, {}, "float32", "qwen3.5", 90, False, False),
        ("1.4.0rc1", 3, {}, "float32", "qwen3-next", 90, False, True),
    ],
)
def test_who_replays(
    version: str, draft_length: int, args: dict[str, Any], dtype: str, family: str,
    sm: int | None, planned: bool, possible: bool,
) -> None:  # fmt: skip
    """Replay is planned for where a source has it, and possible where none denies it."""
    found = replay_of(
        parse_version(version), draft_length, {"speculative_config": args}, dtype, family, sm
    )
    assert (found.is_planned, found.is_possible) == (planned, possible)


def test_refused_is_only_what_is_certain_not_to_fit() -> None:
    """What fits only with replay is planned with it, under a warning, where it is possible."""
    wanted = plan("qwen3.6-35b-a3b")
    unknown = Replay(False, True, "no source says so")
    fitting, (finding,) = fitting_plan(wanted, unknown, H100)
    assert fitting.has_replay
    assert (finding.id, finding.severity) == ("gdn-replay-unknown", "warning")
    assert estimate(fitting, H100).fits
    impossible = Replay(False, False, "it is older")
    same, (finding,) = fitting_plan(wanted, impossible, H100)
    assert (same, finding.id) == (wanted, "gdn-states")
    with pytest.raises(DoesNotFitError):
        require_fit(same, H100)
