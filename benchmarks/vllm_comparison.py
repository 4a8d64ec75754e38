"""vLLM on the CPU beside our engine, and routed by us beside what it can do alone.

`python -m benchmarks.vllm_comparison --vllm HOST:PORT [--adaptive HOST:PORT/MODEL] [--json]`

HOST:PORT is a Triton with vLLM's variants of the small checkpoint at the draft lengths of
--lengths, as `trt-mtp serve` starts it, and MODEL a variant with a schedule of vLLM's own
(`trt-mtp build --draft-len-schedule`). Our engine at the same lengths, and a gateway in front of
vLLM's variants with a profile calibrated on other prompts, are started beside them. A round sends
the same greedy prompts of a task to each of them in random order. Results are ratios of tokens per
second within a round, as median and quartiles over rounds; tokens per second are not printed,
because the machine's load is in them.

vLLM computes in bfloat16 and our engine in float32: the ratio between them is of programs, not of
arithmetic. All share the cores, so that one that waits costs the others nothing but memory.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritonclient.grpc import InferenceServerClient

from benchmarks._report import print_report
from benchmarks.engine import Ratio
from tests.engine_fixtures import ASSET
from trt_mtp.build.variant import VariantRecord
from trt_mtp.controller.calibrate.load_client import LoadClient, request_bytes
from trt_mtp.controller.calibrate.prompt_sets import PromptSet, read_prompt_set
from trt_mtp.controller.client import Prompt, StreamClient
from trt_mtp.controller.demo.demo import measure, warm_up
from trt_mtp.controller.demo.report import one_at_a_time, profile_from
from trt_mtp.controller.profile import write_profile
from trt_mtp.controller.up import child, read_ready_line
from trt_mtp.errors import TrtMtpError
from trt_mtp.serve.repository import MEASURED_ON
from trt_mtp.serve.serving import limits_for, resolve_variants, serving

LOADS = (1, 4)
CALIBRATION, ASKED, ROUNDS = 4, 6, 5  # prompts a task; rounds
SEED = 20261129
LOAD_S = 900.0  # of our variants, where the machine does other work
PUBLIC = "qwen_mtp"
ROUTED, ADAPTIVE = "vLLM routed", "vLLM adaptive"

Target = tuple[str, str]  # host:port and the model there
Speeds = dict[tuple[str, int], dict[str, list[float]]]  # task, load -> target -> by round, tok/s


@dataclass(frozen=True, slots=True)
class Comparison:
    """One target over another, by task and load."""

    what: str
    ratios: Mapping[str, Mapping[int, Ratio]]

    @property
    def lines(self) -> Iterator[str]:
        """For people."""
        heads = (f"load {load}" for load in LOADS)
        yield f"{self.what}\n{'':<22}{''.join(f'{head:>26}' for head in heads)}"
        for task, by_load in self.ratios.items():
            yield f"  {task:<20}{''.join(f'{by_load[load]!s:>26}' for load in LOADS)}"


def built(folder: Path, *options: str) -> Path:
    """Variants of the small checkpoint in `folder`."""
    with child("build", str(ASSET), "-o", str(folder), "--max-seq-len", "1024", *options) as build:
        assert build.stdout is not None
        build.stdout.read()
        if build.wait():
            raise TrtMtpError(f"{folder.name} could not be built")
    return folder


@contextmanager
def running(
    folder: Path, lengths: Sequence[int], url: str, adaptive: str | None, prompts: PromptSet
) -> Iterator[dict[str, Target]]:
    """Everything that is compared."""
    named = ",".join(map(str, lengths))
    ours = resolve_variants(
        [built(folder / "cpu", "--engine", "cpu", "--no-verify", "--draft-lengths", named)]
    )
    targets = {f"vLLM K={k}": (url, f"{PUBLIC}_k{k}") for k in lengths}
    if adaptive is not None:
        where, _, model = adaptive.partition("/")
        targets[ADAPTIVE] = (where, model)
    limits = limits_for(ours, load_s=LOAD_S)
    with serving(ours, limits=limits, on_progress=say) as server:
        models = zip(lengths, server.models, strict=True)
        targets |= {f"ours K={k}": (server.grpc_url, model) for k, model in models}
        profile = folder / "profile.json"
        calibrate(url, lengths, prompts, ours[0].record, profile)
        with child(
            "gateway", "--triton", url, "--port", "0", "--json", "--profile", str(profile)
        ) as gateway:
            yield targets | {ROUTED: (str(read_ready_line(gateway)["gateway"]), PUBLIC)}


def calibrate(
    url: str, lengths: Sequence[int], prompts: PromptSet, record: VariantRecord, profile: Path
) -> None:
    """A profile of vLLM's variants from the first prompts of each task, one at a time."""
    models = {k: f"{PUBLIC}_k{k}" for k in lengths}
    held = {task: part[:CALIBRATION] for task, part in prompts.prompts.items()}
    with StreamClient(url) as client:
        warm_up(client, models, held)
        alone = {model: (client, model) for model in models.values()}
        answers = measure(alone, held, 1, lambda *_: None)
        told = describe_target(url, models[0])
    cells = one_at_a_time(prompts, models, answers, 0, SEED)
    write_profile(profile, profile_from(cells, replace(record, **told), 0.0))


