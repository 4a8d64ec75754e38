"""What starts a TensorRT-LLM variant: environment variables and the command."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trt_mtp.build import gdn_replay
from trt_mtp.build.gdn_replay import wants_replay
from trt_mtp.build.trtllm_config import FLASH_NEXT, TrtllmOptions
from trt_mtp.build.trtllm_version import parse_version

PARSERS_SINCE = parse_version("1.3.0rc27")
CONFIG_OPTION_SINCE = parse_version("1.3.0rc24")


def environment(options: TrtllmOptions, args: Mapping[str, Any], cache: Path) -> dict[str, str]:
    """Environment variables of the process that runs the variant."""
    draft_length = int((args.get("speculative_config") or {}).get("max_draft_len") or 0)
    variables = {"TLLM_AUTOTUNER_CACHE_PATH": str(cache / autotuner_file(options, args))}
    if draft_length and not options.flashinfer_prefill:
        # "MTP requires the FlashInfer GDN prefill path to be disabled" (InferenceX 843c6254,
        # qwen3.5_fp4_b200_trt_mtp.sh, on 1.3.0rc18); no source says since when it does not.
        # Without drafts TensorRT-LLM chooses: on Hopper and Blackwell it is on.
        variables["TLLM_USE_FLASHINFER_GDN_PREFILL"] = "0"
    # set either way, so that the memory plan does not depend on a version's default
    variables[gdn_replay.VARIABLE] = "1" if wants_replay(draft_length, args) else "0"
    if options.shape.family == FLASH_NEXT:
        variables["TRTLLM_QWEN4_EXP_PLE_HOST_OFFLOAD"] = "1"  # its deployment guide @aa86d7d3
        # NVIDIA's page of its supported features @f936b77d
        variables["PYTORCH_ALLOC_CONF"] = (
            "pinned_use_cuda_host_register:True,pinned_max_round_threshold_mb:128"
        )
    return variables


def autotuner_file(options: TrtllmOptions, args: Mapping[str, Any]) -> str:
    """Name of the autotuner's cache: all that its choices depend on, which it doesn't check.

    TensorRT-LLM loads the file as it is, written on whatever GPU by whatever version.
    """
    speculative = args.get("speculative_config") or {}
    key = {
        "gpu": options.gpu.name if options.gpu else "unknown",
        "version": str(options.version),
        "checkpoint": options.checkpoint_digest,
        "dtype": options.quantize or options.checkpoint_dtype,
        "tensor_parallel": args["tensor_parallel_size"],
        "expert_parallel": args.get("moe_expert_parallel_size"),
        "max_num_tokens": args["max_num_tokens"],
        "max_batch_size": args["max_batch_size"],
        "draft_length": speculative.get("max_draft_len", 0),
        "moe_backend": (args.get("moe_config") or {}).get("backend"),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return f"{key['gpu']}-{key['version']}-{digest[:12]}.json"


def serve_command(options: TrtllmOptions, config: Path) -> list[str]:
    """`trtllm-serve` with the variant's configuration, as the public recipes call it."""
    name = "--config" if options.version >= CONFIG_OPTION_SINCE else "--extra_llm_api_options"
    command = ["trtllm-serve", str(options.checkpoint)]
    if options.version < CONFIG_OPTION_SINCE:
        command += ["--backend", "pytorch"]
    command += [name, str(config), "--port", "8000"]
    if options.version >= PARSERS_SINCE and options.shape.family != "qwen3-next":
        # deployment guides "Qwen3.8 MoE and Qwen3.5 MoE" @904707ff and "Qwen3.8-Flash-Next"
        # @aa86d7d3, which says that neither is found by itself
        command += ["--reasoning_parser", "qwen3_5", "--tool_parser", "qwen3"]
    return [*nodes_prefix(options), *command]


def nodes_prefix(options: TrtllmOptions) -> list[str]:
    """What starts the command on each rank, where a variant needs more GPUs than a node has.

    As docs/llmapi.md in triton-inference-server/tensorrtllm_backend @0b9d7d5 does it. A node has 8
    GPUs, or 4 where they sit on boards with Grace CPUs.
    """
    on_grace = options.gpu is not None and options.gpu.name.startswith("gb")
    per_node = 4 if on_grace else 8
    if options.tensor_parallel <= per_node:
        return []
    nodes = -(-options.tensor_parallel // per_node)
    return [
        "srun", "-N", str(nodes), f"--ntasks-per-node={per_node}", "--mpi=pmix",
        "trtllm-llmapi-launch",
    ]  # fmt: skip


def shell_command(variables: Mapping[str, str], command: list[str]) -> str:
    """One line to paste: the variables and the command."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join(["env", *settings, shlex.join(command)])


def environment_text(variables: Mapping[str, str]) -> str:
    """`NAME=value` lines, as `docker run --env-file` reads them."""
    return "".join(f"{name}={value}\n" for name, value in variables.items())
