"""A double of tensorrt_llm for machines without a GPU: the part of its API that is used here.

Signatures follow tests/unittest/api_stability/references_committed/llm.yaml of NVIDIA/TensorRT-LLM
and the API reference of 1.3.0rc29 (RequestOutput, CompletionOutput, SamplingParams). Its "model"
derives the distribution of each token from the tokens before it. As with the real one, greedy
answers drift by draft length after some hundred tokens, and random numbers depend on it.
"""

import asyncio
import hashlib
import math
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from trt_mtp.build.trtllm_version import parse_version

__version__ = os.environ.get("TENSORRT_LLM_DOUBLE_VERSION", "1.3.0rc27")
ENVIRONMENT = dict(os.environ)  # as it was at import, which is when the real one reads it
# faults: greedy answers drift from this token on; drafts are kept at this rate without being drawn
DRIFTS_AT = os.environ.get("TENSORRT_LLM_DOUBLE_DRIFTS_AT")
KEEPS_DRAFTS = float(os.environ.get("TENSORRT_LLM_DOUBLE_KEEPS_DRAFTS", "0"))
STEP_S = 0.001
VOCABULARY = 256
NUM_SPECIAL = 3  # the tokens before these end an answer of the tests' checkpoints: none is drawn
CANDIDATES = 6  # tokens that may come next
# a prompt that begins with one of these has a fault
FAILS, HANGS = 250, 251
ERROR_BUDGET = 3  # errors after which the executor is shut down for good
# per-request totals of drafts read 0 before pull request 17082
HAS_TOTALS = parse_version(__version__) >= parse_version("1.3.0rc28")


@dataclass(kw_only=True)
class SamplingParams:
    """The sampling parameters in use."""

    end_id: int | None = None
    max_tokens: int = 32
    stop: str | list[str] | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    ignore_eos: bool = False
    min_tokens: int | None = None
    detokenize: bool = True
    return_perf_metrics: bool = False


@dataclass
class CompletionOutput:
    """The answer so far."""

    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    request_perf_metrics: Any = None


class RequestOutput:
    """A request's result, which is awaited step by step."""

    def __init__(self, llm: "LLM", prompt: list[int], sampling: SamplingParams) -> None:
        asyncio.get_running_loop()  # the real one's result can be awaited only when made in a loop
        self.prompt_token_ids = prompt
        self.outputs = [CompletionOutput()]
        self.finished = False
        self.error: str | None = None
        self.decoding_iter = 0
        self._drafts = self._accepted = 0
        self._llm, self._sampling, self._is_aborted = llm, sampling, False

    @property
    def avg_decoded_tokens_per_iter(self) -> float | None:
        """Tokens per iteration, the prompt's included."""
        return len(self.outputs[0].token_ids) / self.decoding_iter if self.decoding_iter else None

    def abort(self) -> None:
        """End the request."""
        self._is_aborted = True

    async def __aiter__(self) -> AsyncIterator["RequestOutput"]:
        answer = self.outputs[0]
        while not self.finished:
            await asyncio.sleep(STEP_S)
            self._llm.step(self.prompt_token_ids[0])
            while self._llm.is_hanging and not self._is_aborted:
                await asyncio.sleep(STEP_S)
            self.decoding_iter += 1
            if self._is_aborted:
                answer.finish_reason, self.finished = "cancelled", True
            else:
                self._step(answer)
            # as _handle_responses of tensorrt_llm/_torch/pyexecutor/py_executor.py does
            at = self.decoding_iter
            if at == 1 or self.finished or at % self._llm.stream_interval == 0:
                yield self

    def _step(self, answer: CompletionOutput) -> None:
        # the prompt's iteration yields one token, a later one up to K + 1
        most = (
            1 if self.decoding_iter == 1 else 1 + self.decoding_iter % (self._llm.draft_length + 1)
        )
        before = len(answer.token_ids)
        for at in range(most):
            tokens = [*self.prompt_token_ids, *answer.token_ids]
            # as the one-model path does since pull request 17599
            offset = self.decoding_iter * (self._llm.draft_length + 1) + at
            if is_greedy(self._sampling):
                num_drawn = len(answer.token_ids)
                token = greedy_token(tokens, self._llm.draft_length, num_drawn)
            else:
                is_draft = self._llm.draft_length > 0 and at + 1 < most
                token = sampled_token(tokens, self._sampling, offset, is_draft)
            answer.token_ids.append(token)
            if token == self._llm.end_id and not self._sampling.ignore_eos:
                answer.finish_reason, self.finished = "stop", True
            elif len(answer.token_ids) == self._sampling.max_tokens:
                answer.finish_reason, self.finished = "length", True
            if self.finished:
                break
        self._drafts += self._llm.draft_length * (self.decoding_iter > 1)
        self._accepted += len(answer.token_ids) - before - 1
        if self._sampling.return_perf_metrics:
            answer.request_perf_metrics = SimpleNamespace(
                speculative_decoding=SimpleNamespace(
                    total_draft_tokens=HAS_TOTALS * self._drafts,
                    total_accepted_draft_tokens=HAS_TOTALS * self._accepted,
                )
            )


