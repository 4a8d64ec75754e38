"""The prior of step times from data sheets and model sizes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_mtp.build.gpus import find_gpu, gpu_types
from trt_mtp.build.released_models import find_model, released_models
from trt_mtp.controller.roofline import Roofline

H100 = find_gpu("h100-80gb")
models = st.sampled_from(sorted(released_models()))
gpus = st.sampled_from(sorted(gpu_types()))


def roofline(model: str) -> Roofline:
    return Roofline(find_model(model).shape, H100)


def ratio(prior: Roofline, draft_length: int, batch: int) -> float:
    """R(K, B) with 1,024 tokens a request."""
    context = 1024 * batch
    return prior.step_s(draft_length, batch, context) / prior.step_s(0, batch, context)


def test_a_dense_models_ratio_rises_with_load() -> None:
    """Rollback copies make R(3) of 27B in FP8 rise from 1.4 to 1.8; replay takes them away."""
    prior = roofline("qwen3.8-27b-fp8")
    assert ratio(prior, 3, 1) == pytest.approx(1.37, abs=0.08)
    assert ratio(prior, 3, 64) == pytest.approx(1.77, abs=0.08)
    assert ratio(replace(prior, has_replay=True), 3, 64) < 1.35


def test_a_sparse_models_ratio_falls_with_load() -> None:
    """Few requests visit few experts, and each draft some more; 64 requests visit all anyway."""
    prior = roofline("qwen3.6-35b-a3b-fp8")
    assert ratio(prior, 3, 4) > 2
    assert ratio(prior, 3, 64) == pytest.approx(1.57, abs=0.08)


@pytest.mark.parametrize(("model", "expected"), [("qwen3.8-27b", 1.99), ("qwen3.6-35b-a3b", 1.57)])
def test_long_contexts_cost(model: str, expected: float) -> None:
    """A plain step of sixteen requests at 32k tokens takes up to twice that at 1k."""
    prior = roofline(f"{model}-fp8")
    taken = prior.step_s(0, 16, 16 * 32768) / prior.step_s(0, 16, 16 * 1024)
    assert taken == pytest.approx(expected, rel=0.08)


@given(models, gpus, st.integers(0, 7), st.integers(1, 256), st.floats(0, 1e6), st.booleans())
def test_more_work_takes_longer(
    model: str, gpu: str, draft_length: int, batch: int, context: float, has_replay: bool
) -> None:
    """A step takes longer with another draft, request or token of context, on every GPU."""
    prior = Roofline(find_model(model).shape, find_gpu(gpu), has_replay=has_replay)
    step_s = prior.step_s(draft_length, batch, context)
    assert 0 < step_s < prior.step_s(draft_length + 1, batch, context)
    assert step_s < prior.step_s(draft_length, batch + 1, context)
    assert step_s <= prior.step_s(draft_length, batch, context + 1000)


@given(models, gpus)
def test_the_table_is_the_roofline(model: str, gpu: str) -> None:
    """A profile's table of it gives the same step times at its batches."""
    prior = Roofline(find_model(model).shape, find_gpu(gpu))
    table = prior.step_cost((1, 3), context_tokens=512)
    for draft_length in (0, 1, 3):
        expected = prior.step_s(draft_length, 16, 16 * 512)
        assert table.step_s(draft_length, 16) == pytest.approx(expected)
    assert prior.prefill_tokens_per_s() > 0
