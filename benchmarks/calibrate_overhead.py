"""What calibrate's client adds to the time per token, against one that parses nothing.

`python -m benchmarks.calibrate_overhead [--engines FOLDER] [--rounds N]`

Both ask the small checkpoint's variant without speculation for the same answers, in turn, in random
order, on a stream for each. The other client writes the same bytes and reads bytes; it keeps two
clock readings and looks for the mark of the last message, no more. Client and server share this
machine. The figure is the median over prompts of the ratio of the two times per token, each the
median over rounds.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import grpc

from trt_mtp.controller.calibrate.load_client import ANSWER_TIMEOUT_S, LoadClient, request_bytes
from trt_mtp.controller.calibrate.prompt_sets import read_prompt_set
from trt_mtp.controller.up import build, default_checkpoint
from trt_mtp.serve.kserve import FINAL_BYTES, SERVICE
from trt_mtp.serve.serving import resolve_variants, serving

NUM_PROMPTS = 24
MODEL = "qwen_mtp_k0"


async def raw_decode_s(stream: grpc.aio.StreamStreamMultiCallable, request: bytes) -> float:
    """Seconds from the first message of an answer to the last, on a stream of its own."""
    call = stream(timeout=ANSWER_TIMEOUT_S)
    await call.write(request)
    raw = await call.read()
    first = time.perf_counter()
    while FINAL_BYTES not in raw:
        raw = await call.read()
    elapsed = time.perf_counter() - first
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass
    return elapsed


async def compare(url: str, requests: list[bytes], rounds: int, seed: int) -> dict[str, float]:
    """The ratio of the two clients' times, and its quartiles over the prompts."""
    client, order = LoadClient(url), random.Random(seed)
    ours: list[list[float]] = [[] for _ in requests]
    theirs: list[list[float]] = [[] for _ in requests]
    async with grpc.aio.insecure_channel(url) as channel:
        stream = channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")
        for _ in range(rounds):
            for at in order.sample(range(len(requests)), len(requests)):
                for who in order.sample(("ours", "theirs"), 2):
                    if who == "ours":
                        (answer,) = (await client.answers([requests[at]], 1)).answers
                        ours[at].append(answer.decode_s)
                    else:
                        theirs[at].append(await raw_decode_s(stream, requests[at]))
    await client.close()
    ratios = sorted(
        statistics.median(a) / statistics.median(b) for a, b in zip(ours, theirs, strict=True)
    )
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ratio": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def main() -> None:
    """Serve, compare, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    checkpoint = default_checkpoint()
    prompts = read_prompt_set(str(Path(checkpoint) / "prompts.jsonl")).prompts["writing"]
    requests = [request_bytes(MODEL, prompt) for prompt in prompts[:NUM_PROMPTS]]
    with tempfile.TemporaryDirectory() as folder:
        engines = arguments.engines or Path(folder) / "engines"
        with serving(resolve_variants(build(checkpoint, "0", engines))) as server:
            result = asyncio.run(compare(server.grpc_url, requests, arguments.rounds, seed=1))
    print(json.dumps({"prompts": len(requests), "rounds": arguments.rounds, **result}, indent=2))


if __name__ == "__main__":
    main()
