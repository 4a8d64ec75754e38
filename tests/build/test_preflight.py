"""Preflight rules: each holds where it should, and nowhere else."""

from typing import Any

import pytest

from trt_mtp.build.preflight import OPERATORS, SEVERITIES, preflight, rules, variant_facts
from trt_mtp.build.trtllm_fields import problems
from trt_mtp.build.trtllm_version import known_versions, parse_version, supported_version

ENVIRONMENT = {"TLLM_USE_FLASHINFER_GDN_PREFILL": "0"}
MODEL = {"family": "qwen3.5", "is_moe": False, "checkpoint_dtype": "fp8", "gpu.sm": 90}


def arguments(speculative: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A sound variant at K = 3 with changes."""
    return {
        "model": "/models/qwen",
        "tensor_parallel_size": 1,
        "max_batch_size": 16,
        "max_seq_len": 8192,
        "max_num_tokens": 8192,
        "enable_chunked_prefill": True,
        "cuda_graph_config": {"enable_padding": True, "max_batch_size": 16},
        "kv_cache_config": {"enable_block_reuse": False, "use_kv_cache_manager_v2": False},
        "speculative_config": {"decoding_type": "MTP", "max_draft_len": 3, **(speculative or {})},
    } | changes


def found(
    args: dict[str, Any],
    version: str = "1.3.0rc27",
    environment: dict[str, str] | None = None,
    **model: Any,
) -> dict[str, str]:
    """Severity by id of what is found, notes left out."""
    parsed = supported_version(version)
    facts = variant_facts(
        parsed, args, ENVIRONMENT if environment is None else environment, MODEL | model
    )
    return {f.id: f.severity for f in preflight(parsed, facts) if f.severity != "info"}


REUSE = {"enable_block_reuse": True, "use_kv_cache_manager_v2": True}
V1 = {"enable_block_reuse": False, "use_kv_cache_manager_v2": False}
BAD_GRAPHS = {"batch_sizes": [1, 8], "max_batch_size": 16}

TRIGGERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "schedule-reaches-zero": (arguments({"draft_len_schedule": {4: 3, 16: 0}}), {}),
    "schedule-ends-early": (arguments({"draft_len_schedule": {8: 3}}), {}),
    "schedule-first-value": (arguments({"draft_len_schedule": {4: 2, 16: 1}}), {}),
    "schedule-above-maximum": (arguments({"draft_len_schedule": {4: 3, 16: 4}}), {}),
    "max-concurrency": (arguments({"max_concurrency": 8}), {}),
    "max-concurrency-and-schedule": (
        arguments({"max_concurrency": 16, "draft_len_schedule": {16: 3}}), {}),
    "draft-length-missing": (arguments({"max_draft_len": 0}), {}),
    "max-num-tokens": (arguments(max_num_tokens=32, max_seq_len=32), {}),
    "prompt-in-one-piece": (arguments(enable_chunked_prefill=False, max_seq_len=9000), {}),
    "batch-size-default": (arguments(max_batch_size=None), {}),
    "pipeline-parallel": (arguments(pipeline_parallel_size=2), {}),
    "context-parallel": (arguments(context_parallel_size=2), {}),
    "beam-search": (arguments(max_beam_width=4), {}),
    "logits-processor": (arguments(batched_logits_processor="x"), {}),
    "lora": (arguments(enable_lora=True), {}),
    "guided-decoding-restart": (
        arguments(
            guided_decoding_backend="xgrammar",
            scheduler_config={"capacity_scheduler_policy": "MAX_UTILIZATION"},
        ), {}),
    "guided-decoding-tree": (
        arguments({"use_dynamic_tree": True}, guided_decoding_backend="xgrammar"), {}),
    "dynamic-tree": (arguments({"use_dynamic_tree": True}), {}),
    "vanilla-mtp": (arguments({"use_mtp_vanilla": True}), {}),
    "relaxed-acceptance-tokens": (arguments({"use_relaxed_acceptance_for_thinking": True}), {}),
    "relaxed-acceptance": (
        arguments({
            "use_relaxed_acceptance_for_thinking": True,
            "begin_thinking_phase_token": 248068, "end_thinking_phase_token": 248069,
        }), {}),
    "acceptance-threshold": (arguments({"acceptance_rate_threshold": 0.5}), {}),
    "gdn-prefill": (arguments(), {"version": "1.3.0rc18", "environment": {}}),
    "gdn-prefill-later": (arguments(), {"environment": {}}),
    "kv-manager-v2": (arguments(kv_cache_config=REUSE), {}),
    "kv-manager-v2-by-default": (arguments(kv_cache_config={"enable_block_reuse": True}), {}),
    "pool-ratio": (arguments(kv_cache_config={**V1, "pool_ratio": [0.5, 0.4]}), {}),
    "snapshots-need-v2": (
        arguments(kv_cache_config={
            **V1, "mamba_state_config": {"periodic_snapshot_interval": 256}}), {}),
    "kv-dtype-mla": (
        arguments(kv_cache_config={**V1, "dtype": "fp8_ds_mla"}), {"version": "1.4.0rc1"}),
    "kv-manager-v2-needed": (
        arguments(kv_cache_config=V1), {"family": "qwen3.8-flash-next", "version": "1.3.0rc28"}),
    "flash-next-version": (arguments(), {"family": "qwen3.8-flash-next"}),
    "flash-next-hardware": (
        arguments(), {"family": "qwen3.8-flash-next", "version": "1.3.0rc28"}),
    "flash-next-old-hardware": (
        arguments(), {"family": "qwen3.8-flash-next", "version": "1.3.0rc28", "gpu.sm": 89}),
    "flash-next-experts": (
        arguments(moe_tensor_parallel_size=2),
        {"family": "qwen3.8-flash-next", "version": "1.3.0rc28", "gpu.sm": 100}),
    "flash-next-depth": (
        arguments({"max_draft_len": 5}),
        {"family": "qwen3.8-flash-next", "version": "1.3.0rc28", "gpu.sm": 100}),
    "flash-next-block-reuse": (
        arguments(kv_cache_config=REUSE),
        {"family": "qwen3.8-flash-next", "version": "1.3.0rc28", "gpu.sm": 100}),
    "next-mtp": (arguments(), {"family": "qwen3-next"}),
    "next-block-reuse": (
        arguments(kv_cache_config={"enable_block_reuse": True}), {"family": "qwen3-next"}),
    "deep-draft": (arguments({"max_draft_len": 8}), {}),
    "old-draft-length-name": (arguments({"num_nextn_predict_layers": 1}), {}),
    "spec-dec-variant": (arguments({"spec_dec_variant": 2}), {"version": "1.4.0rc1"}),
    "cuda-graph-sizes": (arguments(cuda_graph_config=BAD_GRAPHS), {}),
    "cuda-graphs-small": (arguments(cuda_graph_config={"max_batch_size": 8}), {}),
    "torch-compile": (arguments(torch_compile_config={}), {}),
    "autotuner-crash": (arguments(), {"version": "1.3.0rc20"}),
    "jit-race": (arguments(tensor_parallel_size=2), {"version": "1.3.0rc24"}),
    "fp8-blackwell-start": (
        arguments(), {"version": "1.3.0rc24", "is_moe": True, "gpu.sm": 100}),
    "consumer-blackwell": (
        arguments(), {"is_moe": True, "gpu.sm": 120, "checkpoint_dtype": "nvfp4"}),
    "fp8-hardware": (arguments(), {"gpu.sm": 80}),
    "kv-fp8-hardware": (arguments(kv_cache_config={**V1, "dtype": "fp8"}), {"gpu.sm": 80}),
    "kv-nvfp4-hardware": (arguments(kv_cache_config={**V1, "dtype": "nvfp4"}), {}),
    "nvfp4-hardware": (arguments(), {"checkpoint_dtype": "nvfp4"}),
    "quantization-unknown": (arguments(), {"unloadable": "quant_method gptq"}),
    "tensor-names": (arguments(), {"foreign_prefixes": "language_model.model.*"}),
    "trust-remote-code": (arguments(trust_remote_code=True), {}),
    "model-class": (
        arguments(),
        {"architecture": "Qwen3_5ForConditionalGeneration", "text_class": "Qwen3_5ForCausalLM"}),
    "head-not-in-index": (arguments(), {"unlisted": "mtp.safetensors"}),
    "copied-tensor": (arguments(), {"copied": "mtp.fc.weight", "copied_in": "old.safetensors"}),
    "rope-scaled": (arguments(), {"rope_type": "yarn"}),
    "head-quantized": (arguments(), {"mtp_head_quantized": True}),
    "head-undeclared": (arguments(), {"head_undeclared": True}),
    "gms": (arguments(load_format="gms"), {}),
    "gms-load-balancer": (
        arguments(load_format="gms", moe_config={"load_balancer": "x.yaml"}), {}),
    "flash-next-disaggregated": (
        arguments(cache_transceiver_config={"backend": "NIXL"}),
        {"family": "qwen3.8-flash-next", "version": "1.3.0rc28", "gpu.sm": 100}),
    "disaggregated": (arguments(cache_transceiver_config={"backend": "UCX"}), {}),
}  # fmt: skip


def test_a_sound_variant_has_no_findings() -> None:
    """What the project writes itself is not warned about, at any version."""
    for version in known_versions():
        args = arguments()
        if version < parse_version("1.3.0rc24"):
            args["kv_cache_config"] = {"enable_block_reuse": False}
        names = set(found(args, str(version)))
        assert names <= {"autotuner-crash"}
        assert problems(args, version) == []


@pytest.mark.parametrize("rule", [rule for rule in rules() if rule.severity != "info"])
def test_every_rule_can_hold(rule: Any) -> None:
    """Each error and warning has a configuration that brings it up."""
    args, where = TRIGGERS[rule.id]
    assert found(args, **where)[rule.id] == rule.severity


@pytest.mark.parametrize("name", TRIGGERS)
def test_without_drafts_most_are_silent(name: str) -> None:
    """A variant at K = 0 is free of the hazards of drafting."""
    args, where = TRIGGERS[name]
    plain = {key: value for key, value in args.items() if key != "speculative_config"}
    general = {
        "prompt-in-one-piece", "batch-size-default", "kv-manager-v2-needed", "flash-next-version",
        "next-block-reuse", "cuda-graph-sizes", "cuda-graphs-small", "torch-compile",
        "autotuner-crash", "jit-race", "fp8-blackwell-start", "fp8-hardware", "nvfp4-hardware",
        "kv-fp8-hardware", "kv-nvfp4-hardware", "flash-next-hardware",
        "flash-next-old-hardware", "flash-next-experts", "flash-next-block-reuse",
        "gms", "gms-load-balancer", "quantization-unknown", "tensor-names", "model-class",
        "trust-remote-code", "copied-tensor",
        "rope-scaled", "pool-ratio", "snapshots-need-v2", "kv-dtype-mla",
    }  # fmt: skip
    assert set(found(plain, **where)) <= general


def test_block_reuse_by_default_is_off() -> None:
    """Where enable_block_reuse is not set, these models' own default is False."""
    for family in ("qwen3.5", "qwen3-next"):
        names = found(arguments(kv_cache_config={}), family=family)
        assert not {"kv-manager-v2-by-default", "next-block-reuse"} & set(names)


def test_rules_are_well_formed() -> None:
    """Ids are unique, severities and operators known, sources and sentences there."""
    names = [rule.id for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule.severity in SEVERITIES
        assert rule.source
        assert rule.says
        assert all(condition[1] in OPERATORS for condition in rule.when)


def test_errors_come_first() -> None:
    """Findings are sorted by severity."""
    version = supported_version("1.3.0rc27")
    args = arguments({"acceptance_rate_threshold": 0.5}, pipeline_parallel_size=2)
    severities = [f.severity for f in preflight(version, variant_facts(version, args, {}, MODEL))]
    assert severities == sorted(severities, key=SEVERITIES.index)
    assert severities[0] == "error"
