"""The steps of an acceptance: what each runs, and what it keeps of the result."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trt_mtp.build.variant import EngineVariant, list_variants
from trt_mtp.controller.accept.command import run_command, tail
from trt_mtp.controller.accept.faults import CHECKS
from trt_mtp.controller.accept.plan import device_of, hosted
from trt_mtp.controller.accept.smoke import Smoke, prompts_for, run_checks, smoke_prompts
from trt_mtp.controller.accept.stack import Stack, ask_beside, running
from trt_mtp.controller.accept.step import Acceptance, Budget, Facts, Result, Step
from trt_mtp.controller.accept.tasks import measured_tasks, shortest_set
from trt_mtp.controller.calibrate.prompt_sets import read_prompt_set
from trt_mtp.errors import TrtMtpError

MACHINE = ("num_gpus", "product", "driver", "tensorrt_llm", "num_cores")  # what results depend on
MEASURED_SHARE = 0.5  # of the calibration's budget; the rest is for warming up
REPLAY_LINE = "GDN MTP replay is requested"  # TensorRT-LLM's log, pull request 16464
REPLAY_VARIABLE = "TRTLLM_USE_GDN_REPLAY"


def doctor(run: Acceptance, budget: Budget) -> Result:
    """What is wrong with the machine, and with variants that are there already."""
    engines = run.options.engines
    target = [str(engines)] if any(engines.glob("*/variant.json")) else []
    ended = run_command(budget, run.log("doctor"), "doctor", *target, "--json")
    findings = [
        {"subject": subject["name"], "rule": finding["id"], "severity": finding["severity"]}
        for subject in ended.value["subjects"]
        for finding in subject["findings"]
        if finding["id"] != "not-verified"  # which comes next
    ]
    errors = [found["rule"] for found in findings if found["severity"] == "error"]
    problem = f"{', '.join(errors)}; `trt-mtp doctor` says more" if errors else ""
    return Result({"machine": ended.value["machine"], "findings": findings}, problem)


def num_gpus(run: Acceptance) -> int:
    """GPUs for TensorRT-LLM; 0 for other engines, and where doctor saw none or did not run."""
    machine = run.facts.get("doctor", {}).get("machine", {})
    return int(machine.get("num_visible", 0)) if run.options.engine == "tensorrt-llm" else 0


def build(run: Acceptance, budget: Budget) -> Result:
    """Every variant, each on a GPU of its own as far as there are enough."""
    options = run.options
    common = ["--engine", options.engine, "-o", str(options.engines), "--json"]
    lengths = ",".join(map(str, options.draft_lengths))
    if options.engine == "cpu":
        wanted = [(lengths, ["--no-verify"])]
    elif options.engine == "vllm":
        python = options.vllm_python
        wanted = [(lengths, [] if python is None else ["--vllm-python", str(python)])]
    else:
        gpus = num_gpus(run)
        wanted = [
            (
                str(length),
                ["--devices", str(device_of(length, options.draft_lengths, gpus))] if gpus else [],
            )
            for length in options.draft_lengths
        ]
    for lengths, more in wanted:
        arguments = ("build", options.checkpoint, "--draft-lengths", lengths, *common, *more)
        if run_command(budget, run.log("build"), *arguments).code:
            raise TrtMtpError("a variant could not be built; build.log says why")
    return Result({"described": described(run)})


def variants(run: Acceptance) -> tuple[EngineVariant, ...]:
    """The variants of this acceptance; all that are there if it didn't build them."""
    found = list_variants(run.options.engines)
    if "build" in run.options.skipped:
        return found
    return tuple(v for v in found if v.draft_length in run.options.draft_lengths)


def described(run: Acceptance) -> list[Facts]:
    """The variants, from their records; the first step that runs keeps them."""
    return [variant_facts(variant) for variant in variants(run)]


def variant_facts(variant: EngineVariant) -> Facts:
    """What of a variant's record goes into the acceptance's."""
    record = variant.record
    return {
        "name": variant.name,
        "draft_length": variant.draft_length,
        "fingerprint": record.fingerprint,
        "family": record.checkpoint["family"],
        "max_batch_size": record.max_batch_size,
        "findings": [
            {"subject": variant.name, "rule": f["id"], "severity": f["severity"]}
            for f in record.details.get("findings", ())
        ],
        "asks_for_replay": record.details.get("environment", {}).get(REPLAY_VARIABLE) == "1",
        "planned_bytes": planned_bytes(record.details.get("memory")),
        "vllm": record.versions.get("vllm"),
    }


def planned_bytes(memory: dict[str, Any] | None) -> int | None:
    """The memory of one GPU that a variant was planned to take; None where nothing is planned."""
    if not memory or not memory["kv_cache_bytes"]:
        return None
    apart = ("gpu_bytes", "kv_cache_bytes_per_token")
    parts = (name for name in memory if name.endswith("_bytes") and name not in apart)
    return sum(int(memory[name]) for name in parts)


