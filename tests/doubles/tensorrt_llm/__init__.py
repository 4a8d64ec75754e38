"""A double of tensorrt_llm for machines without a GPU: the part of its API that is used here.

Signatures follow tests/unittest/api_stability/references_committed/llm.yaml of NVIDIA/TensorRT-LLM
and the API reference of 1.3.0rc29 (RequestOutput, CompletionOutput, SamplingParams). Its "model"
derives each token from the tokens before it, so that every draft length must give the same answer.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

__version__ = os.environ.get("TENSORRT_LLM_DOUBLE_VERSION", "1.3.0rc27")
ENVIRONMENT = dict(os.environ)  # as it was at import, which is when the real one reads it
DIVERGES = "TENSORRT_LLM_DOUBLE_DIVERGES" in os.environ  # drafts change the eleventh token
STEP_S = 0.001
VOCABULARY = 256


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
            if self._llm.is_failing:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
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
        for _ in range(most):
            tokens = [*self.prompt_token_ids, *answer.token_ids]
            token = next_token(tokens, self._sampling)
            if DIVERGES and self._llm.draft_length and len(answer.token_ids) == 10:
                token = (token + 1) % VOCABULARY
            answer.token_ids.append(token)
            if token == self._llm.end_id and not self._sampling.ignore_eos:
                answer.finish_reason, self.finished = "stop", True
            elif len(answer.token_ids) == self._sampling.max_tokens:
                answer.finish_reason, self.finished = "length", True
            if self.finished:
                break
        if self._sampling.return_perf_metrics:
            answer.request_perf_metrics = SimpleNamespace(
                speculative_decoding=SimpleNamespace(
                    total_draft_tokens=0, total_accepted_draft_tokens=0, acceptance_rate=0.0
                )
            )


def next_token(tokens: list[int], sampling: SamplingParams) -> int:
    """The token after `tokens`; sampling depends on the seed, greedy decoding doesn't."""
    is_greedy = sampling.top_k == 1 or sampling.temperature in (None, 0)
    key = f"{tokens[-4:]} {len(tokens)} {'' if is_greedy else sampling.seed}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % VOCABULARY


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
        return RequestOutput(self, inputs, sampling_params or SamplingParams())

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        """Iteration statistics."""
        return []

    def shutdown(self) -> None:
        """Free everything."""
        self.is_shut_down = True
