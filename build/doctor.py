"""What is wrong with a variant, a rendered model repository, or this machine."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_mtp.build.checkpoint import Checkpoint, read_checkpoint
from trt_mtp.build.gdn_replay import fitting_plan
from trt_mtp.build.gpus import gpu_by_product_name
from trt_mtp.build.memory import DoesNotFitError, require_fit
from trt_mtp.build.preflight import SEVERITIES, Finding, preflight, variant_facts
from trt_mtp.build.tensorrt_llm import ENGINE, model_facts, options_for, sampled_digest
from trt_mtp.build.trtllm_config import memory_plan, replay_plan
from trt_mtp.build.trtllm_fields import problems
from trt_mtp.build.trtllm_version import parse_version, supported_version
from trt_mtp.build.variant import RECORD, EngineVariant, list_variants, read_variant
from trt_mtp.errors import InputError
from trt_mtp.files import SMALL, read_text, read_yaml

TRITON_PORTS = (8000, 8001, 8002)  # HTTP, gRPC, metrics
PLANNED_KEYS = {
    "max_batch_size", "max_seq_len", "max_num_tokens", "tensor_parallel_size", "kv_cache_config"
}  # fmt: skip
VARIANT_FOLDER = re.compile(r'key:\s*"variant_folder"\s*value\s*{\s*string_value:\s*"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Subject:
    """What was looked at, and what was found."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def num_errors(self) -> int:
        """Findings that keep it from working."""
        return sum(finding.severity == "error" for finding in self.findings)


def examine(target: Path | None) -> tuple[dict[str, Any], tuple[Subject, ...]]:
    """The machine's facts, and the findings on `target` and the machine.

    `target` is a variant, a folder of variants, or a rendered model repository. Raises InputError
    when it is none of them.
    """
    variants: Sequence[EngineVariant] = ()
    subjects: list[Subject] = []
    if target is not None:
        subjects, variants = find_variants(target)
    machine = machine_facts(target or Path())
    for variant in variants:
        found = sorted(examine_variant(variant, machine), key=severity_order)
        subjects.append(Subject(variant.name, tuple(found)))
    subjects.append(Subject("machine", tuple(examine_machine(machine))))
    return machine, tuple(subjects)


def find_variants(target: Path) -> tuple[list[Subject], Sequence[EngineVariant]]:
    """The variants that `target` holds or names, and what is wrong with how it names them."""
    if not target.is_dir():
        raise InputError(f"{target} is not a folder; give a variant, variants or a repository")
    if (target / RECORD).is_file():
        return [], (read_variant(target),)
    configs = sorted(target.glob("*/config.pbtxt"))
    if not configs:
        return [], list_variants(target)
    subjects, variants = [], []
    for config in configs:
        text = read_text(config, SMALL)
        match = VARIANT_FOLDER.search(text)
        if match is None:
            continue  # somebody else's model
        found = tuple(examine_config(text, config.parent))
        if (Path(match[1]) / RECORD).is_file():
            variants.append(read_variant(Path(match[1])))
        else:
            found += (
                error("variant-missing", f"its variant {match[1]} is not there; serve again"),
            )
        subjects.append(Subject(config.parent.name, found))
    return subjects, variants


def examine_config(text: str, folder: Path) -> Iterator[Finding]:
    """What is wrong with a model of a rendered repository."""
    if not re.search(r"decoupled:\s*true", text):
        yield error("not-decoupled", "its config.pbtxt is not decoupled, so it can't stream")
    if not (folder / "1" / "model.py").is_file():
        yield error("model-py-missing", f"{folder / '1' / 'model.py'} is not there; serve again")


def examine_variant(variant: EngineVariant, machine: Mapping[str, Any]) -> Iterator[Finding]:
    """The findings on one variant, on this machine."""
    facts = {**record_facts(variant), **machine}
    version = parse_version("1.3.0")  # the machine's rules are the same for every version
    if variant.engine == ENGINE:
        yield from examine_trtllm(variant, machine)
    yield from preflight(version, facts, "machine")


def record_facts(variant: EngineVariant) -> dict[str, Any]:
    """What the machine's rules ask about a variant."""
    record = variant.record
    checkpoint = Path(record.checkpoint["path"])
    facts = {
        "engine": variant.engine,
        "gpus_needed": record.device.get("count", 1),
        "device.name": record.device.get("name"),
        "versions.tensorrt_llm": record.versions.get("tensorrt_llm"),
        "checkpoint.path": str(checkpoint),
        "is_verified": bool(record.verification),
    }
    if variant.engine == ENGINE:  # the other kind has all it needs in its own folders
        facts |= device_facts(record.details["environment"])
        facts["checkpoint.exists"] = checkpoint.is_dir()
    if record.shared is not None:
        shared = (variant.folder / record.shared).resolve()
        facts |= {"shared.path": str(shared), "shared.exists": shared.is_dir()}
    return facts


def device_facts(environment: Mapping[str, str]) -> dict[str, Any]:
    """The GPUs that a variant was built for, if it was built for certain ones."""
    devices = environment.get("CUDA_VISIBLE_DEVICES", "")
    numbers = [int(part) for part in devices.split(",") if part.strip().isdecimal()]
    return {"devices.own": bool(numbers), "devices.last": max(numbers, default=None)}


