"""How much GPU memory a variant needs, and what would fit where it does not.

Sizes are bytes per GPU unless a name says otherwise. What TensorRT-LLM allocates beyond the
formulas below is covered by stated allowances, so this is a plan, not a measurement.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from trt_mtp.build.gpus import Gpu
from trt_mtp.build.model_shape import ModelShape
from trt_mtp.errors import TrtMtpError

# Allowances, chosen here, not measured. CUDA context, NCCL buffers and library workspaces:
RUNTIME_BYTES = 3 * 10**9
# captured CUDA graphs, per captured batch size and token of a step:
CUDA_GRAPH_BYTES = 10 * 10**6
# The share of the memory left after loading that goes to the pools (KV cache and states):
# examples/configs/curated/qwen3.8-low-latency-mtp3.yaml in NVIDIA/TensorRT-LLM.
POOL_FRACTION = 0.78
REPLAY_ROWS = 16  # updates that replay keeps at least: pull request 16464 in NVIDIA/TensorRT-LLM

BYTES_PER_VALUE = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "fp8_ds_mla": 1.0,
    "nvfp4": 0.5625,
}


class DoesNotFitError(TrtMtpError):
    """A variant needs more memory than the GPU has; the message says what would fit."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What decides the memory of one variant."""

    shape: ModelShape
    draft_length: int
    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    tensor_parallel: int = 1
    kv_cache_dtype: str = "bfloat16"
    state_dtype: str = "float32"
    weight_dtype: str | None = None  # fp8 or nvfp4 when the checkpoint is to be quantised
    pool_fraction: float = POOL_FRACTION
    has_vision: bool = False  # the vision tower is loaded too, on every GPU
    has_replay: bool = False  # rejected drafts are undone by replay, not by a state for each


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes per GPU, by what they are for, and how much is left for the KV cache."""

    weights: int
    mtp_head: int
    runtime: int
    activations: int
    cuda_graphs: int
    state: int
    rollback_scratch: int
    kv_cache_per_token: int
    kv_cache: int  # what is left for it; 0 when no GPU was named
    kv_cache_tokens: int
    gpu: str | None
    gpu_bytes: int
    max_seq_len: int

    @property
    def before_kv_cache(self) -> int:
        """Everything that is there before the first token is cached."""
        return (
            self.weights
            + self.mtp_head
            + self.runtime
            + self.activations
            + self.cuda_graphs
            + self.state
            + self.rollback_scratch
        )

    @property
    def full_length_requests(self) -> int:
        """How many requests of the longest length the KV cache holds at once."""
        return self.kv_cache_tokens // self.max_seq_len

    @property
    def fits(self) -> bool:
        """Whether one request of the longest length can run."""
        return self.gpu is None or self.full_length_requests >= 1


def kv_cache_per_token(shape: ModelShape, draft_length: int, dtype: str, parallel: int = 1) -> int:
    """Bytes of keys and values of one token: full-attention layers, and the MTP layer's own.

    Layers x heads x 2 x head size; the heads are divided among the GPUs, but not below one
    (docs/source/features/parallel-strategy.md in NVIDIA/TensorRT-LLM).
    """
    heads = max(1, shape.num_kv_heads // parallel)
    layers = shape.num_full_layers + (shape.num_mtp_layers if draft_length else 0)
    return round(layers * heads * 2 * shape.head_dim * BYTES_PER_VALUE[dtype])


def state_per_request(shape: ModelShape, dtype: str, parallel: int = 1) -> int:
    """Bytes of the Gated-DeltaNet states of one request: per head a key x value matrix.

    The recurrent part only; `conv_state_per_request` is small beside it.
    """
    matrix = shape.linear_key_head_dim * shape.linear_value_head_dim
    heads = shape.num_linear_value_heads // parallel
    return round(shape.num_linear_layers * heads * matrix * BYTES_PER_VALUE[dtype])


def conv_state_per_request(shape: ModelShape, parallel: int = 1) -> int:
    """Bytes of the last kernel-1 inputs of the convolution before each linear layer, in bf16."""
    channels = (
        2 * shape.num_linear_key_heads * shape.linear_key_head_dim
        + shape.num_linear_value_heads * shape.linear_value_head_dim
    )
    return shape.num_linear_layers * channels // parallel * (shape.conv_kernel - 1) * 2


def rollback_scratch(shape: ModelShape, plan: MemoryPlan) -> int:
    """Bytes that a verify step keeps to go back to one of its tokens.

    With replay the inputs of the last updates, else the state after each token: batch x (K + 1) x
    state. Convolution windows are kept for each token either way. (`intermediate_ssm`,
    `intermediate_conv_window`, `old_x`, `old_B`, `old_dt`, `old_dA_cumsum` of
    tensorrt_llm/_torch/pyexecutor/mamba_cache_manager.py; pull request 16464.)
    """
    if plan.draft_length == 0:
        return 0
    tokens = plan.draft_length + 1
    windows = tokens * conv_state_per_request(shape, plan.tensor_parallel)
    if plan.has_replay:
        rows = 2 * max(REPLAY_ROWS, tokens)  # one set is read while the other is written
        return plan.max_batch_size * (windows + rows * replay_row(shape, plan.tensor_parallel))
    states = tokens * state_per_request(shape, plan.state_dtype, plan.tensor_parallel)
    return plan.max_batch_size * (windows + states)


def replay_row(shape: ModelShape, parallel: int = 1) -> int:
    """Bytes of one update of all Gated-DeltaNet layers of a request.

    Its keys and values in bf16, and two numbers a head in fp32.
    """
    keys = shape.num_linear_key_heads * shape.linear_key_head_dim
    values = shape.num_linear_value_heads * shape.linear_value_head_dim
    per_layer = (keys + values) * 2 + shape.num_linear_value_heads * 2 * 4
    return shape.num_linear_layers * per_layer // parallel


def activations(shape: ModelShape, plan: MemoryPlan) -> int:
    """Bytes of one layer's inputs and outputs in bf16, and of the logits in fp32.

    An allowance: one layer at a time is alive, its widest part counted twice.
    """
    per_token = 4 * shape.hidden_size + 2 * shape.feed_forward_size // plan.tensor_parallel
    logits = plan.max_batch_size * (plan.draft_length + 1) * shape.vocab_size * 4
    return plan.max_num_tokens * per_token * 2 + logits // plan.tensor_parallel


def weight_bytes(shape: ModelShape, plan: MemoryPlan) -> int:
    """Bytes of the text model's weights, MTP head apart.

    As they lie on disk, or with the linear layers in `plan.weight_dtype`: FP8 is a byte each,
    NVFP4 half a byte and one FP8 scale for 16 (ModelOpt's group_size).
    """
    if plan.weight_dtype is None:
        return shape.weight_bytes // plan.tensor_parallel
    linear = shape.num_linear_weights * BYTES_PER_VALUE[plan.weight_dtype]
    rest = shape.weight_bytes - 2 * shape.num_linear_weights
    return round((linear + max(0, rest)) / plan.tensor_parallel)


def estimate(plan: MemoryPlan, gpu: Gpu | None) -> MemoryEstimate:
    """The memory of `plan`, and how many tokens the KV cache holds on `gpu`."""
    shape = plan.shape
    weights = weight_bytes(shape, plan) + (shape.vision_bytes if plan.has_vision else 0)
    mtp_head = shape.mtp_bytes // plan.tensor_parallel if plan.draft_length else 0
    steps = plan.max_batch_size * (plan.draft_length + 1)
    state = plan.max_batch_size * (
        state_per_request(shape, plan.state_dtype, plan.tensor_parallel)
        + conv_state_per_request(shape, plan.tensor_parallel)
    )
    scratch = rollback_scratch(shape, plan)
    per_token = kv_cache_per_token(
        shape, plan.draft_length, plan.kv_cache_dtype, plan.tensor_parallel
    )
    graphs = min(steps, 512) * CUDA_GRAPH_BYTES
    alive = activations(shape, plan)
    total = gpu.memory_bytes if gpu else 0
    free = total - weights - mtp_head - alive
    pools = min(plan.pool_fraction * free, free - RUNTIME_BYTES - graphs)
    kv_cache = max(0, round(pools) - state - scratch) if gpu else 0
    return MemoryEstimate(
        weights=weights,
        mtp_head=mtp_head,
        runtime=RUNTIME_BYTES,
        activations=alive,
        cuda_graphs=graphs,
        state=state,
        rollback_scratch=scratch,
        kv_cache_per_token=per_token,
        kv_cache=kv_cache,
        kv_cache_tokens=kv_cache // per_token,
        gpu=gpu.name if gpu else None,
        gpu_bytes=total,
        max_seq_len=plan.max_seq_len,
    )


def largest_batch(plan: MemoryPlan, gpu: Gpu, *, full_length: bool = False) -> int:
    """The largest batch that fits on `gpu`, 0 when none does.

    With `full_length`, every request of it may grow to the longest length at the same time.
    """

    def fits(batch: int) -> bool:
        tokens = max(plan.max_num_tokens, batch * (plan.draft_length + 1))
        found = estimate(replace(plan, max_batch_size=batch, max_num_tokens=tokens), gpu)
        return found.full_length_requests >= (batch if full_length else 1)

    low, high = 0, 4096
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def require_fit(plan: MemoryPlan, gpu: Gpu) -> MemoryEstimate:
    """The estimate of `plan`; raises DoesNotFitError, with each single change that would fit."""
    found = estimate(plan, gpu)
    if found.fits:
        return found
    needed = found.before_kv_cache + plan.max_seq_len * found.kv_cache_per_token
    raise DoesNotFitError(
        f"draft length {plan.draft_length} with {plan.max_batch_size} requests needs about "
        f"{needed / 1e9:.1f} GB per GPU and {gpu.name} has {gpu.memory_bytes / 1e9:.0f} GB, of "
        f"which weights take {(found.weights + found.mtp_head) / 1e9:.1f}, states and rollback "
        f"{(found.state + found.rollback_scratch) / 1e9:.1f}; {advice(plan, gpu)}"
    )


def advice(plan: MemoryPlan, gpu: Gpu) -> str:
    """What would make `plan` fit on `gpu`, one change at a time, else several together."""
    choices = [text for text, change in single_changes(plan, gpu) if estimate(change, gpu).fits]
    if choices:
        return "any of these would fit: " + ", ".join(choices)
    smallest = replace(plan, state_dtype="bfloat16", kv_cache_dtype="fp8")
    for parallel in plan.shape.parallel_sizes:
        wide = replace(smallest, tensor_parallel=parallel)
        batch = largest_batch(wide, gpu)
        if parallel >= plan.tensor_parallel and batch:
            return (
                f"this would fit: --tp {parallel} --state-dtype bfloat16 --kv-cache-dtype fp8 "
                f"--max-batch-size {min(batch, plan.max_batch_size)}"
            )
    return "nothing tried here would fit on this GPU; use one with more memory"


def single_changes(plan: MemoryPlan, gpu: Gpu) -> Iterator[tuple[str, MemoryPlan]]:
    """Options that need less memory, each with the plan it leads to."""
    batch = largest_batch(plan, gpu)
    if batch:
        yield f"--max-batch-size {batch}", replace(plan, max_batch_size=batch)
    if plan.state_dtype == "float32":
        yield "--state-dtype bfloat16", replace(plan, state_dtype="bfloat16")
    if plan.kv_cache_dtype == "bfloat16" and gpu.has_fp8:
        yield "--kv-cache-dtype fp8", replace(plan, kv_cache_dtype="fp8")
    if plan.weight_dtype is None and not plan.shape.is_quantized:
        if gpu.has_fp8:
            yield "--quantize fp8", replace(plan, weight_dtype="fp8")
        if gpu.has_fp4:
            yield "--quantize nvfp4", replace(plan, weight_dtype="nvfp4")
    wider = [size for size in plan.shape.parallel_sizes if size > plan.tensor_parallel]
    for size in wider:
        change = replace(plan, tensor_parallel=size)
        if estimate(change, gpu).fits:
            yield f"--tp {size}", change
            return


def memory_json(memory: MemoryEstimate, batch: int | None) -> dict[str, Any]:
    """The estimate as JSON; sizes in bytes per GPU."""
    return {
        "gpu": memory.gpu,
        "gpu_bytes": memory.gpu_bytes,
        "weights_bytes": memory.weights,
        "mtp_head_bytes": memory.mtp_head,
        "state_bytes": memory.state,
        "rollback_scratch_bytes": memory.rollback_scratch,
        "activations_bytes": memory.activations,
        "cuda_graphs_bytes": memory.cuda_graphs,
        "runtime_bytes": memory.runtime,
        "kv_cache_bytes_per_token": memory.kv_cache_per_token,
        "kv_cache_bytes": memory.kv_cache,
        "kv_cache_tokens": memory.kv_cache_tokens,
        "max_full_length_batch": batch,
    }
