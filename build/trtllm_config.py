"""The configuration of one TensorRT-LLM variant: its LLM-API arguments.

Pure functions of what was asked for; nothing is read or written. Each choice that TensorRT-LLM's
defaults would not make names the published recipe it comes from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trt_mtp.build.gdn_replay import Replay, replay_of
from trt_mtp.build.gpus import Gpu
from trt_mtp.build.memory import POOL_FRACTION, MemoryPlan
from trt_mtp.build.model_shape import ModelShape
from trt_mtp.build.trtllm_fields import problems, with_option
from trt_mtp.build.trtllm_version import Version, parse_version
from trt_mtp.errors import InputError

FLASH_NEXT = "qwen3.8-flash-next"
# examples/configs/curated/qwen3.8-flash-next.yaml @b744e0a5 in NVIDIA/TensorRT-LLM
FLASH_NEXT_POOL_FRACTION = 0.5
TOKENS_PER_BLOCK = 32  # KvCacheConfig.tokens_per_block's default
PREFILL_TOKENS = 8192  # TorchLlmArgs.max_num_tokens' default
CHUNKED_PREFILL_SINCE = parse_version("1.3.0rc24")
V2_MANAGER_SINCE = parse_version("1.3.0rc24")
VISION_SWITCH_SINCE = parse_version("1.3.0rc27")
GMS_SINCE = parse_version("1.3.0rc27")
# keys that other options set, and that more than the configuration depends on
OWN_OPTIONS = {
    "model": "CHECKPOINT",
    "tensor_parallel_size": "--tp",
    "moe_expert_parallel_size": "--ep",
    "max_batch_size": "--max-batch-size",
    "max_seq_len": "--max-seq-len",
    "speculative_config.max_draft_len": "--draft-lengths",
    "speculative_config.num_nextn_predict_layers": "--draft-lengths",
    "speculative_config": "--draft-lengths",
    "kv_cache_config": "its keys, as in kv_cache_config.dtype,",
    "load_format": "--share-weights",
}


@dataclass(frozen=True, slots=True)
class TrtllmOptions:
    """What the user asked for, the same for every variant."""

    version: Version
    checkpoint: Path
    shape: ModelShape
    checkpoint_dtype: str  # bf16, fp8, nvfp4, …: for the autotuner's key
    checkpoint_digest: str
    state_dtype: str  # the checkpoint's own; --state-dtype is state_option
    cache_dtype: str = "bfloat16"  # the checkpoint's own; --kv-cache-dtype is kv_cache_dtype
    gpu: Gpu | None = None
    tensor_parallel: int = 1
    expert_parallel: int = 1
    max_batch_size: int = 32
    max_seq_len: int = 8192
    kv_cache_dtype: str = "auto"
    state_option: str = "auto"
    schedule: Mapping[int, int] | None = None  # largest batch size -> draft length
    measured_schedules: Mapping[int, Mapping[int, int]] | None = None  # one for each draft length
    share_weights: str | None = None
    quantize: str | None = None
    settings: tuple[str, ...] = ()  # --set
    flashinfer_prefill: bool = False  # while drafting: as TensorRT-LLM's default has it
    devices: tuple[int, ...] = ()  # GPUs for all variants together; empty: the server decides


def max_num_tokens(options: TrtllmOptions, draft_length: int) -> int:
    """Tokens of one iteration: every request's verify step, and a prompt or a part of one.

    At least batch x (K + 1) (SemiAnalysisAI/InferenceX, qwen3.5 gb300 recipes: decode
    max_num_tokens is max_batch_size x (draft + 1)), and whole blocks (aiconfigurator's rule).
    Without chunked prefill a prompt must go through in one piece.
    """
    prefill = PREFILL_TOKENS
    if options.version < CHUNKED_PREFILL_SINCE:
        prefill = max(prefill, options.max_seq_len)
    tokens = max(prefill, options.max_batch_size * (draft_length + 1))
    return -(-tokens // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK


def draft_len_schedule(
    wanted: Mapping[int, int], draft_length: int, max_batch_size: int
) -> dict[int, int] | None:
    """`wanted` for a variant of `draft_length`, None where it would never change anything.

    Keys are upper bounds of the batch size since 1.3.0rc (pull requests 10860 and 12262); above
    the last key TensorRT-LLM stops drafting, and drafting that resumes later is accepted less and
    less (pull request 16888, open). So the last key reaches `max_batch_size` and no value is 0.
    The first value must be the draft length (validate_draft_len_schedule_and_sort, llm_args.py).

    >>> draft_len_schedule({4: 5, 16: 2}, 3, 64)
    {4: 3, 16: 2, 64: 1}
    """
    schedule = {
        bound: max(1, min(length, draft_length))
        for bound, length in sorted(wanted.items())
        if bound <= max_batch_size
    }
    if not schedule or max(schedule) < max_batch_size:
        beyond = [length for bound, length in sorted(wanted.items()) if bound > max_batch_size]
        last = min(beyond[0], draft_length) if beyond else 1
        schedule[max_batch_size] = max(1, last)
    schedule[min(schedule)] = draft_length
    return schedule if set(schedule.values()) != {draft_length} else None


def llm_args(options: TrtllmOptions, draft_length: int) -> dict[str, Any]:
    """The arguments of `tensorrt_llm.LLM`, which are also the keys of its YAML.

    Raises InputError when a --set is refused by the version.
    """
    args: dict[str, Any] = {
        "model": str(options.checkpoint),
        "tensor_parallel_size": options.tensor_parallel,
        **parallel_experts(options),
        "max_batch_size": options.max_batch_size,
        "max_seq_len": options.max_seq_len,
        "max_num_tokens": max_num_tokens(options, draft_length),
        "enable_chunked_prefill": options.version >= CHUNKED_PREFILL_SINCE,
        "cuda_graph_config": {"enable_padding": True, "max_batch_size": options.max_batch_size},
        "kv_cache_config": kv_cache_config(options),
        "enable_iter_perf_stats": True,  # get_stats() carries the speculation's counters
        "return_perf_metrics": True,
    }
    backend = expert_backend(options)
    if backend:
        args["moe_config"] = {"backend": backend}
    if options.shape.has_vision and options.version >= VISION_SWITCH_SINCE:
        args["disable_mm_encoder"] = True  # the same file; only text is served
    if options.share_weights == "gms":
        args["load_format"] = "gms"  # pull request 13926
    if draft_length:
        args["speculative_config"] = speculative_config(options, draft_length)
    return with_settings(args, options, draft_length)


def expert_backend(options: TrtllmOptions) -> str | None:
    """What computes the experts, where a curated YAML says so; None leaves it to TensorRT-LLM.

    Quantised experts on B200 and B300 class GPUs: qwen3.8-low-latency-mtp3.yaml @7fccbed0.
    Flash-Next in BF16: qwen3.8-flash-next.yaml @b744e0a5.
    """
    if not options.shape.is_moe:
        return None
    dtype = options.quantize or options.checkpoint_dtype
    if options.shape.family == FLASH_NEXT and dtype == "bf16":
        return "CUTLASS"
    is_blackwell = options.gpu is not None and options.gpu.sm in (100, 103)
    return "TRTLLM" if is_blackwell and dtype in ("fp8", "nvfp4") else None


def parallel_experts(options: TrtllmOptions) -> dict[str, int]:
    """How the experts are divided: tensor x expert parallel is the number of GPUs."""
    if not options.shape.is_moe:
        return {}
    return {
        "moe_tensor_parallel_size": options.tensor_parallel // options.expert_parallel,
        "moe_expert_parallel_size": options.expert_parallel,
    }


def kv_cache_config(options: TrtllmOptions) -> dict[str, Any]:
    """Cache settings of the curated Qwen YAML files; no reuse across requests."""
    is_flash_next = options.shape.family == FLASH_NEXT
    config: dict[str, Any] = {
        "enable_block_reuse": False,
        "free_gpu_memory_fraction": FLASH_NEXT_POOL_FRACTION if is_flash_next else POOL_FRACTION,
    }
    if options.kv_cache_dtype != "auto":
        config["dtype"] = options.kv_cache_dtype
    if options.state_option != "auto":
        config["mamba_ssm_cache_dtype"] = options.state_option
    if options.version >= V2_MANAGER_SINCE:
        # Flash-Next needs the new manager (its deployment guide); the curated MTP YAML of the
        # others turns it off, and issue 18660 is about the new one
        config["use_kv_cache_manager_v2"] = is_flash_next
    return config


def speculative_config(options: TrtllmOptions, draft_length: int) -> dict[str, Any]:
    """MTP with one layer, applied `draft_length` times; `max_draft_len` is the name since 1.3."""
    config: dict[str, Any] = {"decoding_type": "MTP", "max_draft_len": draft_length}
    wanted = (options.measured_schedules or {}).get(draft_length, options.schedule)
    if wanted:
        schedule = draft_len_schedule(wanted, draft_length, options.max_batch_size)
        if schedule:
            config["draft_len_schedule"] = schedule
    return config


def with_settings(
    args: dict[str, Any], options: TrtllmOptions, draft_length: int
) -> dict[str, Any]:
    """`args` after every --set, those of speculative_config only where there is one."""
    for setting in options.settings:
        path = setting.partition("=")[0].strip()
        if path in OWN_OPTIONS:
            raise InputError(f"--set {setting}: use {OWN_OPTIONS[path]} for {path}")
        changed = with_option(args, setting, options.version)
        if draft_length or "speculative_config" not in changed:
            args = changed
    for problem in problems(args, options.version):
        raise InputError(problem)
    return args


def memory_plan(options: TrtllmOptions, draft_length: int, args: Mapping[str, Any]) -> MemoryPlan:
    """What `args` mean for memory."""
    cache = args["kv_cache_config"]
    dtype = cache.get("dtype", "auto")
    state = cache.get("mamba_ssm_cache_dtype", "auto")
    return MemoryPlan(
        shape=options.shape,
        draft_length=draft_length,
        max_batch_size=args["max_batch_size"],
        max_seq_len=args["max_seq_len"],
        max_num_tokens=args["max_num_tokens"],
        tensor_parallel=args["tensor_parallel_size"],
        kv_cache_dtype=options.cache_dtype if dtype == "auto" else dtype,
        state_dtype=options.state_dtype if state == "auto" else state,
        weight_dtype=options.quantize,
        pool_fraction=cache["free_gpu_memory_fraction"],
        has_vision=options.shape.has_vision and not args.get("disable_mm_encoder", False),
        has_replay=replay_plan(options, draft_length, args).is_planned,
    )


def replay_plan(options: TrtllmOptions, draft_length: int, args: Mapping[str, Any]) -> Replay:
    """Whether rejected drafts are undone by replay."""
    state = args["kv_cache_config"].get("mamba_ssm_cache_dtype", "auto")
    return replay_of(
        options.version,
        draft_length,
        args,
        options.state_dtype if state == "auto" else state,
        options.shape.family,
        options.gpu.sm if options.gpu else None,
    )


def yaml_text(args: Mapping[str, Any], header: str) -> str:
    """`args` as the YAML that trtllm-serve and Triton's llmapi model read."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + yaml.safe_dump(dict(args), sort_keys=False)


def check_options(options: TrtllmOptions) -> None:
    """Raise InputError for options that can't be combined."""
    sizes = options.shape.parallel_sizes
    if options.tensor_parallel not in sizes:
        raise InputError(
            f"--tp {options.tensor_parallel}: this model's heads are divided evenly by "
            f"{', '.join(map(str, sizes))} GPUs only"
        )
    if options.expert_parallel != 1 and not options.shape.is_moe:
        raise InputError(f"--ep {options.expert_parallel}: this model has no experts; leave it out")
    if options.tensor_parallel % options.expert_parallel:
        raise InputError(
            f"--ep {options.expert_parallel} does not divide --tp {options.tensor_parallel}; "
            "expert x tensor parallel of the experts must be --tp"
        )
    if options.max_seq_len > options.shape.context_length:
        raise InputError(
            f"--max-seq-len {options.max_seq_len} is more than the checkpoint's "
            f"{options.shape.context_length}"
        )
    if options.share_weights == "gms" and options.version < GMS_SINCE:
        raise InputError(
            f"--share-weights gms: gms_config is published from {GMS_SINCE} on, not for "
            f"TensorRT-LLM {options.version}"
        )


def devices_of(options: TrtllmOptions, draft_lengths: Sequence[int]) -> dict[int, str]:
    """CUDA_VISIBLE_DEVICES of each variant: its own GPUs, in the order of `options.devices`.

    Raises InputError when there are too few. Two variants on one GPU would each take most of the
    memory that the other left, depending on which starts first, so that is not planned.
    """
    if not options.devices:
        return {}
    size, wanted = options.tensor_parallel, options.tensor_parallel * len(draft_lengths)
    if len(options.devices) < wanted:
        raise InputError(
            f"--devices names {len(options.devices)} GPUs, and {len(draft_lengths)} variants of "
            f"{size} need {wanted}; name more, or build fewer draft lengths"
        )
    return {
        length: ",".join(map(str, options.devices[at * size : (at + 1) * size]))
        for at, length in enumerate(draft_lengths)
    }


def parse_devices(text: str) -> tuple[int, ...]:
    """`0,1,2` as GPU numbers; raises InputError.

    >>> parse_devices("0, 2")
    (0, 2)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--devices {text!r}: expected different GPU numbers, as in 0,1,2")
    return tuple(int(part) for part in parts)


def parse_schedule(text: str, option: str = "--draft-len-schedule") -> dict[int, int]:
    """`4:3,16:2` as batch size -> draft length; raises InputError that names the option.

    >>> parse_schedule("4:3,16:2")
    {4: 3, 16: 2}
    """
    schedule = {}
    for part in text.split(","):
        bound, colon, length = part.partition(":")
        if not (colon and bound.strip().isdigit() and length.strip().isdigit()):
            raise InputError(
                f"{option} {text!r}: expected pairs of batch size and draft length, as in 4:3,16:2"
            )
        schedule[int(bound)] = int(length)
    if min(schedule) < 1 or min(schedule.values()) < 1:
        raise InputError(
            f"{option} {text!r}: batch sizes and draft lengths start at 1, because "
            "drafting that stops and resumes is accepted less and less "
            "(https://github.com/NVIDIA/TensorRT-LLM/pull/16888)"
        )
    return schedule
