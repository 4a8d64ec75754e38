"""The prior of a step's time, from a GPU's data sheet and a model's sizes; nothing is measured.

A step takes as long as the slower of its memory traffic and its arithmetic (Williams, Waterman and
Patterson, "Roofline", CACM 52, 2009). What makes R(K, B) of a Qwen MTP model is in the traffic: all
weights once, the experts that some token visits, keys and values, and for each request a
Gated-DeltaNet state and its copies to roll back to.
"""

from dataclasses import dataclass

from trt_mtp.build.gpus import Gpu
from trt_mtp.build.memory import kv_cache_per_token, replay_row, state_per_request
from trt_mtp.build.model_shape import ModelShape
from trt_mtp.controller.context_cost import ContextCost
from trt_mtp.controller.cost import Curve, StepCost

# src/aiconfigurator/systems/*.yaml in ai-dynamo/aiconfigurator: mem_bw_empirical_scaling_factor
BANDWIDTH_SHARE = 0.8  # of the data sheet's bandwidth that kernels reach
ALL_REDUCE_S = 1e-5  # p2p_latency of the same files; two in each layer
# mem_empirical_constant_latency of the same files, for the twelve or so kernels of a layer (norms,
# projections, convolution, attention, router, experts): what small models wait for
LAYER_S = 12 * 3e-6
COMPUTE_SHARE = 0.6  # of the data sheet's arithmetic; an allowance, chosen here
BF16_BYTES = 2
LONG_CONTEXT = 65536  # tokens of a request at which the price of a token is asked for
KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # batches of the curves


