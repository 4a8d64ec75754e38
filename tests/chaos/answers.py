"""Requests whose undisturbed answers are known beforehand."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trt_mtp.serve.engine import open_engine
from trt_mtp.serve.engine.base import Request, SamplingParams
from trt_mtp.serve.engine.collect import collect

NUM_COMPUTED = 24
VOCABULARY = 320  # of the checkpoint that tests/variants.py builds


@dataclass(frozen=True, slots=True)
class Expected:
    """A request as tensors, and the answer to it that nothing disturbs."""

    inputs: dict[str, Any]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str


def scripted(rng: random.Random) -> Iterator[Expected]:
    """Requests to doubles, without end; the tokens of each have a word that no other has."""
    number = 0
    while True:
        number += 1
        num_tokens, word = rng.randint(5, 60), f"r{number}-"
        delay_s = rng.choice((0.0, 0.005, 0.02, 0.02))
        script = {"tokens": num_tokens, "word": word, "delay_s": delay_s}
        yield Expected(
            inputs={"text_input": json.dumps(script), "streaming": True},
            token_ids=tuple(range(num_tokens)),
            text="".join(f"{word}{index}" for index in range(num_tokens)),
            finish_reason="length",
        )


def computed(rng: random.Random, variant: Path) -> Iterator[Expected]:
    """Requests to engine variants, greedy and sampled, with and without stop texts.

    What `variant`, one without speculation, answers to them by itself is what is expected.
    """
    engine = open_engine(variant)
    try:
        requests = [_request(rng) for _ in range(NUM_COMPUTED)]
        answers = collect(engine, requests)
        requests = [
            _with_stop(rng, request, answer.text)
            for request, answer in zip(requests, answers, strict=True)
        ]
        answers = collect(engine, requests)
    finally:
        engine.close()
    known = [
        Expected(_inputs(request), answer.token_ids, answer.text, answer.finish_reason)
        for request, answer in zip(requests, answers, strict=True)
    ]
    while True:
        yield rng.choice(known)


def _request(rng: random.Random) -> Request:
    prompt = tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, 200)))
    is_greedy = rng.random() < 0.5
    sampling = SamplingParams(
        max_tokens=rng.randint(100, 1500),
        temperature=0.0 if is_greedy else 0.7,
        top_k=0 if is_greedy else 20,
        seed=rng.getrandbits(30),
    )
    return Request(prompt, sampling)


def _with_stop(rng: random.Random, request: Request, text: str) -> Request:
    """Every third request stops at three characters of the second half of its answer."""
    if rng.random() > 1 / 3:
        return request
    start = rng.randrange(len(text) // 2, len(text) - 3)
    stop = (text[start : start + 3],)
    return replace(request, sampling=replace(request.sampling, stop=stop))


def _inputs(request: Request) -> dict[str, Any]:
    sampling = request.sampling
    inputs: dict[str, Any] = {
        "input_ids": list(request.prompt_ids),
        "streaming": True,
        "sampling_param_max_tokens": sampling.max_tokens,
    }
    if sampling.temperature:
        inputs["sampling_param_temperature"] = sampling.temperature
        inputs["sampling_param_top_k"] = sampling.top_k
        inputs["sampling_param_seed"] = sampling.seed
    if sampling.stop:
        inputs["sampling_param_stop"] = list(sampling.stop)
    return inputs
