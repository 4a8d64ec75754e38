"""The tensors of a variant's Triton model: what a request may hold and what an answer brings.

Inputs that TensorRT-LLM's own `llmapi` Triton model has keep its names and types
(github.com/NVIDIA/TensorRT-LLM, triton_backend/all_models/llmapi/tensorrt_llm/config.pbtxt), so
that its clients work unchanged. `input_ids`, `messages`, `tools`, `emitted_ids` and
`return_margin` are additions.
"""

from dataclasses import dataclass
from typing import Literal

DataType = Literal["TYPE_STRING", "TYPE_BOOL", "TYPE_INT32", "TYPE_UINT64", "TYPE_FP32"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output; a dimension of -1 has any length."""

    name: str
    data_type: DataType
    dims: tuple[int, ...] = (1,)


PROMPT_INPUTS = ("text_input", "messages", "input_ids")  # exactly one is given

INPUTS = (
    TensorSpec("text_input", "TYPE_STRING"),
    TensorSpec("messages", "TYPE_STRING"),  # JSON: a list of chat messages
    TensorSpec("tools", "TYPE_STRING"),  # JSON: a list of tools, for the chat template
    TensorSpec("input_ids", "TYPE_INT32", (-1,)),
    TensorSpec("emitted_ids", "TYPE_INT32", (-1,)),  # of this answer, which the client has already
    TensorSpec("streaming", "TYPE_BOOL"),
    TensorSpec("sampling_param_max_tokens", "TYPE_INT32"),
    TensorSpec("sampling_param_temperature", "TYPE_FP32"),
    TensorSpec("sampling_param_top_k", "TYPE_INT32"),
    TensorSpec("sampling_param_top_p", "TYPE_FP32"),
    TensorSpec("sampling_param_seed", "TYPE_UINT64"),
    TensorSpec("sampling_param_stop", "TYPE_STRING", (-1,)),
    TensorSpec("sampling_param_exclude_input_from_output", "TYPE_BOOL"),
    TensorSpec("sampling_param_return_perf_metrics", "TYPE_BOOL"),
    TensorSpec("return_finish_reason", "TYPE_BOOL"),
    TensorSpec("return_margin", "TYPE_BOOL"),
)

# The last response brings all that the request asks for (no outputs named: everything);
# those before it bring text_output and output_ids only.
OUTPUTS = (
    TensorSpec("text_output", "TYPE_STRING"),
    TensorSpec("output_ids", "TYPE_INT32", (-1,)),
    TensorSpec("finish_reason", "TYPE_STRING"),
    TensorSpec("num_input_tokens", "TYPE_INT32"),
    TensorSpec("num_output_tokens", "TYPE_INT32"),
    TensorSpec("num_steps", "TYPE_INT32"),
    TensorSpec("num_draft_tokens", "TYPE_INT32"),
    TensorSpec("num_accepted_draft_tokens", "TYPE_INT32"),
    TensorSpec("accepted_per_position", "TYPE_INT32", (-1,)),  # [draft length]
    # of the first token's two best logits, where return_margin asks and the engine gives logits
    TensorSpec("margin", "TYPE_FP32"),
)

COUNTERS = frozenset(
    {"num_steps", "num_draft_tokens", "num_accepted_draft_tokens", "accepted_per_position"}
)

# A flag of the llmapi model that, when false, leaves outputs out.
OUTPUT_FLAGS: dict[str, frozenset[str]] = {
    "return_finish_reason": frozenset({"finish_reason"}),
    "sampling_param_return_perf_metrics": COUNTERS,
}

# What the message of an error begins with that is the variant's own and not the request's:
# another variant may do better. (An error in a stream loses its code on the way through Triton.)
INTERNAL_ERROR = "internal error: "
CANCELLED = "the request was cancelled"  # for its client nobody cares; else the engine was closed

# Request parameters are the gateway's; a variant lets them pass and knows no others.
PARAMETERS = ("task", "draft_length", "session_id", "tenant", "latency_class")