@dataclass(frozen=True, slots=True)
class Roofline:
    """Step times of one model on one GPU type, `tensor_parallel` of them together.

    `context_tokens` are those of all requests in flight together. With `has_replay` rejected drafts
    are undone by computing the state again, otherwise from a copy for each token. With
    `reads_per_row` a verify step reads keys and values for each row, otherwise once.
    """

    shape: ModelShape
    gpu: Gpu
    tensor_parallel: int = 1
    kv_cache_dtype: str = "bfloat16"
    state_dtype: str = "float32"
    has_replay: bool = False
    reads_per_row: bool = False

    def step_s(
        self,
        draft_length: int,
        batch: float,
        context_tokens: float = 0.0,
        prompt_tokens: float = 0.0,
    ) -> float:
        """Seconds of one draft-and-verify step of `batch` requests.

        The same pass reads `prompt_tokens` of others' prompts.
        """
        rows = batch * (draft_length + 1) + prompt_tokens
        cached = context_tokens * kv_cache_per_token(self.shape, 0, self.kv_cache_dtype)
        cached *= draft_length + 1 if self.reads_per_row else 1
        moved = self._weights(rows) + self._states(draft_length, batch) + cached
        verify = self._seconds(moved, self._flop(rows, context_tokens * (draft_length + 1)))
        verify += self._waits(self._num_layers)
        return verify + draft_length * self.draft_s(batch, context_tokens)

    def draft_s(self, batch: float, context_tokens: float = 0.0) -> float:
        """Seconds of one draft: the MTP layer and the output head."""
        shape = self.shape
        experts = shape.mtp_expert_bytes * self._visited(batch)
        own = shape.mtp_bytes - shape.mtp_expert_bytes + experts
        cached = kv_cache_per_token(shape, 1, self.kv_cache_dtype)
        cached -= kv_cache_per_token(shape, 0, self.kv_cache_dtype)
        head = shape.vocab_size * shape.hidden_size
        weights = _full_layer(shape) + _feed_forward(shape) + 2 * shape.hidden_size**2 + head
        moved = own + BF16_BYTES * head + context_tokens * cached
        return self._seconds(moved, 2 * batch * weights) + self._waits(1)

    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens that are read per second, at 2,048 of them at a time."""
        rows = 2048
        seconds = self._seconds(self._weights(rows), self._flop(rows, rows * rows / 2))
        return rows / (seconds + self._waits(self._num_layers))

    def step_cost(self, lengths: tuple[int, ...], context_tokens: float = 0.0) -> StepCost:
        """The table of `lengths` where each request has `context_tokens` of its own."""
        plain = {b: self.step_s(0, b, b * context_tokens) for b in KNOTS}
        ratios: dict[int, Curve] = {
            k: tuple((b, self.step_s(k, b, b * context_tokens) / plain[b]) for b in KNOTS)
            for k in lengths
            if k > 0
        }
        context = self.context_cost(context_tokens)
        return StepCost(tuple(plain.items()), ratios, context=context)

    def context_cost(self, at_tokens: float) -> ContextCost:
        """What a token costs in the caches of one request, between `at_tokens` and very many."""

        def slope(draft_length: int) -> float:
            more = self.step_s(draft_length, 1, at_tokens + LONG_CONTEXT)
            return (more - self.step_s(draft_length, 1, at_tokens)) / LONG_CONTEXT

        plain_s = slope(0)
        return ContextCost(at_tokens, plain_s, max(slope(1) - plain_s, 0.0))

    @property
    def _num_layers(self) -> int:
        return self.shape.num_full_layers + self.shape.num_linear_layers

    def _weights(self, rows: float) -> float:
        """Bytes of weights that a pass over `rows` tokens reads; of the embedding, a few rows."""
        shape = self.shape
        embedding = BF16_BYTES * shape.vocab_size * shape.hidden_size
        dense = shape.weight_bytes - shape.expert_bytes - embedding
        return dense + shape.expert_bytes * self._visited(rows)

    def _visited(self, rows: float) -> float:
        """The share of a layer's experts that at least one of `rows` tokens visits.

        Tokens are taken to choose independently and evenly.
        """
        shape = self.shape
        if not shape.num_experts:
            return 0.0
        missed: float = (1 - shape.num_active_experts / shape.num_experts) ** rows
        return 1 - missed

    def _states(self, draft_length: int, batch: float) -> float:
        """Bytes of states that a step reads and writes.

        One read and one write of a plain step; a verify step writes a copy after each token, and
        then the accepted one (mamba_cache_manager.py, see `rollback_scratch` of build/memory.py).
        """
        state = state_per_request(self.shape, self.state_dtype)
        if not draft_length:
            return batch * 2 * state
        if self.has_replay:
            return batch * (2 * state + (draft_length + 1) * replay_row(self.shape))
        return batch * state * (draft_length + 2)

    def _flop(self, rows: float, attended: float) -> float:
        """Floating-point operations on `rows` tokens that attend to `attended` in all."""
        shape = self.shape
        layers = self._num_layers
        weights = shape.num_full_layers * _full_layer(shape)
        weights += shape.num_linear_layers * _linear_layer(shape)
        weights += layers * _feed_forward(shape) + shape.vocab_size * shape.hidden_size
        attention = 4 * shape.num_full_layers * shape.num_heads * shape.head_dim
        return 2 * rows * weights + attended * attention

    def _seconds(self, moved: float, flop: float) -> float:
        bandwidth = self.gpu.bandwidth_bytes_s * BANDWIDTH_SHARE
        compute = self.gpu.bf16_flops * COMPUTE_SHARE * self._precision_gain()
        return max(moved / bandwidth, flop / compute) / self.tensor_parallel

    def _precision_gain(self) -> int:
        """How many times BF16's speed the tensor cores multiply most of the weights."""
        shape = self.shape
        layers = shape.num_full_layers + shape.num_linear_layers
        routed = shape.num_experts or 1
        width = shape.feed_forward_size / max(shape.num_active_experts, 1) * routed
        per_weight = shape.weight_bytes / (3 * layers * shape.hidden_size * width)
        if not shape.is_quantized or not self.gpu.has_fp8:
            return 1
        return 4 if per_weight < 1 and self.gpu.has_fp4 else 2

    def _waits(self, layers: int) -> float:
        return layers * (LAYER_S + (2 * ALL_REDUCE_S if self.tensor_parallel > 1 else 0.0))


def _full_layer(shape: ModelShape) -> int:
    """Weights of a gated attention layer: queries and gate, keys, values, output."""
    per_head = 3 * shape.num_heads + 2 * shape.num_kv_heads
    return shape.hidden_size * shape.head_dim * per_head


def _linear_layer(shape: ModelShape) -> int:
    """Weights of a Gated-DeltaNet layer: queries, keys, values, gate, output."""
    keys = shape.num_linear_key_heads * shape.linear_key_head_dim
    values = shape.num_linear_value_heads * shape.linear_value_head_dim
    return shape.hidden_size * (2 * keys + 3 * values)


def _feed_forward(shape: ModelShape) -> int:
    """Weights of the feed-forward part that one token passes through."""
    return 3 * shape.hidden_size * shape.feed_forward_size