def describe_target(url: str, model: str) -> dict[str, Any]:
    """What a variant was measured on, as its Triton model says."""
    with InferenceServerClient(url) as client:
        parameters = client.get_model_config(model).config.parameters
    return {
        "fingerprint": parameters["fingerprint"].string_value,
        "measured_on": json.loads(parameters[MEASURED_ON].string_value),
    }


async def measured(
    targets: Mapping[str, Target], prompts: Mapping[str, Sequence[Prompt]], rounds: int
) -> Speeds:
    """Tokens per second of every target by task, load and round, in random order."""
    order, speeds = random.Random(SEED), defaultdict[Any, Any](lambda: defaultdict(list))
    clients = {url: LoadClient(url) for url, _ in targets.values()}
    try:
        for number in range(-1, rounds):  # the first is thrown away
            for task, part in prompts.items():
                for load in LOADS:
                    for name in order.sample(sorted(targets), len(targets)):
                        url, model = targets[name]
                        speed = await tokens_per_s(clients[url], model, part, load)
                        if number >= 0:
                            speeds[task, load][name].append(speed)
            say(f"round {number + 1} of {rounds}")
    finally:
        for client in clients.values():
            await client.close()
    return dict(speeds)


async def tokens_per_s(
    client: LoadClient, model: str, prompts: Sequence[Prompt], load: int
) -> float:
    """Output tokens per second, with `load` of the prompts in flight."""
    batch = await client.answers([request_bytes(model, prompt) for prompt in prompts], load)
    failed = batch.lost or next((answer.error for answer in batch.answers if answer.error), "")
    if failed:
        raise TrtMtpError(f"{model}: {failed}")
    return sum(answer.num_output_tokens for answer in batch.answers) / batch.elapsed_s


def best_single(speeds: Speeds, lengths: Sequence[int], load: int) -> str:
    """The draft length of vLLM that is fastest over all tasks at this load, in hindsight."""
    names = [f"vLLM K={k}" for k in lengths]

    def time_per_token(name: str) -> float:
        return sum(
            1 / statistics.median(one[name]) for (_, at), one in speeds.items() if at == load
        )

    return min(names, key=time_per_token)


def compared(what: str, speeds: Speeds, one: str, other: Mapping[int, str]) -> Comparison:
    """`one` over `other`, which is named by load; the last row is of all tasks together."""
    ratios: dict[str, dict[int, Ratio]] = defaultdict(dict)
    for load in LOADS:
        together: list[float] = []
        for (task, at), found in speeds.items():
            if at == load:
                pairs = zip(found[one], found[other[load]], strict=True)
                values = [a / b for a, b in pairs]
                together += values
                ratios[task][load] = Ratio.of(values)
        ratios["all"][load] = Ratio.of(together)
    everything = ratios.pop("all")
    return Comparison(what, {**ratios, "all": everything})


def comparisons(speeds: Speeds, lengths: Sequence[int]) -> list[Comparison]:
    """All that is printed."""

    def against(one: str, other: str) -> Comparison:
        return compared(f"{one} over {other}", speeds, one, dict.fromkeys(LOADS, other))

    best = {load: best_single(speeds, lengths, load) for load in LOADS}
    told = ", ".join(f"{name.removeprefix('vLLM ')} at load {load}" for load, name in best.items())
    return [
        *[against(f"ours K={k}", "ours K=0") for k in lengths[1:]],
        *[against(f"vLLM K={k}", "vLLM K=0") for k in lengths[1:]],
        *[against(f"ours K={k}", f"vLLM K={k}") for k in lengths],
        against(ROUTED, "vLLM K=0"),
        compared(f"{ROUTED} over the best single K ({told})", speeds, ROUTED, best),
        *([against(ROUTED, ADAPTIVE)] if ADAPTIVE in next(iter(speeds.values())) else []),
    ]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", metavar="HOST:PORT")
    parser.add_argument("--adaptive", metavar="HOST:PORT/MODEL")
    parser.add_argument("--lengths", default="0,1,3", help="of both engines; 0 among them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--short", action="store_true", help="fewer rounds and shorter answers")
    parser.add_argument("--tasks", default="structured_output,coding,writing")
    options = parser.parse_args()
    if options.vllm is None:  # as in `make bench`
        say("nothing was measured: start vLLM's variants (docs/vllm.md) and name their Triton")
        return
    lengths = sorted(map(int, options.lengths.split(",")))
    prompts = read_prompt_set(str(ASSET / "prompts.jsonl")).chosen(options.tasks.split(","))
    prompts = prompts.drawn(48 if options.short else None, 0.0, SEED)
    asked = {task: part[CALIBRATION:][:ASKED] for task, part in prompts.prompts.items()}
    with (
        tempfile.TemporaryDirectory(prefix="trt-mtp-vllm-") as folder,
        running(Path(folder), lengths, options.vllm, options.adaptive, prompts) as targets,
    ):
        speeds = asyncio.run(measured(targets, asked, 2 if options.short else ROUNDS))
    found = comparisons(speeds, lengths)
    values = [{"what": one.what, "ratios": as_json(one)} for one in found]
    print_report(
        options.json, {"comparisons": values}, [line for one in found for line in one.lines]
    )


def as_json(comparison: Comparison) -> dict[str, dict[str, list[float]]]:
    """Median and quartiles by task and load."""
    return {
        task: {str(load): [ratio.median, ratio.low, ratio.high] for load, ratio in by_load.items()}
        for task, by_load in comparison.ratios.items()
    }


if __name__ == "__main__":
    main()