def verify(run: Acceptance, budget: Budget) -> Result:
    """Every variant alone: its answers beside those of draft length 0, and what a step costs."""
    log = run.log("verify")
    ended = run_command(budget, log, "verify", *map(str, folders(run)), "--json")
    entries = []
    for entry in ended.value["variants"]:
        kept = {key: value for key, value in entry.items() if key not in ("folder", "divergences")}
        exact = entry["exact_tokens"]
        places = sorted(d["position"] for d in entry["divergences"])
        entries.append({**kept, "left_at": places, "is_exact": exact is None})
    wrong = [entry["name"] for entry in entries if not entry["is_passed"]]
    says_replay = REPLAY_LINE in tail(log)
    facts = {"described": described(run), "variants": entries, "says_replay": says_replay}
    return Result(facts, f"{', '.join(wrong)} answered otherwise than they must" if wrong else "")


def folders(run: Acceptance) -> list[Path]:
    """The directories of this acceptance's variants."""
    return [variant.folder for variant in variants(run)]


def serve(run: Acceptance, budget: Budget) -> Result:
    """Triton with as many variants as the GPUs hold, and a gateway in front of it."""
    chosen = hosted(variants(run), num_gpus(run), "build" not in run.options.skipped)
    run.stack = run.live.enter_context(running(chosen, run.log("serve"), budget, run.meter.say))
    facts = {
        "described": described(run),
        "hosted": [variant.name for variant in chosen],
        "triton": triton_version(run),
    }
    return Result(facts)


def triton_version(run: Acceptance) -> str:
    """The version that the running Triton tells."""
    import tritonclient.grpc as grpcclient

    with grpcclient.InferenceServerClient(require_stack(run).server.grpc_url) as client:
        return str(client.get_server_metadata(client_timeout=30.0).version)


def require_stack(run: Acceptance) -> Stack:
    """The running servers; `smoke` and `calibrate` run only after `serve`."""
    assert run.stack is not None
    return run.stack


def smoke(run: Acceptance, budget: Budget) -> Result:
    """Requests through the gateway: every check of `faults.CHECKS`."""
    from trt_mtp.controller.accept.asking import Asker

    stack, prompts = require_stack(run), smoke_prompts(prompts_for(Path(run.options.checkpoint)))
    verdicts = ask_beside(
        lambda over: run_checks(
            Smoke(stack, Asker(stack.address, over), over, run.options.is_exact, prompts), CHECKS
        ),
        stack.check,
        budget,
    )
    wrong = [
        f"{name} ({verdict.reason}{': ' if verdict.detail else ''}{verdict.detail})"
        for name, verdict in verdicts.items()
        if verdict.status == "failed"
    ]
    checks = [{"name": name, **asdict(verdict)} for name, verdict in verdicts.items()]
    return Result({"checks": checks}, "; ".join(wrong))


def calibrate(run: Acceptance, budget: Budget) -> Result:
    """A short calibration of three tasks."""
    from functools import partial

    from trt_mtp.controller.calibrate.beside import run_beside
    from trt_mtp.controller.calibrate.calibrate import Options
    from trt_mtp.controller.calibrate.calibrate import calibrate as measure

    stack = require_stack(run)
    if len(stack.variants) < 2 or stack.variants[0].draft_length:
        return Result({}, not_tried="it takes draft length 0 and another one at the same time")

    def check() -> None:
        budget.require()
        stack.check()

    prompts = prompts_for(Path(run.options.checkpoint))
    tasks, concurrencies = shortest_set(prompts, stack.variants)
    options = Options(
        url=stack.server.grpc_url,
        out=run.options.folder / "profile.json",
        tasks=tasks,
        concurrencies=concurrencies,
        prompts=prompts,
        budget_s=max(budget.left_s * MEASURED_SHARE, 1.0),
        wait_s=budget.left_s,
    )
    profile = measure(options, run.meter, partial(run_beside, check=check))
    return Result(measured_tasks(profile))


def inputs(run: Acceptance) -> Any:
    """What verifying, asking and measuring depend on: the variants, and the machine."""
    machine = run.facts.get("doctor", {}).get("machine", {})
    return [
        [[v.name, v.record.fingerprint, v.record.created] for v in variants(run)],
        {name: machine.get(name) for name in MACHINE},
    ]


def inputs_with_prompts(run: Acceptance) -> Any:
    """The same, and the prompts that are asked."""
    source = prompts_for(Path(run.options.checkpoint))
    return [inputs(run), read_prompt_set(source).digest]


def inputs_of_calibration(run: Acceptance) -> Any:
    """The same, and the time to measure."""
    return [inputs_with_prompts(run), run.options.budgets.get("calibrate")]


def _budgets(cpu_s: float, other_s: float) -> Mapping[str, float]:
    """Seconds by engine: the others load for minutes."""
    return {"cpu": cpu_s, "tensorrt-llm": other_s, "vllm": other_s}


STEPS = (
    Step("doctor", (), _budgets(60, 120), doctor),
    Step("build", (), _budgets(600, 600), build),
    Step("verify", ("build",), _budgets(600, 3600), verify, inputs),
    Step("serve", ("build",), _budgets(600, 3600), serve, inputs, is_live=True),
    Step("smoke", ("serve",), _budgets(300, 3600), smoke, inputs_with_prompts),
    Step("calibrate", ("serve",), _budgets(60, 900), calibrate, inputs_of_calibration),
)