def fraction(*key: Any) -> float:
    """A number in [0, 1) that depends on `key` alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def candidates(tokens: list[int]) -> list[int]:
    """The tokens that may follow `tokens`, the likeliest first."""
    digest = hashlib.sha256(f"{tokens[-4:]} {len(tokens)}".encode()).digest()
    return [NUM_SPECIAL + byte % (VOCABULARY - NUM_SPECIAL) for byte in digest[:CANDIDATES]]


def is_greedy(sampling: SamplingParams) -> bool:
    """Whether no random number is used."""
    return sampling.top_k == 1 or sampling.temperature in (None, 0)


def greedy_token(tokens: list[int], draft_length: int, num_drawn: int) -> int:
    """The likeliest token; past a length that depends on the prompt and K, now and then another."""
    drifts_at = 150 + int(250 * fraction("drift", tokens[0], draft_length))
    if DRIFTS_AT is not None:
        drifts_at = int(DRIFTS_AT)
    is_tie = draft_length > 0 and num_drawn == drifts_at
    return candidates(tokens)[1 if is_tie else 0]


def sampled_token(tokens: list[int], sampling: SamplingParams, offset: int, is_draft: bool) -> int:
    """A token drawn with the random number at `offset` of the seed's stream."""
    if is_draft and fraction("keep", sampling.seed, offset) < KEEPS_DRAFTS:
        return candidates(tokens)[0]
    weights = [math.exp(-rank / (sampling.temperature or 1.0)) for rank in range(CANDIDATES)]
    goal = fraction(sampling.seed, offset) * sum(weights)
    for rank, weight in enumerate(weights):
        goal -= weight
        if goal < 0:
            return candidates(tokens)[rank]
    return candidates(tokens)[0]


class LLM:
    """The engine."""

    def __init__(
        self,
        model: str,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.args = {"model": model, "tensor_parallel_size": tensor_parallel_size, **kwargs}
        if not os.path.isdir(model):
            raise ValueError(f"{model} is not a checkpoint")
        speculative = kwargs.get("speculative_config") or {}
        self.draft_length = int(speculative.get("max_draft_len", 0))
        self.stream_interval = int(kwargs.get("stream_interval", 1))
        self.end_id = -1
        self.is_failing = False
        self.is_hanging = False
        self._num_errors = 0
        self.is_shut_down = False

    def generate_async(
        self,
        inputs: str | list[int],
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
    ) -> RequestOutput:
        """Start a request."""
        assert isinstance(inputs, list)
        assert streaming
        if self.is_shut_down:
            raise RuntimeError("LLM is shutting down")
        return RequestOutput(self, inputs, sampling_params or SamplingParams())

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        """Iteration statistics."""
        return []

    def step(self, first: int) -> None:
        """Fail or hang, as the prompt that begins with `first` makes it."""
        self.is_hanging = self.is_hanging or first == HANGS
        if self.is_shut_down:
            raise RuntimeError("the executor was shut down")
        if self.is_failing or first == FAILS:
            self._num_errors += 1
            self.is_shut_down = self._num_errors >= ERROR_BUDGET
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _check_health(self) -> bool:
        """Whether the executor runs."""
        return not self.is_shut_down

    def shutdown(self) -> None:
        """Free everything."""
        self.is_shut_down = True