def examine_trtllm(variant: EngineVariant, machine: Mapping[str, Any]) -> Iterator[Finding]:
    """Configuration, hazards, checkpoint and memory of a TensorRT-LLM variant."""
    record = variant.record
    file = variant.folder / record.details["llm_args"]
    try:
        version = supported_version(record.versions["tensorrt_llm"])
        args = read_yaml(file)
    except InputError as found:
        yield error("unreadable", f"{file}: {found}")
        return
    for problem in problems(args, version):
        yield error("configuration", f"{file}: {problem}")
    disk = (args.get("kv_cache_config") or {}).get("disk_cache_path")
    if isinstance(disk, str) and not Path(disk).is_dir():
        # KvCacheConfig's validator (tensorrt_llm/llmapi/llm_args.py @00043967)
        yield error("no-disk-cache", f"{file}: kv_cache_config.disk_cache_path {disk} is not there")
    checkpoint = None
    try:
        checkpoint = read_checkpoint(Path(record.checkpoint["path"]))
    except InputError as found:
        if Path(record.checkpoint["path"]).is_dir():
            yield error("checkpoint", str(found))
    gpu = gpu_by_product_name(str(machine.get("machine.product", "")))
    facts = variant_facts(version, args, record.details["environment"], {})
    if gpu is not None:
        facts["gpu.sm"] = gpu.sm
    if checkpoint is not None:
        yield from examine_checkpoint(variant, checkpoint, args, facts, machine)
    yield from preflight(version, facts)


def examine_checkpoint(
    variant: EngineVariant,
    checkpoint: Checkpoint,
    args: Mapping[str, Any],
    facts: dict[str, Any],
    machine: Mapping[str, Any],
) -> Iterator[Finding]:
    """Whether it is the checkpoint that was built from, and fits on this machine's GPU."""
    if sampled_digest(checkpoint) != variant.record.checkpoint["sha256"]:
        path = checkpoint.path
        yield error("checkpoint-changed", f"{path} is not what it was built from; build again")
    facts |= model_facts(checkpoint)
    gpu = gpu_by_product_name(str(machine.get("machine.product", "")))
    if gpu is None:
        return
    if not args.keys() >= PLANNED_KEYS:
        return  # edited by hand; the rules say what is missing
    version = supported_version(variant.record.versions["tensorrt_llm"])
    try:
        options = options_for(checkpoint, version, gpu, max_seq_len=args["max_seq_len"])
        plan = memory_plan(options, variant.draft_length, args)
        replay = replay_plan(options, variant.draft_length, args)
        require_fit(fitting_plan(plan, replay, gpu)[0], gpu)
    except (DoesNotFitError, InputError) as found:
        yield error("does-not-fit", str(found))


def examine_machine(machine: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with the machine itself."""
    for port in TRITON_PORTS:
        if is_port_used(port):
            yield Finding(
                "port-in-use", "warning", f"port {port} is in use by another program", "bind(2)"
            )
    if not machine["machine.has_triton"]:
        yield error(
            "no-triton", "no tritonserver: pip install 'trt-mtp[triton]' or use NVIDIA's container"
        )


def machine_facts(folder: Path) -> dict[str, Any]:
    """This machine, as the rules ask about it; `folder` decides which disk."""
    gpus = query_gpus()
    driver = gpus[0][1] if gpus else None
    product = gpus[0][0] if gpus else None
    gpu = gpu_by_product_name(product) if product else None
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    return {
        "machine.system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "machine.python": platform.python_version(),
        "machine.num_cores": os.cpu_count(),
        "machine.num_gpus": len(gpus),
        "machine.product": product,
        "machine.gpu": gpu.name if gpu else None,
        "machine.driver": driver,
        "machine.driver_major": int(driver.split(".")[0]) if driver else None,
        "machine.tensorrt_llm": installed("tensorrt_llm"),
        "machine.has_triton": has_triton(),
        "machine.is_container": Path("/.dockerenv").exists()
        or "KUBERNETES_SERVICE_HOST" in os.environ,
        "machine.shm_bytes": shutil.disk_usage("/dev/shm").total
        if Path("/dev/shm").is_dir()
        else 0,
        "machine.is_root": os.geteuid() == 0,
        "machine.allows_root_mpi": all(
            os.environ.get(name) == "1"
            for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
        ),
        "machine.num_visible": num_visible(len(gpus)),
        "machine.free_bytes": shutil.disk_usage(existing).free,
    }


def num_visible(num_gpus: int) -> int:
    """How many GPUs CUDA_VISIBLE_DEVICES shows; all where it is not set."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return num_gpus if shown is None else len([part for part in shown.split(",") if part.strip()])


def query_gpus() -> list[tuple[str, str]]:
    """Product name and driver version of every GPU that nvidia-smi shows."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return [(name, driver) for name, driver in rows] if done.returncode == 0 else []


def installed(package: str) -> str | None:
    """The installed version of `package`, post-releases as what they repair."""
    try:
        return str(parse_version(importlib.metadata.version(package)))
    except (importlib.metadata.PackageNotFoundError, InputError):
        return None


def has_triton() -> bool:
    """Whether a tritonserver can be found, in the wheel or installed."""
    named = os.environ.get("TRITONSERVER") or shutil.which("tritonserver")
    return bool(named) or importlib.util.find_spec("pytriton") is not None


def is_port_used(port: int) -> bool:
    """Whether another program listens on `port` of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def severity_order(finding: Finding) -> int:
    """Errors first."""
    return SEVERITIES.index(finding.severity)


def error(name: str, message: str) -> Finding:
    """A finding of trt-mtp's own."""
    return Finding(name, "error", message, "trt-mtp")
