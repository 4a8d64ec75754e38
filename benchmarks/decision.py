"""How long a decision takes: features to variant, by size of prompt, and decisions per second.

Run `python -m benchmarks.decision [--json]`. Targets: 2,000 characters p50 at most 50 us and p99 at
most 250 us, 220 KB within 1.5 times that, 10,000 decisions a second on one core.
"""

import json
import sys
import time
from dataclasses import replace

from tools.train_task_model import read_prompts
from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.policy import Policy
from trt_mtp.controller.request import RequestFeatures

NUM_DECISIONS = 5000
SIZES = (200, 2_000, 220_000)


def prompts(size: int) -> list[RequestFeatures]:
    """Prompts of `size` characters, each a real one followed by others as its material."""
    texts = [prompt.text for prompt in read_prompts() if prompt.language == "en"]
    material = "\n".join(texts)
    blank = RequestFeatures(temperature=0.7, max_tokens=256)
    requests = []
    for i, text in enumerate(texts[::5]):
        start = 997 * i % 20_000
        whole = (text + "\n" + (material[start:] + material) * (1 + size // 40_000))[:size]
        requests.append(replace(blank, head=whole[:2000], tail=whole[-2000:], num_chars=size))
    return requests


def measure(policy: Policy, requests: list[RequestFeatures]) -> dict[str, float]:
    """Percentiles in microseconds, and decisions per second of CPU time."""
    hosted = [VariantState(f"k{k}", k, True, k, 64, 1 << 20) for k in (0, 1, 3, 5)]
    micros = []
    started = time.process_time()
    for i in range(NUM_DECISIONS):
        features = requests[i % len(requests)]
        start = time.perf_counter_ns()
        policy.choose(features, hosted, now_s=0.0)
        micros.append((time.perf_counter_ns() - start) / 1000)
    cpu_s = time.process_time() - started
    micros.sort()
    return {
        "p50_us": round(micros[len(micros) // 2], 1),
        "p99_us": round(micros[99 * len(micros) // 100], 1),
        "decisions_per_s": round(NUM_DECISIONS / cpu_s),
    }


def main() -> None:
    """Measure every size in one run, after a warm-up."""
    policy = Policy()
    measure(policy, prompts(SIZES[0]))
    results = {size: measure(policy, prompts(size)) for size in SIZES}
    if "--json" in sys.argv[1:]:
        print(json.dumps({"schema_version": 1, "by_num_chars": results}))
        return
    for size, row in results.items():
        print(f"{size:>8} characters: p50 {row['p50_us']} us, p99 {row['p99_us']} us, "
              f"{row['decisions_per_s']:,} decisions/s")  # fmt: skip
    ratio = results[220_000]["p50_us"] / results[2_000]["p50_us"]
    print(f"220,000 over 2,000 characters: {ratio:.2f}")


if __name__ == "__main__":
    main()
